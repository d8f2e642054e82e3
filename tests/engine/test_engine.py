"""The threads of an engine."""

from __future__ import annotations

import os

import pytest

from helperd.codec import decoders
from helperd.codec.chunk import CHUNK_PAGES
from helperd.codec.decoders import Decoders
from helperd.engine import crew


class Work:
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
    threads, work = crew.Crew(3), Work()
    threads.do(work)
    assert len(work.served) == 3
    end(threads)


def test_threads_come_when_they_pay() -> None:
    """A small process is restored before they had begun."""
    threads, work = crew.Crew(3), Work()
    work.n_pages = 4 * CHUNK_PAGES
    threads.do(work)
    assert len(work.served) == 1
    threads.do(work)
    assert len(work.served) == 1 + 3
    work.n_pages = CHUNK_PAGES
    threads.do(work)
    assert len(work.served) == 1 + 3 + 1
    end(threads)


def test_threads_whose_buffers_are_ready_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others, as long as these would not pay."""
    kept = [Decoders(), Decoders()]
    monkeypatch.setattr(decoders, "_kept", kept.copy())
    threads, work = crew.Crew(3), Work()
    assert threads.decoders is kept[1]
    work.n_pages = 2 * CHUNK_PAGES - 1
    threads.do(work)
    assert work.served == [kept[1]]
    work.n_pages = 4 * CHUNK_PAGES
    threads.do(work)
    assert sorted(map(id, work.served[1:])) == sorted(map(id, kept))
    end(threads)


def test_the_next_crew_has_the_buffers_of_one_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoders, "_kept", [])
    threads = crew.Crew(1)
    threads.close()
    assert crew.Crew(1).decoders is threads.decoders
    assert crew.Crew(1).decoders is not threads.decoders


def test_no_more_take_part_than_there_are_chunks() -> None:
    threads, work = crew.Crew(8), Work()
    threads.do(work)
    work.served.clear()
    work.n_pages = 3 * CHUNK_PAGES
    threads.do(work)
    assert len(work.served) == 3
    end(threads)


def end(threads: crew.Crew) -> None:
    for member in threads._members:
        member.work = LastWork()
        member.order.release()
        member.done.acquire()


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "no memory")])
def test_a_thread_without_buffers_is_one_less(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    threads, work = crew.Crew(3), Work()

    def no_decoders() -> Decoders:
        raise error

    monkeypatch.setattr(decoders, "take", no_decoders)
    threads.do(work)
    assert len(work.served) == 1


@pytest.mark.parametrize("more", [0, 1])
def test_a_thread_for_each_cpu_stays_on_its_own(more: int) -> None:
    """The calling one only as long as they share something. Others are the kernel's to place."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) == 1:
        pytest.skip("there is one CPU only")
    found: list[set[int]] = []

    class Looking(Work):
        def run(self, decoders: Decoders) -> None:
            super().run(decoders)
            found.append(os.sched_getaffinity(0))

    threads = crew.Crew(len(cpus) + more)
    threads.do(Looking())
    assert os.sched_getaffinity(0) == cpus
    expected = sorted(cpus for _ in range(len(cpus) + 1)) if more else [{cpu} for cpu in cpus]
    assert sorted(found, key=min) == sorted(expected, key=min)
    end(threads)
