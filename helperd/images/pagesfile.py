"""A pages file as a whole: its holes, and its blocks in chunks that all cores can work on.

Where :mod:`helperd.images.extent` serves whoever wants certain pages, this serves those who go
through all of a file, in the order in which it lies on the disk.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from helperd import blocks
from helperd.codec.block import decode_block
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.codec.decoders import Decoders
from helperd.errors import CorruptBlock, ShortImage
from helperd.images.extent import read_exactly
from helperd.images.pagemap import PagemapEntry
from helperd.images.ranges import Ranges, find_holes
from helperd.images.records import open_image, os_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.decode import Decoded
    from helperd.images.feed import Feed

_RAW_PAGES = array("I", (blocks.PAGE_SIZE,)) * CHUNK_PAGES


class PagesFile:
    """A pages file, open for reading; a context manager.

    Args:
        path: of the file.
        fd: open for reading, to be taken over; None to open the file.
        feed: where it comes from if it is a part of something else; it may have to be read from
            front to back then.

    Attributes:
        path: of the file.
        fd: its descriptor.
        size: its bytes.
        holes: its ranges without data, which read as zeros.

    Raises:
        ImageError: it cannot be opened.
    """

    def __init__(self, path: str, fd: int | None = None, *, feed: Feed | None = None) -> None:
        self.path = path
        self._feed = feed
        self._threads = threading.local()
        self._base = 0
        if feed is not None:
            self._close, self._base = feed.close, feed.base
            self.fd, self.size, self.holes = feed.fd, feed.size, feed.holes
            return
        stream = open_image(path) if fd is None else os.fdopen(fd, "rb")
        self._close = stream.close
        self.fd = stream.fileno()
        try:
            self.size = os.fstat(self.fd).st_size
            self.holes = find_holes(self.size, _data(self.fd, self.size))
        except OSError as error:
            stream.close()
            raise os_failure(error, f"cannot read {path}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def decode(self, chunk: Chunk) -> Decoded:
        """Read and decode a chunk with the calling thread's own buffers.

        Raises:
            ShortImage: the file ends inside the payload.
            CorruptBlock: a block does not decode; :meth:`decode_blocks` tells which.
        """
        decoders: Decoders | None = getattr(self._threads, "decoders", None)
        if decoders is None:
            decoders = self._threads.decoders = Decoders()
        self.require(chunk.offset, chunk.offset + chunk.payload)
        chunk.offset += self._base
        try:
            return decoders.decode(self.fd, chunk)
        except OSError as error:
            raise os_failure(error, f"cannot read {self.path}") from error
        finally:
            chunk.offset -= self._base

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from ``offset`` of the file on.

        Raises:
            ShortImage: the file ends before.
            OSError: from the system calls.
        """
        self.require(offset, offset + len(view))
        done = 0
        end = min(len(view), self.size - offset)
        while done < len(view):
            got = os.preadv(self.fd, [view[done:end]], self._base + offset + done)
            if not got:
                raise ShortImage(
                    f"{self.path}: ends at offset {offset + done}, inside the payload of"
                    f" {len(view)} bytes at {offset}"
                )
            done += got

    def require(self, start: int, end: int) -> None:
        """See to it that these bytes can be read, if they come in pieces only.

        Raises:
            ShortImage: they end before.
        """
        if self._feed is not None:
            self._feed.require(start, end)

    def in_hole(self, offset: int, n_bytes: int) -> bool:
        """Return whether any of these bytes lies in a hole."""
        return self.holes.overlaps(offset, offset + n_bytes)

    def hole_pages(self, entry: PagemapEntry) -> Ranges:
        """Return the pages (numbers in the entry) of an uncompressed entry that lie in holes."""
        pages = Ranges()
        for start, end in self.holes.within(entry.offset, entry.offset + entry.payload_bytes):
            first = -(-(start - entry.offset) // blocks.PAGE_SIZE)
            pages.append(first, (end - entry.offset) // blocks.PAGE_SIZE)
        return pages

    def decode_blocks(self, chunk: Chunk) -> Iterator[tuple[Block, bytes | CorruptBlock]]:
        """Yield each block of a chunk with its bytes, or with what is wrong with it.

        Raises:
            ShortImage: the file ends inside the payload.
        """
        self.require(chunk.offset, chunk.offset + chunk.payload)
        for block in blocks_of(chunk):
            stored = read_exactly(self.fd, block.size, self._base + block.offset, self.path)
            try:
                yield block, decode_block(stored, blocks.pages_to_bytes(block.n_pages))
            except CorruptBlock as error:
                yield (
                    block,
                    CorruptBlock(
                        f"{self.path}: block of page {block.vaddr:#x} at offset {block.offset}:"
                        f" {error}"
                    ),
                )


class Block(NamedTuple):
    """One block of a chunk: its first page's index and address, its pages, and its payload."""

    page: int
    vaddr: int
    n_pages: int
    offset: int
    size: int

    @property
    def is_raw(self) -> bool:
        """Whether it is stored as it is."""
        return self.size == blocks.pages_to_bytes(self.n_pages)

    @property
    def is_lz4(self) -> bool:
        """Whether it is neither zero nor raw."""
        return self.size != blocks.ZERO_SIZE and not self.is_raw


def blocks_of(chunk: Chunk) -> Iterator[Block]:
    """Yield the blocks of a chunk of :func:`plan_payload`, in order."""
    addresses = (
        address + blocks.pages_to_bytes(page)
        for address, n_pages in chunk.ranges
        for page in range(n_pages)
    )
    vaddrs = list(addresses)
    page, offset = 0, chunk.offset
    for index, size in enumerate(chunk.sizes):
        n_pages = chunk.block_pages[index] if chunk.block_pages else 1
        yield Block(page, vaddrs[page], n_pages, offset, size)
        page += n_pages
        offset += size


def zero_lz4_blocks(chunk: Chunk, live: bytearray) -> list[tuple[int, int]]:
    """Return the LZ4 blocks that decode to nothing but zeros, as (first page, pages) in the chunk.

    No writer makes them of zero pages that were dumped: they stand for holes.

    Args:
        chunk: of :func:`plan_payload`.
        live: one byte for each of its pages, 0 = all zero.
    """
    if 0 not in live:
        return []
    if not chunk.block_pages:
        return [
            (page, 1)
            for page, (is_live, size) in enumerate(zip(live, chunk.sizes, strict=True))
            if not is_live and size and size != blocks.PAGE_SIZE
        ]
    return [
        (block.page, block.n_pages)
        for block in blocks_of(chunk)
        if block.is_lz4 and 1 not in live[block.page : block.page + block.n_pages]
    ]


def plan_payload(entries: Iterable[PagemapEntry]) -> Iterator[Chunk]:
    """Yield the payload of the present entries in chunks, in file order.

    Uncompressed pages are raw blocks of one page. ``first_page`` of a chunk counts the pages with
    a payload before it, and its ranges are the addresses of its pages. Neighbouring entries share
    a chunk where they can, since many have a few pages only.
    """
    plan = _Plan()
    for entry in entries:
        if not entry.present:
            continue
        page, offset = 0, entry.offset
        while page < entry.nr_pages:
            room = plan.room(offset, entry.block_pages)
            if not room:
                yield plan.take()
                continue
            if entry.block_pages > 1:
                first = page // entry.block_pages
                sizes = _regions(entry, first, max(room // entry.block_pages, 1))
                n_pages = min(len(sizes) * entry.block_pages, entry.nr_pages - page)
                plan.add(entry, page, n_pages, sizes, offset)
            else:
                n_pages = min(room, entry.nr_pages - page)
                sizes = _RAW_PAGES[:n_pages]
                if entry.sizes is not None:
                    sizes = entry.sizes[page : page + n_pages]
                plan.add(entry, page, n_pages, sizes, offset)
            page += n_pages
            offset += sum(sizes)
    if plan.n_pages:
        yield plan.take()


def _regions(entry: PagemapEntry, first: int, count: int) -> array[int]:
    assert entry.sizes is not None
    return entry.sizes[first : first + count]


class _Plan:
    """The chunk under construction."""

    def __init__(self) -> None:
        self._done_pages = 0
        self._start(0)

    def _start(self, offset: int) -> None:
        self.n_pages = 0
        self._regions = False
        self._offset = self._end = offset
        self._sizes = array("I")
        self._block_pages = array("H")
        self._ranges: list[tuple[int, int]] = []

    def room(self, offset: int, block_pages: int) -> int:
        """Return how many pages in blocks of ``block_pages`` at ``offset`` still fit in."""
        if not self.n_pages:
            self._start(offset)
            self._regions = block_pages > 1
            return max(CHUNK_PAGES, block_pages)
        if offset != self._end or self._regions != (block_pages > 1):
            return 0
        room = CHUNK_PAGES - self.n_pages
        return room if room >= block_pages else 0

    def add(
        self, entry: PagemapEntry, page: int, n_pages: int, sizes: array[int], offset: int
    ) -> None:
        self._sizes.extend(sizes)
        if self._regions:
            split = blocks.split_into_regions(n_pages, entry.block_pages)
            self._block_pages.extend(split)
        self._ranges.append((entry.vaddr + blocks.pages_to_bytes(page), n_pages))
        self.n_pages += n_pages
        self._end = offset + sum(sizes)

    def take(self) -> Chunk:
        chunk = Chunk(
            self._done_pages,
            0,
            self.n_pages,
            self._sizes,
            self._block_pages,
            self._offset,
            self._ranges,
        )
        self._done_pages += self.n_pages
        self._start(self._end)
        return chunk


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are no holes; everything where that cannot be told."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            if error.errno != errno.EINVAL:
                raise
            start, at = at, size
        yield start, at
