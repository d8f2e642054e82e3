"""Decompressing pages: every present page to its place in an uncompressed pages file."""

from __future__ import annotations

import os
from array import array

from helperd import blocks
from helperd.codec.chunk import Chunk
from helperd.errors import CorruptBlock
from helperd.images.pagemap import Pagemap
from helperd.images.pagesfile import PagesFile, zero_lz4_blocks
from helperd.images.sweep import plan_pagemap
from helperd.kernel.syscalls import pwritev_all
from helperd.kernel.zeros import zero_range
from helperd.offline.encode_entries import Advance
from helperd.offline.files import copy_data, write_all
from helperd.offline.parallel import ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.decode import Decoded


def expand_entries(
    pagemap: Pagemap,
    source: PagesFile,
    target: int,
    *,
    threads: int,
    advance: Advance,
) -> None:
    """Write the pages of all present entries to a new pages file, one after the other.

    Pages in holes become holes, and so do blocks that were punched out or that stand for a hole.

    Args:
        pagemap: of the pages.
        source: where their payload is.
        target: descriptor of the new, empty pages file.
        threads: that decode.
        advance: is told of the progress.

    Raises:
        ShortImage: the source ends too early.
        CorruptBlock: a block does not decode, though it was not punched out.
        OSError: from the system calls.
    """
    expander = _Expander(source, target)
    chunks = plan_pagemap(pagemap)
    n_pages = 0
    for chunk in ordered(expander.expand, chunks, threads):
        n_pages += chunk.n_pages
        advance(blocks.pages_to_bytes(chunk.n_pages))
    os.ftruncate(target, blocks.pages_to_bytes(n_pages))


class _Expander:
    """Writes chunks to their places, in any thread and any order."""

    def __init__(self, source: PagesFile, target: int) -> None:
        self._source = source
        self._target = target

    def expand(self, chunk: Chunk) -> Chunk:
        if self._source.in_hole(chunk.offset, chunk.payload):
            self._expand_blocks(chunk)
            return chunk
        try:
            decoded = self._source.decode(chunk)
        except CorruptBlock:
            self._expand_blocks(chunk)  # which names the block
            return chunk
        holes = bytearray(chunk.n_pages)
        for page, n_pages in zero_lz4_blocks(chunk, decoded.live):
            holes[page : page + n_pages] = b"\1" * n_pages
        self._write(chunk, decoded, holes)
        return chunk

    def _write(self, chunk: Chunk, decoded: Decoded, holes: bytearray) -> None:
        """Write the runs of pages between holes, each at once."""
        if decoded.n_live == chunk.n_pages:
            self._put(decoded.local, chunk.first_page, chunk.n_pages)
            return
        zero, _ = zero_range(blocks.PAGE_SIZE)
        lives = iter(decoded.local[0::2])
        addresses = array("Q", [next(lives) if is_live else zero for is_live in decoded.live])
        page = 0
        while page < chunk.n_pages:
            end = holes.find(1, page)
            end = chunk.n_pages if end < 0 else end
            iovecs = array("Q", (blocks.PAGE_SIZE,)) * (2 * (end - page))
            iovecs[0::2] = addresses[page:end]
            self._put(iovecs, chunk.first_page + page, end - page)
            page = holes.find(0, end)
            if page < 0:
                return

    def _put(self, iovecs: array[int], page: int, n_pages: int) -> None:
        n_bytes = blocks.pages_to_bytes(n_pages)
        pwritev_all(self._target, iovecs, n_bytes, blocks.pages_to_bytes(page))

    def _expand_blocks(self, chunk: Chunk) -> None:
        """Write a chunk block by block, some of which may lie in holes."""
        for block, content in self._source.decode_blocks(chunk):
            in_hole = self._source.in_hole(block.offset, block.size)
            at = blocks.pages_to_bytes(chunk.first_page + block.page)
            if isinstance(content, CorruptBlock):
                if not in_hole:
                    raise content
            elif block.is_raw and in_hole:
                end = block.offset + block.size
                copy_data(self._source, block.offset, end, self._target, at)
            elif not block.is_lz4 or content.strip(b"\0"):
                write_all(self._target, content, at)
