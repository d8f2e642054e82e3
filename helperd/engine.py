"""Carries out requests: chunk by chunk, read, decode, inject."""

from __future__ import annotations

import os
import stat
from array import array

from helperd import blocks
from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.decode import PageDecoder, RegionDecoder
from helperd.errors import HelperdError, ShortImage
from helperd.plan import plan_chunks
from helperd.target import zero_iovecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.decode import Decoded
    from helperd.plan import Chunk
    from helperd.protocol import Request
    from helperd.target import Target
    from helperd.targets import Targets

#: Consumed image bytes are dropped from the page cache in steps of this many.
_DROP_BYTES = 8 << 20


class Totals:
    """What a session has done so far; bytes are those of pages, not of payload."""

    __slots__ = ("lz4", "pages", "payload", "raw", "requests", "written", "zero", "zeros_written")

    def __init__(self) -> None:
        self.requests = 0
        self.pages = 0
        self.payload = 0
        self.zero = 0
        self.raw = 0
        self.lz4 = 0
        #: Pages written with content, and pages written with zeros.
        self.written = 0
        self.zeros_written = 0

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.pages} pages ({self.zero} zero, {self.raw} raw,"
            f" {self.lz4} LZ4 blocks, {self.payload} payload bytes),"
            f" {self.written} written, {self.zeros_written} zeroed"
        )


class Engine:
    """Restores the pages of requests from one pages image.

    Args:
        pages_fd: the pages image, a file that can be read at an offset.
        targets: decides who may be written to.
    """

    def __init__(self, pages_fd: int, targets: Targets) -> None:
        self._fd = pages_fd
        self._targets = targets
        self._page_decoder: PageDecoder | None = None
        self._region_decoder: RegionDecoder | None = None
        self.totals = Totals()

    def execute(self, request: Request) -> int:
        """Carry out a valid request.

        Returns:
            The bytes of its pages that are not all zero: the answer.

        Raises:
            HelperdError: as the failing step says; the message tells how many pages had been
                written before.
        """
        target = self._targets.get(request.remote_pid)
        self._check_image_size(request)
        target.begin_request()
        cache = _PageCache(self._fd, request.offs)
        written = 0
        for chunk in plan_chunks(request):
            try:
                decoded = self._decode(request, chunk)
                _inject(target, chunk, decoded, self.totals)
            except HelperdError as error:
                written += error.bytes_done >> PAGE_SHIFT
                raise _with_progress(error, written, request.n_pages) from error
            written += decoded.n_live
            cache.consumed(chunk.offset + chunk.payload)
        target.check_alive()
        cache.drop()
        self._count(request)
        return blocks.pages_to_bytes(written)

    def _decode(self, request: Request, chunk: Chunk) -> Decoded:
        if request.region_pages:
            if self._region_decoder is None:
                self._region_decoder = RegionDecoder()
            return self._region_decoder.decode(self._fd, chunk)
        if self._page_decoder is None:
            self._page_decoder = PageDecoder()
        return self._page_decoder.decode(self._fd, chunk)

    def _check_image_size(self, request: Request) -> None:
        """Refuse a request beyond the end of the image before anything is written."""
        status = os.fstat(self._fd)
        end = request.offs + request.total_compressed_size
        if stat.S_ISREG(status.st_mode) and end > status.st_size:
            raise ShortImage(
                f"the payload ends at offset {end}, the pages image at {status.st_size}:"
                " it is truncated, or of another dump"
            )

    def _count(self, request: Request) -> None:
        totals = self.totals
        totals.requests += 1
        totals.pages += request.n_pages
        totals.payload += request.total_compressed_size
        zero = request.sizes.count(blocks.ZERO_SIZE)
        if request.region_pages:
            whole = (pages * PAGE_SIZE for pages in request.block_pages)
            raw = sum(map(int.__eq__, request.sizes, whole))
        else:
            raw = request.sizes.count(PAGE_SIZE)
        totals.zero += zero
        totals.raw += raw
        totals.lz4 += request.n_blocks - zero - raw


class _PageCache:
    """Drops the consumed part of the image from the page cache.

    The kernel drops whole pages only, so a page that is consumed in part stays until the rest
    of it has been.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._dropped = start & -PAGE_SIZE
        self._consumed = start

    def consumed(self, end: int) -> None:
        """Say that everything up to ``end`` has been used."""
        self._consumed = end
        if end - self._dropped >= _DROP_BYTES:
            self.drop()

    def drop(self) -> None:
        """Drop what has been used and not been dropped yet."""
        end = self._consumed & -PAGE_SIZE
        if end > self._dropped:
            os.posix_fadvise(self._fd, self._dropped, end - self._dropped, os.POSIX_FADV_DONTNEED)
            self._dropped = end


def _inject(target: Target, chunk: Chunk, decoded: Decoded, totals: Totals) -> None:
    """Write a chunk's pages: live ones always, zero ones where something else may be."""
    local, n_pages = decoded.local, decoded.n_live
    if decoded.n_live == chunk.n_pages:
        remote = array("Q", (v for base, n in chunk.ranges for v in (base, n << PAGE_SHIFT)))
    else:
        remote = array("Q")
        zeros: list[tuple[int, int]] = []
        page = 0
        for address, count in chunk.ranges:
            live_runs, zero_runs = _runs(decoded.live, page, count)
            for first, length in live_runs:
                remote.extend((address + (first << PAGE_SHIFT), length << PAGE_SHIFT))
            if zero_runs:
                zeros += target.zeros_to_write(address, count, zero_runs)
            page += count
        for address, length in zeros:
            local.extend(zero_iovecs(length))
            remote.extend((address, length << PAGE_SHIFT))
            totals.zeros_written += length
            n_pages += length
    target.write(local, remote, n_pages << PAGE_SHIFT)
    totals.written += decoded.n_live


def _runs(
    live: bytearray, start: int, count: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the runs of live pages and of zero pages among ``count`` pages from ``start`` on.

    Each run is (first page, pages), counted from ``start``.
    """
    runs: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    position, end = start, start + count
    is_live = live[start]
    while position < end:
        change = live.find(1 - is_live, position, end)
        if change < 0:
            change = end
        runs[1 - is_live].append((position - start, change - position))
        position, is_live = change, 1 - is_live
    return runs


def _with_progress(error: HelperdError, written: int, n_pages: int) -> HelperdError:
    """Return the error with a word on what the target has already received."""
    message = f"{error}; {written} of the request's {n_pages} pages had been written"
    told = type(error)(message, errno=error.errno)
    told.bytes_done = blocks.pages_to_bytes(written)
    return told
