"""Pages to blocks, as many as one thread encodes at once; the rule of what is stored.

A block of nothing but zeros stores nothing, one that LZ4 does not bring below 7/8 is stored raw,
everything else is stored as LZ4 (:mod:`helperd.blocks`).
"""

from __future__ import annotations

import re
from array import array
from typing import NamedTuple

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    ZERO_SIZE,
    max_stored_size,
    pages_to_bytes,
    raw_threshold,
)
from helperd.codec import libblosc
from helperd.codec.liblz4 import compress_fast
from helperd.kernel.syscalls import HugeBuffer, is_zero, joined

#: Pages that are best encoded at once, 1 MiB; one region may have more, up to MAX_REGION_PAGES.
PIECE_PAGES = (1 << 20) // PAGE_SIZE

_WORD = 8
_PAGE_WORDS = PAGE_SIZE // _WORD
_MAX_BYTES = pages_to_bytes(MAX_REGION_PAGES)
_ZERO_WORD = bytes(_WORD)
#: What becomes of a page: LZ4, itself, nothing.
_LZ4, _RAW, _ZERO = range(3)
_RUN = re.compile(rb"\x00+|\x01+|\x02+")
_RAW_SIZES = array("I", (PAGE_SIZE,)) * PIECE_PAGES
_ZERO_SIZES = array("I", (ZERO_SIZE,)) * PIECE_PAGES


class Encoded(NamedTuple):
    """Blocks as they are stored.

    Attributes:
        sizes: ``array('I')``, the stored bytes of each block.
        payload: the stored bytes of all blocks, back to back.
    """

    sizes: array[int]
    payload: bytes | bytearray


class Placed(NamedTuple):
    """Blocks as they are stored, where they were made.

    Attributes:
        sizes: ``array('I')``, the stored bytes of each block.
        ranges: ``array('Q')``, where the stored bytes of all blocks lie, one after the other:
            (address, bytes, ...).
        n_bytes: of all of them.
    """

    sizes: array[int]
    ranges: array[int]
    n_bytes: int


