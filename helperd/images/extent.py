"""Extents: pages with the place and the form of their payload, and how to read them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from helperd import blocks
from helperd.codec.block import decode_block
from helperd.errors import CorruptBlock, ShortImage
from helperd.images.records import open_image, os_failure
from helperd.kernel.holes import first_hole, may_have_holes

#: Pages of the largest extent: one block of the largest region, 4 MiB with 4 KiB pages.
MAX_EXTENT_PAGES = blocks.MAX_REGION_PAGES


@dataclass(frozen=True, slots=True)
class Extent:
    """Pages at ascending addresses whose payload lies back to back in one pages file.

    Either every block is used whole, or the extent is ``partial``: one block of a region, of which
    only ``n_pages`` pages from page ``skip_pages`` on are wanted.

    Attributes:
        vaddr: address of the first wanted page.
        n_pages: wanted pages, 1..MAX_EXTENT_PAGES.
        pages_path: the pages file.
        offset: file offset of the first payload byte of the first block.
        region_pages: 0 = per page (also when not compressed), else the region mode's pages.
        sizes: stored size of each block; PAGE_SIZE for each page that is not compressed.
        block_pages: pages of each block, None in per-page mode.
        skip_pages: pages of the block before the first wanted one; 0 unless partial.
    """

    vaddr: int
    n_pages: int
    pages_path: str
    offset: int
    region_pages: int
    sizes: array[int]
    block_pages: array[int] | None
    skip_pages: int = 0

    @property
    def partial(self) -> bool:
        """Whether only a part of the (one) block is wanted."""
        return self.block_pages is not None and sum(self.block_pages) != self.n_pages

    @property
    def payload_bytes(self) -> int:
        """Bytes of all blocks in the pages file."""
        return sum(self.sizes)


def read_exactly(fd: int, n_bytes: int, offset: int, path: str) -> bytes:
    """Read ``n_bytes`` at ``offset`` of the pages file ``path``, open as ``fd``.

    Raises:
        ShortImage: the file ends before.
        ImageError: it cannot be read.
    """
    parts = []
    left = n_bytes
    while left:
        try:
            part = os.pread(fd, left, offset + n_bytes - left)
        except OSError as error:
            raise os_failure(error, f"cannot read {path} at offset {offset}") from error
        if not part:
            raise ShortImage(
                f"{path}: ends at offset {offset + n_bytes - left},"
                f" {left} bytes before the end of the payload at {offset}"
            )
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_extent(extent: Extent, fd: int) -> bytes:
    """Read and decode the wanted pages of an extent, at most MAX_EXTENT_PAGES pages.

    Args:
        extent: what to read.
        fd: ``extent.pages_path``, open for reading.

    Raises:
        ShortImage: the pages file ends before.
        CorruptBlock: a block does not decode to its pages; names file, offset and address.
    """
    payload = memoryview(read_exactly(fd, extent.payload_bytes, extent.offset, extent.pages_path))
    decoded = []
    at = page = 0
    for index, size in enumerate(extent.sizes):
        n_pages = 1 if extent.block_pages is None else extent.block_pages[index]
        try:
            decoded.append(decode_block(payload[at : at + size], blocks.pages_to_bytes(n_pages)))
        except CorruptBlock as error:
            address = extent.vaddr + blocks.pages_to_bytes(page - extent.skip_pages)
            raise CorruptBlock(
                f"{extent.pages_path}: block of page {address:#x}"
                f" at offset {extent.offset + at}: {error}"
            ) from error
        at += size
        page += n_pages
    content = b"".join(decoded)
    if not extent.partial:
        return content
    start = blocks.pages_to_bytes(extent.skip_pages)
    return content[start : start + blocks.pages_to_bytes(extent.n_pages)]


def read_pages(
    extents: Iterable[Extent], *, holes_are_zeros: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Yield (address, content) of each extent; the pages files are opened as they are needed.

    Args:
        extents: to be read.
        holes_are_zeros: take payload in holes for zeros, not for lost.

    Raises:
        ImageError: a pages file is missing, short or corrupt.
    """
    streams: dict[str, BinaryIO] = {}
    try:
        for extent in extents:
            stream = streams.get(extent.pages_path)
            if stream is None:
                stream = streams[extent.pages_path] = open_image(extent.pages_path)
            fd = stream.fileno()
            if not holes_are_zeros and may_have_holes(os.fstat(fd)):
                _check_holes(extent, fd)
            yield extent.vaddr, read_extent(extent, fd)
    finally:
        for stream in streams.values():
            stream.close()


def _check_holes(extent: Extent, fd: int) -> None:
    end = extent.offset + extent.payload_bytes
    try:
        hole = first_hole(fd, extent.offset, end)
    except OSError as error:
        raise os_failure(error, f"cannot read {extent.pages_path}") from error
    if hole < end:
        raise CorruptBlock(
            f"{extent.pages_path}: the payload at offset {hole}, of pages from {extent.vaddr:#x}"
            " on, lies in a hole: punched out and lost, or zeros that a copying tool left out"
            " (then see --holes-are-zeros)"
        )
