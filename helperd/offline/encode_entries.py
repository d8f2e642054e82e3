"""Compressing pages: entries to pieces, pieces to blocks, with all cores.

Reading, encoding and writing are done in steps of about 1 MiB, in buffers that are used again.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from helperd import blocks
from helperd.codec.encode import PIECE_PAGES, Encoded, Encoder
from helperd.images.mappings import Mappings
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, PagemapEntry
from helperd.images.pagesfile import PagesFile
from helperd.offline.files import copy_data, write_all
from helperd.offline.parallel import ordered

#: Called with the bytes of memory that have been dealt with since the last call.
Advance = Callable[[int], None]

# Pages that are read and encoded at once; a larger region is a piece by itself.
_PIECE_PAGES = PIECE_PAGES
#: Larger entries are split (1 GiB of pages), so that no table has to be held for more.
MAX_ENTRY_PAGES = 1 << 18

# What one call of pwritev takes.
_MAX_PARTS = 1000

_ONES = array("H", (1,)) * _PIECE_PAGES


@dataclass(frozen=True, slots=True)
class Storage:
    """How pages are stored.

    Attributes:
        region_pages: pages compressed at once, 0 = per page.
        acceleration: LZ4's.
        aligned: as merged CRIU does: what begins with a raw block begins at a page boundary, and
            an entry of raw blocks alone has no table.
        mappings: that the pages belong to, None = not known.
    """

    region_pages: int = 0
    acceleration: int = 1
    aligned: bool = False
    mappings: Mappings | None = None


def encode_entries(
    entries: Iterable[PagemapEntry],
    source: PagesFile,
    target: int,
    offset: int,
    storage: Storage,
    *,
    threads: int,
    advance: Advance,
) -> Iterator[PagemapEntry]:
    """Compress entries of uncompressed pages; yield each with its table, its payload written.

    Entries without a payload are yielded as they are. Large ones are split, and in region mode
    also those with pages in holes, so that no block is partly in one, and those that go on beyond
    the end of a mapping, so that no block crosses it.

    Args:
        entries: ascending.
        source: where their pages are.
        target: descriptor of the new pages file.
        offset: in it, of the first payload.
        storage: how.
        threads: that encode.
        advance: is told of the progress.

    Raises:
        ShortImage: the source ends too early.
        OSError: from the system calls.
    """
    region_pages = storage.region_pages
    block_pages = region_pages or 1
    parts = [part for entry in entries for part in _split(entry, source, storage)]
    crew = _Crew(source, storage.acceleration, per_page=not region_pages)
    spans: Iterable[_Span] = _spans((part for part, raw in parts if not raw), source)
    if not region_pages:
        # Blocks of single pages do not care where an entry ends.
        spans = _joined(spans)
    results = ordered(crew.encode, _plan_pieces(spans, block_pages), threads)
    output = Output(target, offset)
    encoded, block, at = Encoded(array("I"), b""), 0, 0
    for part, raw in parts:
        if not part.present:
            yield part
            continue
        flags = part.flags
        if raw:
            if storage.aligned:
                output.align()
                flags |= PE_PAYLOAD_ALIGNED
            n_bytes = blocks.pages_to_bytes(part.nr_pages)
            output.copy(source, part.offset, n_bytes)
            advance(n_bytes)
            yield part.with_table(None, 0, flags)
            continue
        n_blocks = -(-part.nr_pages // block_pages)
        sizes = array("I")
        while len(sizes) < n_blocks:
            if block == len(encoded.sizes):
                output.flush()
                (encoded, n_bytes, _), block, at = next(results), 0, 0
                advance(n_bytes)
            taken = encoded.sizes[block : block + n_blocks - len(sizes)]
            first_bytes = blocks.pages_to_bytes(min(block_pages, part.nr_pages))
            if storage.aligned and not sizes and taken[0] == first_bytes:
                output.align()
                flags |= PE_PAYLOAD_ALIGNED
            end = at + sum(taken)
            output.put(encoded.payload, at, end)
            sizes += taken
            block, at = block + len(taken), end
        # No block of LZ4 is as large as what it was made of.
        if storage.aligned and sum(sizes) == blocks.pages_to_bytes(part.nr_pages):
            yield part.with_table(None, 0, flags)
        else:
            yield part.with_table(sizes, region_pages, flags)
    output.flush()


def encode_pages(
    source: PagesFile, counts: Sequence[int], storage: Storage, *, threads: int
) -> Iterator[tuple[array[int], Encoded]]:
    """Yield all pages of a file, encoded in large pieces, each with the pages of its blocks.

    Args:
        source: the file.
        counts: pages of each entry, which lie back to back; no block crosses an entry's end.
        storage: how.
        threads: that encode.

    Raises:
        ShortImage: the source ends too early.
        OSError: from the system calls.
    """
    block_pages = storage.region_pages or 1
    crew = _Crew(source, storage.acceleration, per_page=not storage.region_pages)
    pieces: Iterable[_Piece]
    if block_pages == 1:
        pieces = _plan_pieces([_Span(0, sum(counts), hole=False)], 1)
    elif max(counts, default=0) <= block_pages:
        pieces = _plan_blocks(counts)
    else:
        offsets = accumulate(map(blocks.pages_to_bytes, counts), initial=0)
        spans = (_Span(at, count, hole=False) for at, count in zip(offsets, counts, strict=False))
        pieces = _plan_pieces(spans, block_pages)
    for result in ordered(crew.encode, pieces, threads):
        yield result.block_pages, result.encoded


def _plan_blocks(counts: Sequence[int]) -> Iterator[_Piece]:
    """Yield pieces of blocks of so many pages each, which lie back to back."""
    numbers = list(accumulate(counts, initial=0))
    first = 0
    while first < len(counts):
        last = max(bisect_right(numbers, numbers[first] + _PIECE_PAGES) - 1, first + 1)
        offset = blocks.pages_to_bytes(numbers[first])
        yield _Piece(offset, array("H", counts[first:last]), hole=False)
        first = last


class Output:
    """Writes payload to the end of a file, in large pieces.

    Args:
        fd: of the file.
        offset: where it ends.

    Attributes:
        end: where it ends with what has been added.
    """

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._start = self.end = offset
        # The payload, and which of its bytes, of what is to be written.
        self._parts: list[tuple[bytes | bytearray, int, int]] = []

    def put(self, payload: bytes | bytearray, start: int, end: int) -> None:
        """Add bytes of ``payload``."""
        if start == end:
            return
        self.end += end - start
        if self._parts and self._parts[-1][0] is payload and self._parts[-1][2] == start:
            self._parts[-1] = (payload, self._parts[-1][1], end)
            return
        self._parts.append((payload, start, end))
        if len(self._parts) == _MAX_PARTS:
            self.flush()

    def align(self) -> None:
        """Fill up to a page boundary."""
        self.put(blocks.ZERO_PAGE, 0, -self.end % blocks.PAGE_SIZE)

    def copy(self, source: PagesFile, offset: int, n_bytes: int) -> None:
        """Add bytes of a file, with its holes."""
        self.flush()
        copy_data(source, offset, offset + n_bytes, self._fd, self.end)
        self._start = self.end = self.end + n_bytes

    def flush(self) -> None:
        """Write what has been added."""
        views = [memoryview(payload)[start:end] for payload, start, end in self._parts]
        self._parts.clear()
        done = os.pwritev(self._fd, views, self._start) if views else 0
        if done < self.end - self._start:
            write_all(self._fd, b"".join(views)[done:], self._start + done)
        self._start = self.end


def _split(
    entry: PagemapEntry, source: PagesFile, storage: Storage
) -> Iterator[tuple[PagemapEntry, bool]]:
    """Yield the parts of an entry, and whether each is stored raw."""
    mappings = storage.mappings
    if not entry.present:
        yield entry, False
        return
    if (
        entry.nr_pages == 1
        and (mappings is None or not len(mappings.raw))
        and not (storage.region_pages and len(source.holes))
    ):
        yield entry, False
        return
    cuts: set[int] = set()
    if entry.nr_pages > MAX_ENTRY_PAGES:
        cuts.update(range(0, entry.nr_pages, MAX_ENTRY_PAGES))
    if storage.region_pages and len(source.holes):
        cuts.update(page for hole in source.hole_pages(entry) for page in hole)
    if mappings is not None:
        if storage.region_pages:
            borders = mappings.borders(entry.vaddr, entry.end)
        else:
            raw = mappings.raw.within(entry.vaddr, entry.end)
            borders = [address for ends in raw for address in ends]
        cuts.update((border - entry.vaddr) >> blocks.PAGE_SHIFT for border in borders)
    raw_ranges = None if mappings is None else mappings.raw
    if not cuts:
        parts: Iterable[PagemapEntry] = (entry,)
    else:
        ordered_cuts = sorted(cuts | {0, entry.nr_pages})
        parts = (entry.part(first, end) for first, end in pairwise(ordered_cuts))
    for part in parts:
        yield part, raw_ranges is not None and raw_ranges.overlaps(part.vaddr, part.end)


class _Span(NamedTuple):
    """Pages in the source that have data, or that have none."""

    offset: int
    n_pages: int
    hole: bool


def _spans(parts: Iterable[PagemapEntry], source: PagesFile) -> Iterator[_Span]:
    has_holes = bool(len(source.holes))
    for part in parts:
        if not part.present:
            continue
        page = 0
        for first, end in source.hole_pages(part) if has_holes else ():
            if page < first:
                yield _Span(part.page_offset(page), first - page, hole=False)
            yield _Span(part.page_offset(first), end - first, hole=True)
            page = end
        if page < part.nr_pages:
            yield _Span(part.page_offset(page), part.nr_pages - page, hole=False)


def _joined(spans: Iterable[_Span]) -> Iterator[_Span]:
    """Yield spans, of which those that lie back to back are one."""
    offset = n_pages = 0
    hole, end = False, -1
    for span in spans:
        if span.offset == end and span.hole == hole:
            n_pages += span.n_pages
        else:
            if n_pages:
                yield _Span(offset, n_pages, hole)
            offset, n_pages, hole = span
        end = span.offset + blocks.pages_to_bytes(span.n_pages)
    if n_pages:
        yield _Span(offset, n_pages, hole)


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
    block_pages: array[int]


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
        return _Result(
            encoder.encode(piece.block_pages, keep_zeros=piece.hole), n_bytes, piece.block_pages
        )
