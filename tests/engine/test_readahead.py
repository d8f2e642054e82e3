"""Reading ahead, on a file of a disk, which can be taken out of the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator

import pytest

from helperd.engine.readahead import ReadAhead

MIB = 1 << 20
SIZE = 80 * MIB
#: How far ahead of what was reached everything is to be read.
AHEAD = 32 * MIB


_libc = ctypes.CDLL(None)


def in_memory(fd: int, offset: int) -> bool:
    """Look into the page cache without changing anything there."""
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(fd, mmap.PAGESIZE, offset=start) as page:
        cell = ctypes.c_char.from_buffer(page)
        resident = ctypes.c_ubyte()
        assert _libc.mincore(ctypes.byref(cell), mmap.PAGESIZE, ctypes.byref(resident)) == 0
        del cell
    return bool(resident.value & 1)


def comes_to_memory(fd: int, offset: int) -> bool:
    end = time.monotonic() + 20
    while not in_memory(fd, offset) and time.monotonic() < end:
        time.sleep(0.01)
    return in_memory(fd, offset)


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def image() -> Iterator[int]:
    """Yield a file on the disk of the repository, not in memory."""
    fd = os.open(os.path.dirname(__file__), os.O_TMPFILE | os.O_RDWR)
    try:
        for _ in range(SIZE // MIB):
            os.write(fd, b"x" * MIB)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if in_memory(fd, SIZE - 1):
            pytest.skip("the page cache cannot be emptied here")
        yield fd
    finally:
        os.close(fd)


def test_a_cold_image_is_read_ahead_but_not_to_its_end(image: int) -> None:
    before = n_threads()
    ReadAhead(image, SIZE).reached(0)
    assert n_threads() == before + 1
    assert comes_to_memory(image, AHEAD - 1)
    assert not in_memory(image, SIZE - 1)


def test_it_goes_on_with_what_is_reached(image: int) -> None:
    ahead = ReadAhead(image, SIZE)
    for offset in range(0, SIZE - AHEAD, MIB):
        ahead.reached(offset)
    assert comes_to_memory(image, SIZE - MIB - 1)


def test_it_begins_again_elsewhere(image: int) -> None:
    ahead = ReadAhead(image, SIZE)
    ahead.reached(SIZE - 4 * MIB)
    assert comes_to_memory(image, SIZE - 1)
    ahead.reached(0)
    assert comes_to_memory(image, AHEAD - 1)


def test_an_image_in_memory_needs_no_thread(image: int) -> None:
    before = n_threads()
    for offset in range(0, SIZE, MIB):
        os.pread(image, MIB, offset)
    ahead = ReadAhead(image, SIZE)
    for offset in range(0, SIZE, MIB):
        ahead.reached(offset)
    assert n_threads() == before


def test_nor_does_one_on_a_tmpfs() -> None:
    before = n_threads()
    fd = os.memfd_create("image")
    os.truncate(fd, SIZE)
    ReadAhead(fd, SIZE).reached(0)
    os.close(fd)
    assert n_threads() == before


def test_what_cannot_be_sent_is_still_asked_for(image: int) -> None:
    before = n_threads()
    ahead = ReadAhead(image, SIZE)
    broken, write = os.pipe()
    os.dup2(broken, ahead._sink)  # cannot be written to
    ahead.reached(0)
    while n_threads() > before:
        time.sleep(0.01)
    ahead.reached(20 * MIB)
    for fd in (broken, write):
        os.close(fd)
    assert comes_to_memory(image, 50 * MIB)
