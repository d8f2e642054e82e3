"""A pagemap gone through as columns: which level holds what, and its payload in chunks.

What :func:`helperd.images.chain.walk` and :func:`helperd.images.pagesfile.plan_payload` do entry by
entry, for pagemaps that have hundreds of thousands of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, compress, pairwise
from operator import add, le, ne
from typing import NamedTuple

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.errors import ImageError
from helperd.images.chain import Level, open_parent, walk
from helperd.images.directory import ImageDirectory
from helperd.images.entries import NO_TABLE
from helperd.images.pagemap import (
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    PRESENT,
    Pagemap,
    PagemapEntry,
)
from helperd.images.pagesfile import plan_payload

_RAW_PAGES = array("I", (PAGE_SIZE,)) * CHUNK_PAGES
#: Entries of more blocks are planned by themselves; and so are fewer entries that are alike.
_MAX_BLOCKS, _FEWEST = 64, 32
#: Kinds of entries that are planned together: not at all, uncompressed, per page, regions of one
#: block (from here on).
_ALONE, _RAW, _PER_PAGE = 0, 1, 2
_OTHERS = bytes((1, 0)) + bytes(254)


class Held(NamedTuple):
    """The pages of a dump that one level holds.

    Attributes:
        level: of the chain.
        starts: addresses of runs of pages, ascending, each in one entry.
        ends: of the runs.
        entries: index of the entry of each.
    """

    level: Level
    starts: list[int]
    ends: list[int]
    entries: Sequence[int]


def sweep(directory: ImageDirectory, name: str) -> list[Held]:
    """Return which level holds the pages of the pagemap ``name``; raises as ``walk`` does."""
    levels = [Level(directory, name, 0)]
    columns = levels[0].pagemap.columns
    starts, ends = columns.vaddr.tolist(), _ends_of(columns.vaddr, columns.nr_pages)
    found: list[Held] = []
    try:
        held, (starts, ends) = _share(levels[0], starts, ends, range(len(starts)))
        found.append(held)
        while starts:
            levels.append(open_parent(levels, name, starts[0]))
            held, (starts, ends) = _share(levels[-1], *_match(levels[-1], starts, ends))
            found.append(held)
    except (ImageError, _NotHeldError):
        for _ in walk(directory, name):
            pass  # which tells of the page of the lowest address
        raise
    return found


class _NotHeldError(Exception):
    """A page is where it should not be."""


def _ends_of(starts: Iterable[int], counts: Iterable[int]) -> list[int]:
    return list(map(add, starts, [count << PAGE_SHIFT for count in counts]))


def _match(
    level: Level, starts: list[int], ends: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Return ranges cut where entries of a level end, and the entry of each piece."""
    columns = level.pagemap.columns
    firsts, lasts = columns.vaddr.tolist(), _ends_of(columns.vaddr, columns.nr_pages)
    rows = [bisect_right(firsts, start) - 1 for start in starts]
    if rows[0] < 0:
        raise _NotHeldError
    if all(map(le, ends, map(lasts.__getitem__, rows))):
        return starts, ends, rows
    pieces: list[tuple[int, int, int]] = []
    for start, end, row in zip(starts, ends, rows, strict=True):
        while start < end:
            if row == len(firsts) or not firsts[row] <= start < lasts[row]:
                raise _NotHeldError
            stop = min(end, lasts[row])
            pieces.append((start, stop, row))
            start, row = stop, row + 1
    cut_starts, cut_ends, cut_rows = map(list, zip(*pieces, strict=True))
    return cut_starts, cut_ends, cut_rows


def _share(
    level: Level, starts: list[int], ends: list[int], rows: Sequence[int]
) -> tuple[Held, tuple[list[int], list[int]]]:
    """Return what of the ranges, each in an entry, a level holds, and what its parent is to."""
    flags = level.pagemap.columns.flags
    found = flags if isinstance(rows, range) else bytes(map(flags.__getitem__, rows))
    if not all(bits & (PE_PRESENT | PE_PARENT) for bits in set(found)):
        raise _NotHeldError
    here = found.translate(PRESENT)
    if 0 not in here:
        return Held(level, starts, ends, rows), ([], [])
    held = Held(
        level,
        list(compress(starts, here)),
        list(compress(ends, here)),
        list(compress(rows, here)),
    )
    there = here.translate(_OTHERS)
    return held, (list(compress(starts, there)), list(compress(ends, there)))


