"""The threads of an engine."""

from __future__ import annotations

import pytest

from helperd.codec.decoders import Decoders
from helperd.engine import engine


class Work(engine._Work):
    """Work of many pages that is done at once."""

    def __init__(self) -> None:
        self.n_pages = 1 << 20
        self.served: list[Decoders] = []

    def run(self, decoders: Decoders) -> None:
        self.served.append(decoders)


class LastWork(Work):
    """Ends the thread that does it: no other test may find it."""

    def run(self, decoders: Decoders) -> None:
        raise SystemExit


def test_every_thread_takes_part() -> None:
    crew, work = engine._Crew(3), Work()
    crew.do(work)
    assert len(work.served) == 3
    for _ in range(2):
        crew._orders.put(LastWork())
        crew._finished.get()


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "no memory")])
def test_a_thread_without_buffers_is_one_less(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    crew, work = engine._Crew(3), Work()

    def no_decoders() -> Decoders:
        raise error

    monkeypatch.setattr(engine, "Decoders", no_decoders)
    crew.do(work)
    assert len(work.served) == 1
