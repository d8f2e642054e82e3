"""Reading ahead, on a file of a disk, which can be taken out of the page cache."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Iterator

import pytest

from helperd.blocks import PAGE_SIZE
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


def cannot_tell(fd: int) -> bool:
    """Return whether this file system does not say what is in memory (overlayfs, for one)."""
    os.pwrite(fd, b"x" * mmap.PAGESIZE, 0)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


def open_on_disk() -> int:
    try:
        return os.open(os.path.dirname(__file__), os.O_TMPFILE | os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no nameless file beside the tests: {error}")


@pytest.fixture
def image() -> Iterator[int]:
    """Yield a file on the disk of the repository, not in memory."""
    probe = open_on_disk()
    unknown = cannot_tell(probe)
    os.close(probe)
    if unknown:
        pytest.skip("what is in memory cannot be told here")
    fd = open_on_disk()
    for _ in range(SIZE // MIB):
        os.write(fd, b"x" * MIB)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    yield fd
    os.close(fd)


class Reading(ReadAhead):
    """A ReadAhead whose thread can be ended: no other test may find it."""

    def end(self) -> None:
        before = n_threads()
        os.close(self._sink)
        if self._ask == self._steps.put:
            # A step that is of use, and cannot be sent any more.
            self._first, self._asked, self._reached = 0, MIB, 0
            self._steps.put(0)
            while n_threads() == before:
                time.sleep(0.001)


@pytest.fixture
def ahead(image: int) -> Iterator[Reading]:
    reading = Reading(image, SIZE)
    yield reading
    reading.end()


def test_a_cold_image_is_read_ahead_but_not_to_its_end(image: int, ahead: Reading) -> None:
    before = n_threads()
    ahead.reached(0, MIB)
    assert n_threads() == before + 1
    assert comes_to_memory(image, AHEAD - 1)
    assert not in_memory(image, SIZE - 1)


def test_it_goes_on_with_what_is_reached(image: int, ahead: Reading) -> None:
    for offset in range(0, SIZE - AHEAD, MIB):
        ahead.reached(offset, SIZE)
    assert comes_to_memory(image, SIZE - MIB - 1)


def test_out_of_order_it_stops_with_the_request(image: int, ahead: Reading) -> None:
    start = 20 * MIB
    ahead.reached(start, start + 2 * MIB)
    assert comes_to_memory(image, start + 2 * MIB - 1)
    assert ahead._asked == start + 2 * MIB
    # The next one follows, so there may be more of them.
    ahead.reached(start + 2 * MIB, start + 3 * MIB)
    assert comes_to_memory(image, start + AHEAD - 1)


def test_what_requests_have_left_behind_is_not_read(image: int, ahead: Reading) -> None:
    for start in range(60 * MIB, 0, -10 * MIB):
        ahead.reached(start, start + PAGE_SIZE)
    ahead.reached(0, MIB)
    assert comes_to_memory(image, MIB - 1)
    # The kernel reads a window of its own where it was looked at, and no more.
    assert ahead._steps.qsize() <= 1


def test_an_image_in_memory_needs_no_thread(image: int, ahead: Reading) -> None:
    before = n_threads()
    for offset in range(0, SIZE, MIB):
        os.pread(image, MIB, offset)
    for offset in range(0, SIZE, MIB):
        ahead.reached(offset, SIZE)
    assert n_threads() == before


def test_nor_does_one_on_a_tmpfs() -> None:
    before = n_threads()
    fd = os.memfd_create("image")
    os.truncate(fd, SIZE)
    ahead = Reading(fd, SIZE)
    ahead.reached(0, SIZE)
    assert n_threads() == before
    ahead.end()
    os.close(fd)


def test_a_descriptor_that_cannot_be_looked_at(image: int) -> None:
    """Of one that is open with O_DIRECT no single byte can be read."""
    fd = os.open(f"/proc/self/fd/{image}", os.O_RDONLY | os.O_DIRECT)
    ahead = Reading(fd, SIZE)
    ahead.reached(0, SIZE)
    ahead.end()
    os.close(fd)


def test_what_cannot_be_sent_is_still_asked_for(image: int, ahead: Reading) -> None:
    before = n_threads()
    broken, write = os.pipe()
    os.dup2(broken, ahead._sink)  # cannot be written to
    ahead.reached(0, SIZE)
    end = time.monotonic() + 20
    while n_threads() > before and time.monotonic() < end:
        time.sleep(0.01)
    ahead.reached(20 * MIB, SIZE)
    for fd in (broken, write):
        os.close(fd)
    assert comes_to_memory(image, 50 * MIB)
