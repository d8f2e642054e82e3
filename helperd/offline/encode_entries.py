"""Compressing pages: entries to pieces, pieces to blocks, with all cores.

Reading, encoding and writing are done in steps of about 1 MiB, in buffers that are used again.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from helperd import blocks
from helperd.codec.encode import PIECE_PAGES, Encoded, Encoder
from helperd.images.pagemap import PagemapEntry
from helperd.images.pagesfile import PagesFile
from helperd.offline.files import write_all
from helperd.offline.parallel import ordered

#: Called with the bytes of memory that have been dealt with since the last call.
Advance = Callable[[int], None]

# Pages that are read and encoded at once; a larger region is a piece by itself.
_PIECE_PAGES = PIECE_PAGES
# Larger entries are split (1 GiB of pages), so that no table has to be held for more.
_MAX_ENTRY_PAGES = 1 << 18

_ONES = array("H", (1,)) * _PIECE_PAGES


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
    crew = _Crew(source, acceleration, per_page=not region_pages)
    pieces = _plan_pieces(_spans(parts, source), block_pages)
    results = ordered(crew.encode, pieces, threads)
    sizes = array("I")
    for part in parts:
        if not part.present:
            yield part
            continue
        n_blocks = -(-part.nr_pages // block_pages)
        while len(sizes) < n_blocks:
            encoded, n_bytes = next(results)
            sizes.extend(encoded.sizes)
            write_all(target, encoded.payload, offset)
            offset += len(encoded.payload)
            advance(n_bytes)
        yield replace(part, region_pages=region_pages, sizes=sizes[:n_blocks])
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


class _Result(NamedTuple):
    """What became of a piece."""

    encoded: Encoded
    n_bytes: int


class _Crew:
    """Encodes pieces in any thread."""

    def __init__(self, source: PagesFile, acceleration: int, *, per_page: bool) -> None:
        self._source = source
        self._acceleration = acceleration
        self._per_page = per_page
        self._threads = threading.local()

    def encode(self, piece: _Piece) -> _Result:
        encoder: Encoder | None = getattr(self._threads, "encoder", None)
        if encoder is None:
            encoder = Encoder(self._acceleration, per_page=self._per_page)
            self._threads.encoder = encoder
        n_bytes = blocks.pages_to_bytes(sum(piece.block_pages))
        if piece.hole:
            encoder.pages[:n_bytes] = bytes(n_bytes)
        else:
            self._source.read_into(encoder.pages[:n_bytes], piece.offset)
        # Zeros that were dumped become blocks of no bytes; what a hole reads as must not be taken
        # for them.
        return _Result(encoder.encode(piece.block_pages, keep_zeros=piece.hole), n_bytes)
