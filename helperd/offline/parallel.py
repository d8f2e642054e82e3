"""Work on many pieces with all cores, results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from helperd.errors import UsageError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

#: Pieces for each thread that are begun before the first result is taken; bounds the memory.
_AHEAD = 3
_MAX_THREADS = 256


def n_threads(threads: int) -> int:
    """Return how many threads to use: ``threads``, or as many as this process has CPUs for 0.

    Raises:
        UsageError: a number that makes no sense.
    """
    if not 0 <= threads <= _MAX_THREADS:
        raise UsageError(f"{threads} threads are not possible: 0 (all CPUs) to 256")
    return threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def ordered(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    threads: int,
    *,
    ahead: int = _AHEAD,
) -> Iterator[Result]:
    """Yield the result of ``work`` on each piece, in the order of the pieces.

    Pieces are taken in the calling thread, ``ahead`` for each thread before the results. What
    ``work`` raises is raised in its turn; pieces behind it may have been worked on.
    """
    if threads == 1:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                begun.append(pool.submit(work, piece))
                if len(begun) > ahead * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
