"""Compressing pages: entries to pieces, pieces to blocks, with all cores.

The hot path is :meth:`_Buffers.encode`. Reading, encoding and writing are done in steps of about
1 MiB, in buffers that are used again.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from helperd import blocks, errors, libblosc, liblz4
from helperd.images.copying import write_all
from helperd.images.pagemap import PagemapEntry
from helperd.images.pagesfile import PagesFile
from helperd.images.parallel import ordered
from helperd.kernel.syscalls import HugeBuffer

#: Called with the bytes of memory that have been dealt with since the last call.
Advance = Callable[[int], None]

# Pages that are read and encoded at once, 1 MiB; a larger region is a piece by itself.
_PIECE_PAGES: Final = (1 << 20) // blocks.PAGE_SIZE
# Larger entries are split (1 GiB of pages), so that no table has to be held for more.
_MAX_ENTRY_PAGES: Final = 1 << 18

_WORD: Final = 8
_MAX_BYTES: Final = blocks.pages_to_bytes(blocks.MAX_REGION_PAGES)
_ONES: Final = array("H", (1,)) * _PIECE_PAGES


def encode_entries(
    entries: Iterable[PagemapEntry],
    source: PagesFile,
    target: int,
    offset: int,
    *,
    region_pages: int,
    acceleration: int,
    threads: int,
    advance: Advance,
) -> Iterator[PagemapEntry]:
    """Compress entries of uncompressed pages; yield each with its table, its payload written.

    Entries without a payload are yielded as they are. Large ones are split, and in region mode
    also those with pages in holes, so that no block is partly in one.

    Args:
        entries: ascending.
        source: where their pages are.
        target: descriptor of the new pages file.
        offset: in it, of the first payload.
        region_pages: pages compressed at once, 0 = per page.
        acceleration: LZ4's.
        threads: that encode.
        advance: is told of the progress.

    Raises:
        ShortImage: the source ends too early.
        OSError: from the system calls.
    """
    block_pages = region_pages or 1
    parts = [part for entry in entries for part in _split(entry, source, region_pages)]
    encoder = _Encoder(source, acceleration, per_page=not region_pages)
    pieces = _plan_pieces(_spans(parts, source), block_pages)
    results = ordered(encoder.encode, pieces, threads)
    sizes = array("I")
    for part in parts:
        if not part.present:
            yield part
            continue
        n_blocks = -(-part.nr_pages // block_pages)
        while len(sizes) < n_blocks:
            encoded = next(results)
            sizes.extend(encoded.sizes)
            write_all(target, encoded.payload, offset)
            offset += len(encoded.payload)
            advance(encoded.n_bytes)
        yield dataclasses.replace(part, region_pages=region_pages, sizes=sizes[:n_blocks])
        del sizes[:n_blocks]


def _split(entry: PagemapEntry, source: PagesFile, region_pages: int) -> Iterator[PagemapEntry]:
    if not entry.present:
        yield entry
        return
    cuts = {0, entry.nr_pages, *range(0, entry.nr_pages, _MAX_ENTRY_PAGES)}
    if region_pages:
        cuts.update(page for hole in source.hole_pages(entry) for page in hole)
    for first, end in pairwise(sorted(cuts)):
        yield entry.part(first, end)


class _Span(NamedTuple):
    """Pages in the source that have data, or that have none."""

    offset: int
    n_pages: int
    hole: bool


def _spans(parts: Iterable[PagemapEntry], source: PagesFile) -> Iterator[_Span]:
    for part in parts:
        if not part.present:
            continue
        page = 0
        for first, end in source.hole_pages(part):
            if page < first:
                yield _Span(part.page_offset(page), first - page, hole=False)
            yield _Span(part.page_offset(first), end - first, hole=True)
            page = end
        if page < part.nr_pages:
            yield _Span(part.page_offset(page), part.nr_pages - page, hole=False)


class _Piece(NamedTuple):
    """Pages that lie back to back in the source, and the pages of each block of them."""

    offset: int
    block_pages: array[int]
    hole: bool


def _plan_pieces(spans: Iterable[_Span], block_pages: int) -> Iterator[_Piece]:
    """Yield pieces of about _PIECE_PAGES pages; neighbouring spans share them."""
    piece = _Piece(0, array("H"), hole=False)
    n_pages = 0
    for span in spans:
        end = piece.offset + blocks.pages_to_bytes(n_pages)
        if n_pages and (span.offset != end or span.hole != piece.hole):
            yield piece
            n_pages = 0
        page = 0
        while page < span.n_pages:
            if not n_pages:
                offset = span.offset + blocks.pages_to_bytes(page)
                piece = _Piece(offset, array("H"), span.hole)
            left = span.n_pages - page
            # Whole blocks, but for the last of the span, as many as fit in; at least one.
            room = max((_PIECE_PAGES - n_pages) // block_pages, 0 if n_pages else 1) * block_pages
            taken = min(left, room)
            if not taken:
                yield piece
                n_pages = 0
                continue
            if block_pages == 1:
                piece.block_pages.extend(_ONES[:taken])
            else:
                piece.block_pages.extend(blocks.split_into_regions(taken, block_pages))
            n_pages += taken
            page += taken
    if n_pages:
        yield piece


class _Encoded(NamedTuple):
    """Blocks as they are stored: the size of each, and the bytes of all."""

    sizes: array[int]
    payload: bytes
    n_bytes: int


class _Encoder:
    """Encodes pieces in any thread."""

    def __init__(self, source: PagesFile, acceleration: int, *, per_page: bool) -> None:
        self._source = source
        self._acceleration = acceleration
        self._per_page = per_page and libblosc.can_compress(acceleration)
        self._threads = threading.local()

    def encode(self, piece: _Piece) -> _Encoded:
        buffers: _Buffers | None = getattr(self._threads, "buffers", None)
        if buffers is None:
            buffers = self._threads.buffers = _Buffers()
        n_bytes = blocks.pages_to_bytes(sum(piece.block_pages))
        if not piece.hole:
            buffers.fill(self._source, piece.offset, n_bytes)
            if self._per_page:
                encoded = buffers.encode_pages(len(piece.block_pages), self._acceleration)
                if encoded is not None:
                    return _Encoded(*encoded, n_bytes)
        else:
            buffers.clear(n_bytes)
        # Zeros that were dumped become blocks of no bytes; what a hole reads as must not be taken
        # for them.
        sizes, payload = buffers.encode(
            piece.block_pages, self._acceleration, encode_zeros=piece.hole
        )
        return _Encoded(sizes, payload, n_bytes)


class _Buffers:
    """One thread's pages, and the blocks made of them."""

    def __init__(self) -> None:
        self._pages = HugeBuffer(_MAX_BYTES)
        self._words = self._pages.view.cast("Q")
        bound = blocks.max_stored_size(_MAX_BYTES) + 16 * blocks.MAX_REGION_PAGES
        self._blocks = HugeBuffer(bound)
        self._compressor: libblosc.PageCompressor | None = None

    def fill(self, source: PagesFile, offset: int, n_bytes: int) -> None:
        done = 0
        while done < n_bytes:
            got = os.preadv(source.fd, [self._pages.view[done:n_bytes]], offset + done)
            if not got:
                raise errors.ShortImage(
                    f"{source.path}: ends at offset {offset + done}, inside the payload of"
                    f" {n_bytes} bytes at {offset}"
                )
            done += got

    def clear(self, n_bytes: int) -> None:
        self._pages.view[:n_bytes] = bytes(n_bytes)

    def encode(
        self, block_pages: array[int], acceleration: int, *, encode_zeros: bool
    ) -> tuple[array[int], bytes]:
        sizes = array("I")
        compress = liblz4.compress_fast
        source, target = self._pages.address, self._blocks.address
        # The first word of most blocks already tells that they are not all zero.
        n_words = sum(block_pages) * blocks.PAGE_SIZE // _WORD
        firsts = self._words[: n_words : blocks.PAGE_SIZE // _WORD].tolist()
        page = block_bytes = bound = threshold = 0
        zeros = b""
        for n_pages in block_pages:
            if n_pages << blocks.PAGE_SHIFT != block_bytes:
                block_bytes = n_pages << blocks.PAGE_SHIFT
                bound = blocks.max_stored_size(block_bytes)
                threshold = blocks.raw_threshold(block_bytes)
                zeros = bytes(block_bytes)
            if not firsts[page] and not encode_zeros and self._is(zeros, page):
                size = blocks.ZERO_SIZE
            else:
                size = compress(source, target, block_bytes, bound, acceleration)
                if not 0 < size < threshold:
                    self._copy(source, target, block_bytes)
                    size = block_bytes
            sizes.append(size)
            source += block_bytes
            target += size
            page += n_pages
        return sizes, bytes(self._blocks.view[: target - self._blocks.address])

    def encode_pages(self, n_pages: int, acceleration: int) -> tuple[array[int], bytes] | None:
        """Encode pages each by itself, all in one call; None if that does not work."""
        if self._compressor is None:
            self._compressor = libblosc.PageCompressor(acceleration, _PIECE_PAGES)
        stored = self._compressor.compress(self._pages.address, n_pages)
        if stored is None:
            return None
        view, step = self._pages.view, blocks.PAGE_SIZE
        threshold = blocks.raw_threshold(step)
        firsts = self._words[: n_pages * step // _WORD : step // _WORD].tolist()
        for page, block in enumerate(stored):
            if not firsts[page] and self._is(blocks.ZERO_PAGE, page):
                stored[page] = view[:0]
            elif len(block) >= threshold:
                stored[page] = view[page * step : (page + 1) * step]
        return array("I", map(len, stored)), b"".join(stored)

    def _is(self, content: bytes, page: int) -> bool:
        start = page << blocks.PAGE_SHIFT
        return self._pages.view[start : start + len(content)].tobytes() == content

    def _copy(self, source: int, target: int, n_bytes: int) -> None:
        at, to = source - self._pages.address, target - self._blocks.address
        self._blocks.view[to : to + n_bytes] = self._pages.view[at : at + n_bytes]
