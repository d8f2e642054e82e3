"""Restoring an image that is on a disk and not in the page cache."""

from __future__ import annotations

import os
import time

from bench.competitors import Competitor
from bench.images import PagesImage
from bench.measure import verified_runner, warm_memory
from bench.results import ColdCase
from bench.stats import summarize

_READ_BYTES = 8 << 20


def measure_cold(
    image: PagesImage, competitor: Competitor, max_pages: int, rounds: int
) -> ColdCase:
    """Time reading the file, restoring it out of the page cache, and both at once; in turns.

    Args:
        image: on a disk: the page cache of a tmpfs cannot be emptied.
        competitor: restores it.
        max_pages: most pages of a request.
        rounds: of each of the three.
    """
    read, warm, cold = [], [], []
    fd = os.open(image.path, os.O_RDONLY)
    try:
        os.fsync(fd)  # what has not been written stays in the cache
        with verified_runner(competitor, image, max_pages) as runner:
            for _ in range(rounds):
                _drop(fd)
                start = time.perf_counter()
                _read_all(fd)
                read.append(time.perf_counter() - start)
                warm_memory(image.memory.n_bytes)
                warm.append(runner.restore().wall)
                runner.drop()
                _drop(fd)
                warm_memory(image.memory.n_bytes)
                cold.append(runner.restore().wall)
                runner.drop()
    finally:
        os.close(fd)
    return ColdCase(
        pattern=image.memory.name,
        mode=image.mode,
        payload_bytes=image.payload_bytes,
        read=summarize(read),
        warm=summarize(warm),
        cold=summarize(cold),
    )


def _drop(fd: int) -> None:
    """Take the file out of the page cache."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_all(fd: int) -> None:
    """Read the whole file as fast as one thread can."""
    buffer = bytearray(_READ_BYTES)
    offset = 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while n := os.preadv(fd, [buffer], offset):
        offset += n