class Encoder:
    """One thread's buffers for pages and for the blocks made of them.

    Put pages into :attr:`pages`, from its start on, then call :meth:`encode`.

    Args:
        acceleration: LZ4's, 1 compresses best.
        per_page: whether most blocks will be single pages: then libblosc is used if it is there,
            which is told of many pages in one call.

    Attributes:
        pages: writable view of MAX_REGION_PAGES pages.
    """

    def __init__(self, acceleration: int, *, per_page: bool) -> None:
        self._acceleration = acceleration
        self._buffer = HugeBuffer(_MAX_BYTES)
        self.pages = self._buffer.view
        self._words = self.pages.cast("Q")
        # The bound of one large block and that of many small ones differ by a few bytes each.
        self._blocks = HugeBuffer(max_stored_size(_MAX_BYTES) + 16 * MAX_REGION_PAGES)
        self._compressor: libblosc.PageCompressor | None = None
        if per_page and libblosc.can_compress(acceleration):
            self._compressor = libblosc.PageCompressor(acceleration, PIECE_PAGES)

    def encode(self, block_pages: array[int], *, keep_zeros: bool = False) -> Encoded:
        """Encode the first pages of the buffer, see :meth:`place`; copy what is stored."""
        placed = self.place(block_pages, keep_zeros=keep_zeros)
        return Encoded(placed.sizes, joined(placed.ranges, placed.n_bytes))

    def place(self, block_pages: array[int], *, keep_zeros: bool = False) -> Placed:
        """Encode the first pages of the buffer, to ranges that are valid until it is used again.

        Args:
            block_pages: pages of each block, MAX_REGION_PAGES in all at the most.
            keep_zeros: store zero blocks as LZ4. Where a block of no bytes would say that zeros
                were dumped, this one says that nothing is known of its pages: they were holes.
        """
        n_pages = sum(block_pages)
        single = n_pages == len(block_pages) <= PIECE_PAGES
        if single and self._compressor is not None and not keep_zeros:
            placed = self._place_pages(self._compressor, n_pages)
            if placed is not None:
                return placed
        return self._place_blocks(block_pages, n_pages, keep_zeros=keep_zeros)

    def _place_blocks(self, block_pages: array[int], n_pages: int, *, keep_zeros: bool) -> Placed:
        sizes = array("I")
        source, target = self._buffer.address, self._blocks.address
        # The first word of most blocks already tells that they are not all zero.
        firsts = self._first_words(n_pages)
        page = block_bytes = bound = threshold = 0
        zeros = b""
        for count in block_pages:
            if count << PAGE_SHIFT != block_bytes:
                block_bytes = count << PAGE_SHIFT
                bound = max_stored_size(block_bytes)
                threshold = raw_threshold(block_bytes)
                zeros = bytes(block_bytes)
            if not firsts[page] and not keep_zeros and self._is(zeros, page):
                size = ZERO_SIZE
            else:
                size = compress_fast(source, target, block_bytes, bound, self._acceleration)
                if not 0 < size < threshold:
                    self._copy(source, target, block_bytes)
                    size = block_bytes
            sizes.append(size)
            source += block_bytes
            target += size
            page += count
        n_bytes = target - self._blocks.address
        return Placed(sizes, array("Q", (self._blocks.address, n_bytes)), n_bytes)

    def _place_pages(self, compressor: libblosc.PageCompressor, n_pages: int) -> Placed | None:
        """Encode pages each by itself, all in one call; None if that does not work."""
        address = self._buffer.address
        firsts = self._words[: n_pages * _PAGE_WORDS : _PAGE_WORDS].tobytes()
        suspects = _ZERO_WORD in firsts
        if suspects and not any(firsts) and is_zero(address, n_pages << PAGE_SHIFT):
            return Placed(_ZERO_SIZES[:n_pages], array("Q"), 0)
        found = compressor.compress(address, n_pages)
        if found is None:
            return None
        sizes, ranges = found
        kinds = bytearray(map(raw_threshold(PAGE_SIZE).__le__, sizes))
        for page in self._zero_pages(firsts) if suspects else ():
            kinds[page] = _ZERO
        if any(kinds):
            ranges = self._with_others(kinds, sizes, ranges)
        return Placed(sizes, ranges, sum(sizes))

    def _zero_pages(self, firsts: bytes) -> list[int]:
        """Return the numbers of zero pages, by the first words of all pages."""
        return [
            page
            for page, first in enumerate(memoryview(firsts).cast("Q"))
            if not first and is_zero(self._buffer.address + (page << PAGE_SHIFT), PAGE_SIZE)
        ]

    def _with_others(self, kinds: bytearray, sizes: array[int], ranges: array[int]) -> array[int]:
        """Return the ranges of LZ4 blocks, and of pages as they are; correct ``sizes``."""
        found = array("Q")
        for run in _RUN.finditer(kinds):
            first, end = run.span()
            if kinds[first] == _LZ4:
                found += ranges[2 * first : 2 * end]
            elif kinds[first] == _RAW:
                n_pages = end - first
                found.append(self._buffer.address + (first << PAGE_SHIFT))
                found.append(n_pages << PAGE_SHIFT)
                sizes[first:end] = _RAW_SIZES[:n_pages]
            else:
                sizes[first:end] = _ZERO_SIZES[: end - first]
        return found

    def _first_words(self, n_pages: int) -> list[int]:
        return self._words[: n_pages * _PAGE_WORDS : _PAGE_WORDS].tolist()

    def _is(self, content: bytes, page: int) -> bool:
        start = page << PAGE_SHIFT
        return self.pages[start : start + len(content)].tobytes() == content

    def _copy(self, source: int, target: int, n_bytes: int) -> None:
        at, to = source - self._buffer.address, target - self._blocks.address
        self._blocks.view[to : to + n_bytes] = self.pages[at : at + n_bytes]
