"""The threads of an engine."""

from __future__ import annotations

import pytest

from helperd.engine import engine
from helperd.engine.lane import Lane


class Work(engine._Work):
    """Work of many pages that is done at once."""

    def __init__(self) -> None:
        self.n_pages = 1 << 20
        self.lanes: list[Lane] = []

    def run(self, lane: Lane) -> None:
        self.lanes.append(lane)


class LastWork(Work):
    """Ends the thread that does it: no other test may find it."""

    def run(self, lane: Lane) -> None:
        raise SystemExit


def test_every_thread_takes_part() -> None:
    crew, work = engine._Crew(-1, 3), Work()
    crew.do(work)
    assert len(work.lanes) == 3
    for _ in range(2):
        crew._orders.put(LastWork())
        crew._finished.get()


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "no memory")])
def test_a_thread_without_buffers_is_one_less(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    crew, work = engine._Crew(-1, 3), Work()

    def no_lane(_: int) -> Lane:
        raise error

    monkeypatch.setattr(engine, "Lane", no_lane)
    crew.do(work)
    assert len(work.lanes) == 1