def plan_pagemap(
    pagemap: Pagemap,
    parts_of: Callable[[PagemapEntry], Iterable[PagemapEntry]] | None = None,
    *,
    one_by_one: bool = False,
) -> Iterator[Chunk]:
    """Yield the payload of a pagemap in chunks, in file order; see ``plan_payload``.

    Args:
        pagemap: of the entries.
        parts_of: of an entry of many blocks, those that are wanted; None for all of it.
        one_by_one: that of every entry, and not of those of many blocks only.
    """
    done = 0
    for first, end, kind, rows in _alike(pagemap, one_by_one=one_by_one):
        if kind == _ALONE:
            entries: Iterable[PagemapEntry] = map(pagemap.entry, rows[first:end])
            if parts_of is not None:
                entries = (part for entry in entries for part in parts_of(entry))
            chunks = plan_payload(entries)
        elif kind <= _PER_PAGE:
            chunks = _plan_pages(pagemap, rows[first:end])
        else:
            chunks = _plan_regions(pagemap, rows[first:end])
        for chunk in chunks:
            chunk.first_page = done
            done += chunk.n_pages
            yield chunk


def _alike(
    pagemap: Pagemap, *, one_by_one: bool
) -> Iterator[tuple[int, int, int, list[int] | range]]:
    """Yield present entries that follow one another and are alike: first, end, kind; of which."""
    columns = pagemap.columns
    rows: list[int] | range = range(len(columns))
    present = columns.flags.translate(PRESENT)
    if 0 in present:
        rows = list(compress(rows, present))
    if one_by_one:
        yield 0, len(rows), _ALONE, rows
        return
    if pagemap.schemas:
        fields = zip(columns.table, columns.nr_pages, columns.block_pages, strict=True)
        kinds = list(compress((_kind_of(*it) for it in fields), present))
    else:
        kinds = [_RAW] * len(rows)
    breaks = set(compress(range(1, len(kinds)), map(ne, kinds, kinds[1:])))
    if any(flags & PE_PAYLOAD_ALIGNED for flags in set(columns.flags)):
        breaks |= {at for at, row in enumerate(rows) if columns.flags[row] & PE_PAYLOAD_ALIGNED}
    # The few between two stretches are planned together, one by one.
    alone = 0
    for first, end in pairwise(sorted(breaks | {0, len(rows)})):
        if end - first < _FEWEST or kinds[first] == _ALONE:
            continue
        if alone < first:
            yield alone, first, _ALONE, rows
        yield first, end, kinds[first], rows
        alone = end
    if alone < len(rows):
        yield alone, len(rows), _ALONE, rows


def _kind_of(table: int, pages: int, block_pages: int) -> int:
    if table == NO_TABLE:
        return _RAW
    if block_pages == 1:
        return _PER_PAGE if pages <= _MAX_BLOCKS else _ALONE
    return _PER_PAGE + block_pages if pages <= block_pages else _ALONE


def _runs_of(pagemap: Pagemap, rows: list[int] | range) -> tuple[list[int], list[int], list[int]]:
    """Return of entries the addresses, the pages, and how many pages there are before each."""
    columns = pagemap.columns
    counts = list(map(columns.nr_pages.__getitem__, rows))
    starts = list(map(columns.vaddr.__getitem__, rows))
    return starts, counts, list(accumulate(counts, initial=0))


def _plan_pages(pagemap: Pagemap, rows: list[int] | range) -> Iterator[Chunk]:
    """Yield chunks of entries of single pages that lie back to back, compressed or not."""
    columns = pagemap.columns
    starts, counts, numbers = _runs_of(pagemap, rows)
    table, offset = columns.table[rows[0]], columns.offset[rows[0]]
    none = array("H")
    for page in range(0, numbers[-1], CHUNK_PAGES):
        end = min(page + CHUNK_PAGES, numbers[-1])
        first, last = bisect_right(numbers, page) - 1, bisect_left(numbers, end)
        ranges = list(zip(starts[first:last], counts[first:last], strict=True))
        skipped, left = page - numbers[first], numbers[last] - end
        if left:
            ranges[-1] = ranges[-1][0], ranges[-1][1] - left
        if skipped:
            ranges[0] = ranges[0][0] + (skipped << PAGE_SHIFT), ranges[0][1] - skipped
        if table == NO_TABLE:
            sizes = _RAW_PAGES[: end - page]
        else:
            sizes = columns.sizes[table + page : table + end]
        chunk = Chunk(0, 0, end - page, sizes, none, offset, ranges)
        offset += chunk.payload
        yield chunk


def _plan_regions(pagemap: Pagemap, rows: list[int] | range) -> Iterator[Chunk]:
    """Yield chunks of entries of one block each that lie back to back."""
    columns = pagemap.columns
    starts, counts, numbers = _runs_of(pagemap, rows)
    table, offset = columns.table[rows[0]], columns.offset[rows[0]]
    room = CHUNK_PAGES - columns.block_pages[rows[0]]
    first = 0
    while first < len(rows):
        # As many as leave room for another one of full size, and that one.
        last = bisect_right(numbers, numbers[first] + room, first, len(rows)) if room >= 0 else 0
        last = max(last, first + 1)
        ranges = list(zip(starts[first:last], counts[first:last], strict=True))
        chunk = Chunk(
            0,
            0,
            numbers[last] - numbers[first],
            columns.sizes[table + first : table + last],
            array("H", counts[first:last]),
            offset,
            ranges,
        )
        offset += chunk.payload
        first = last
        yield chunk
