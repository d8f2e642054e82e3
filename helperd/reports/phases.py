"""Where the time of a restore goes: reading, decoding, injecting, punching.

Each thread counts for itself, a chunk at a time, so nothing is locked and little is spent. The
sums over all threads can be more than the time that passed.
"""

from __future__ import annotations

# Not threading: it takes longer to import, and at each fork, than what is used of it.
import _thread
from time import perf_counter

READ, DECODE, INJECT, PUNCH = PHASES = ("read", "decode", "inject", "punch")

_books: list[dict[str, float]] = []


class _Own(_thread._local):
    """A thread's own book, listed when the thread first uses it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        _books.append(self.seconds)


_own = _Own()


class spent:  # noqa: N801 - it reads as a verb: with spent(READ): ...
    """Count the time of the with-block as spent in a phase; DECODE does not count READ in it."""

    __slots__ = ("_phase", "_start")

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        elapsed = perf_counter() - self._start
        seconds = _own.seconds
        seconds[self._phase] += elapsed
        if self._phase is READ:
            seconds[DECODE] -= elapsed


def add(phase: str, seconds: float) -> None:
    """Count time as spent in a phase, by itself."""
    _own.seconds[phase] += seconds


def totals() -> dict[str, float]:
    """Return the seconds of each phase, over all threads, since the process started."""
    return {phase: sum(book[phase] for book in _books) for phase in PHASES}


def forget() -> None:
    """Begin to count anew in the calling thread."""
    _own.seconds.update(dict.fromkeys(PHASES, 0.0))
