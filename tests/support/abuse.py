"""Mutated requests and images, an engine to give them to, and what must come of them.

Used by the tests of tests/faults and by the fuzzer in fuzz/.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lz4.block

from helperd.blocks import PAGE_SIZE
from helperd.engine.engine import Engine
from helperd.engine.release import Release
from helperd.errors import HelperdError, NotPermitted
from helperd.modes import NEVER
from helperd.reports.log import Log
from helperd.targets.hold import Hold
from helperd.targets.targets import Targets
from helperd.wire.pipe import RequestReader
from tests.support.image import BlockImage, noise, text
from tests.support.requests import HEADER, RawRequest

N_PAGES = 24
_CANARY = 0xC5
_MAX_PAGES = 1 << 12
_DESERT_BYTES = 1 << 44
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_NO_ACCESS, _NORESERVE, _FIXED = 0, 0x4000, 0x10


class Bench:
    """An engine, a pages image that can be anything, and a process to write to.

    The process shares its memory with this one, so looking at it costs nothing.

    Attributes:
        pid: of the process.
        address: of its memory, N_PAGES long, in both processes.
    """

    def __init__(self, image_fd: int, address: int, pid: int) -> None:
        self.pid = pid
        self.address = address
        memory = (ctypes.c_char * (N_PAGES * PAGE_SIZE)).from_address(address)
        self._memory = memoryview(memory).cast("B")
        self._image_fd = image_fd
        log = Log(0)
        self._engine = Engine(
            image_fd, Targets(self._pin, log), Release(image_fd, NEVER, log), threads=1, thp=NEVER
        )

    def _pin(self, pid: int) -> Hold:
        if pid != self.pid:
            raise NotPermitted(f"{pid} is nobody's business")
        return Hold.open(pid)

    def check(self, stream: bytes, image: bytes) -> str:
        """Serve a stream of requests from an image; return ``ok`` or the name of the error.

        Fails unless what was answered is in memory, byte for byte, and nothing else is.
        """
        os.ftruncate(self._image_fd, 0)
        os.pwrite(self._image_fd, image, 0)
        self._memory[:] = bytes([_CANARY]) * len(self._memory)
        expected = bytearray(self._memory)
        touched = bytearray(N_PAGES)
        reader = RequestReader(_MAX_PAGES)
        reader.receive_data(stream)
        at = 0
        outcome = "ok"
        try:
            while (request := reader.next_request()) is not None:
                for base, length in _pairs(request.iovs):
                    if abs(base - self.address) >= _DESERT_BYTES // 2 - length:
                        return "elsewhere"  # Where the process has its code, perhaps.
                    self._mark(touched, base, length)
                answer = self._engine.execute(request)
                at, live = self._interpret(stream, at, image, expected)
                assert answer == live * PAGE_SIZE, "a wrong answer"
            reader.receive_eof()
        except HelperdError as error:
            failure = error
            outcome = type(error).__name__
        else:
            failure = None
        assert failure is None or (str(failure) and failure.errno > 0 and failure.exit_code > 1)
        self._compare(expected, touched, clean=outcome == "ok")
        return outcome

    def _mark(self, touched: bytearray, base: int, length: int) -> None:
        first = (base - self.address) // PAGE_SIZE
        for page in range(first, first + length // PAGE_SIZE):
            if 0 <= page < N_PAGES:
                touched[page] = 1

    def _compare(self, expected: bytearray, touched: bytearray, *, clean: bool) -> None:
        memory = bytes(self._memory)
        if clean:
            assert memory == expected, "wrong bytes in memory"
            return
        # Of a failed request some pages may have been written, but none that it does not name.
        for page in range(N_PAGES):
            here = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
            assert touched[page] or memory[here] == expected[here], f"page {page} was written"

    def _interpret(
        self, stream: bytes, at: int, image: bytes, expected: bytearray
    ) -> tuple[int, int]:
        """Carry out one accepted request the plain way.

        Return where the next one starts, and how many of its pages are not zero.
        """
        _, offset, _, n_pages, n_iovs, n_blocks, region = HEADER.unpack_from(stream, at)
        at += HEADER.size
        sizes = struct.unpack_from(f"<{n_blocks}I", stream, at)
        at += 4 * n_blocks
        pages = [1] * n_blocks
        if region:
            pages = list(struct.unpack_from(f"<{n_blocks}H", stream, at))
            at += 2 * n_blocks
        iovs = struct.unpack_from(f"<{2 * n_iovs}Q", stream, at)
        at += 16 * n_iovs
        content = bytearray()
        for size, count in zip(sizes, pages, strict=True):
            stored, n_bytes = image[offset : offset + size], count * PAGE_SIZE
            assert len(stored) == size, "payload beyond the image was accepted"
            if size == 0:
                content += bytes(n_bytes)
            elif size == n_bytes:
                content += stored
            else:
                block = lz4.block.decompress(stored, uncompressed_size=n_bytes)
                assert len(block) == n_bytes, "a block of another length was accepted"
                content += block
            offset += size
        assert len(content) == n_pages * PAGE_SIZE
        zero = bytes(PAGE_SIZE)
        done = 0
        for base, length in _pairs(iovs):
            for start in range(base - self.address, base - self.address + length, PAGE_SIZE):
                page = content[done : done + PAGE_SIZE]
                done += PAGE_SIZE
                if 0 <= start < len(expected):
                    expected[start : start + PAGE_SIZE] = page
                else:  # The desert reads as zero once it is allowed to be read.
                    assert page == zero, "written where nothing can be"
        live = sum(
            content[page : page + PAGE_SIZE] != zero for page in range(0, len(content), PAGE_SIZE)
        )
        return at, live


@contextmanager
def bench() -> Iterator[Bench]:
    """Give a bench, whose process ends with it."""
    address = _lonely_memory()
    stays, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.read(stays, 1)
        os._exit(0)
    os.close(stays)
    image_fd = os.memfd_create("pages")
    try:
        yield Bench(image_fd, address, pid)
    finally:
        os.close(held)
        os.waitpid(pid, 0)
        os.close(image_fd)


def samples(bench: Bench) -> list[tuple[bytes, bytes]]:
    """Return sessions as they should be: (requests, pages image)."""
    pages = BlockImage()
    for page in range(N_PAGES // 4):
        pages.add_lz4(text(1, seed=page))
        pages.add_zero()
        pages.add_raw(noise(1, seed=page))
        pages.add_lz4(bytes(100) + text(1, seed=50 + page)[100:])
    regions = BlockImage()
    regions.add_lz4(text(8))
    regions.add_zero(4)
    regions.add_raw(noise(4))
    regions.add_lz4(bytes(4 * PAGE_SIZE) + text(4, seed=9))
    scattered = [(bench.address + page * PAGE_SIZE, PAGE_SIZE) for page in reversed(range(N_PAGES))]
    whole = pages.request(bench.pid, bench.address)
    small = RawRequest(
        remote_pid=bench.pid,
        offs=0,
        sizes=pages.sizes[:1],
        iovs=[(bench.address + 5 * PAGE_SIZE, PAGE_SIZE)],
    )
    return [
        (whole.encode(), bytes(pages.payload)),
        (pages.request(bench.pid, scattered).encode(), bytes(pages.payload)),
        (
            regions.request(bench.pid, bench.address, region_pages=8).encode(),
            bytes(regions.payload),
        ),
        (small.encode() + whole.encode() + small.encode(), bytes(pages.payload)),
    ]


#: Numbers that have gone wrong before, somewhere.
ODD_NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 15, 23, 24, 25, 255, 256, 1023, 1024, 1025, 4095, 4096, 4097, 4128, 4129),
    *(65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 47, 1 << 62, 1 << 63, (1 << 64) - 1),
)


def mutate(data: bytes, number: Callable[[int], int]) -> bytes:
    """Return ``data`` with one to four changes; ``number(n)`` chooses from 0 to n - 1."""
    changed = bytearray(data)
    for _ in range(1 + number(4)):
        if not changed:
            return b"\0"
        at = number(len(changed))
        kind = number(8)
        if kind == 0:
            changed[at] ^= 1 << number(8)
        elif kind == 1:
            changed[at] = number(256)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + 1 + number(16)]
        elif kind == 4:
            changed[at:at] = bytes(number(256) for _ in range(1 + number(8)))
        elif kind == 5:
            end = at + number(64)
            changed[at:at] = changed[at:end]
        else:
            width = (2, 4, 8)[number(3)]
            start = at - at % width if kind == 6 else at
            odd = ODD_NUMBERS[number(len(ODD_NUMBERS))] & ((1 << 8 * width) - 1)
            changed[start : start + width] = odd.to_bytes(width, "little")
    return bytes(changed)


def _pairs(iovs: array[int] | tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return zip(iovs[0::2], iovs[1::2], strict=True)


def _lonely_memory() -> int:
    """Map N_PAGES that are shared with children, with nothing near; return their address.

    A request for another place must not hit what happens to be there: it would be right to write.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.mmap.restype = ctypes.c_void_p
    empty = libc.mmap(None, _DESERT_BYTES, _NO_ACCESS, _NORESERVE | _PRIVATE, -1, 0)
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _FIXED
    middle = empty + _DESERT_BYTES // 2
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address: int = libc.mmap(middle, N_PAGES * PAGE_SIZE, protection, flags, -1, 0)
    assert address == middle
    return address
