"""Pages to blocks, as many as one thread encodes at once; the rule of what is stored.

A block of nothing but zeros stores nothing, one that LZ4 does not bring below 7/8 is stored raw,
everything else is stored as LZ4 (:mod:`helperd.blocks`).
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    ZERO_PAGE,
    ZERO_SIZE,
    max_stored_size,
    pages_to_bytes,
    raw_threshold,
)
from helperd.codec import libblosc
from helperd.codec.liblz4 import compress_fast
from helperd.kernel.syscalls import HugeBuffer

#: Pages that are best encoded at once, 1 MiB; one region may have more, up to MAX_REGION_PAGES.
PIECE_PAGES = (1 << 20) // PAGE_SIZE

_WORD = 8
_PAGE_WORDS = PAGE_SIZE // _WORD
_MAX_BYTES = pages_to_bytes(MAX_REGION_PAGES)


class Encoded(NamedTuple):
    """Blocks as they are stored.

    Attributes:
        sizes: ``array('I')``, the stored bytes of each block.
        payload: the stored bytes of all blocks, back to back.
    """

    sizes: array[int]
    payload: bytes


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
        """Encode the first pages of the buffer.

        Args:
            block_pages: pages of each block, MAX_REGION_PAGES in all at the most.
            keep_zeros: store zero blocks as LZ4. Where a block of no bytes would say that zeros
                were dumped, this one says that nothing is known of its pages: they were holes.
        """
        n_pages = sum(block_pages)
        single = n_pages == len(block_pages) <= PIECE_PAGES
        if single and self._compressor is not None and not keep_zeros:
            encoded = self._encode_pages(self._compressor, n_pages)
            if encoded is not None:
                return encoded
        return self._encode_blocks(block_pages, n_pages, keep_zeros=keep_zeros)

    def _encode_blocks(self, block_pages: array[int], n_pages: int, *, keep_zeros: bool) -> Encoded:
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
        return Encoded(sizes, bytes(self._blocks.view[: target - self._blocks.address]))

    def _encode_pages(self, compressor: libblosc.PageCompressor, n_pages: int) -> Encoded | None:
        """Encode pages each by itself, all in one call; None if that does not work."""
        stored = compressor.compress(self._buffer.address, n_pages)
        if stored is None:
            return None
        threshold = raw_threshold(PAGE_SIZE)
        firsts = self._first_words(n_pages)
        for page in [page for page, block in enumerate(stored) if len(block) >= threshold]:
            stored[page] = self.pages[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT]
        for page in [page for page, first in enumerate(firsts) if not first]:
            if self._is(ZERO_PAGE, page):
                stored[page] = self.pages[:0]
        return Encoded(array("I", map(len, stored)), b"".join(stored))

    def _first_words(self, n_pages: int) -> list[int]:
        return self._words[: n_pages * _PAGE_WORDS : _PAGE_WORDS].tolist()

    def _is(self, content: bytes, page: int) -> bool:
        start = page << PAGE_SHIFT
        return self.pages[start : start + len(content)].tobytes() == content

    def _copy(self, source: int, target: int, n_bytes: int) -> None:
        at, to = source - self._buffer.address, target - self._blocks.address
        self._blocks.view[to : to + n_bytes] = self.pages[at : at + n_bytes]
