"""Requests for many entries at once, column by column.

A level may hold its pages in hundreds of thousands of runs of a page or two. Where such runs are
alike and their payloads lie back to back they make a *stretch*, of which requests are cut without a
step of Python's for each run. Where the payloads do not lie back to back, as in the parent of a
dump that has every other page itself, each would be a request; so such runs are *scattered*: to be
gathered into a stretch of another file.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate, compress, pairwise
from operator import add, ne, or_
from typing import TYPE_CHECKING

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE, pages_to_bytes
from helperd.images.entries import NO_TABLE
from helperd.restorer.build import build_request
from helperd.wire.pipe import MAX_RESTORER_IOVECS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helperd.images.chain import Level
    from helperd.images.extent import Extent
    from helperd.images.sweep import Held
    from helperd.wire.pipe import Request

#: Fewer runs than these are no stretch: those before and behind may be of the same request.
MANY = 512
#: Fewer pieces of payload than these are not gathered.
FEWEST = 32
#: Bytes that one piece of payload has at most to be gathered: from twice as many on it takes longer
#: to copy it than to make a request of its own. And the pages of all pieces together.
MAX_PIECE_BYTES = 32 << 10
MAX_GATHERED_PAGES = 4096

_NO_BLOCKS = array("H")
#: Kinds of runs: none in common with others, single pages uncompressed or not, and, from here on,
#: one block of so many pages at most.
_ALONE, _RAW, _PER_PAGE = 0, 1, 2


class Stretch:
    """Pages at ascending addresses, in whole blocks of one kind that lie back to back.

    Args:
        starts: addresses of the runs of pages.
        counts: pages of each; in region mode each is a block.
        sizes: stored size of each block, or None for pages that are not compressed.
        region_pages: 0 = per page.
        offset: file offset of the first block.
    """

    def __init__(
        self,
        starts: Sequence[int],
        counts: Sequence[int],
        sizes: array[int] | None,
        region_pages: int,
        offset: int,
    ) -> None:
        numbers = array("Q", accumulate(counts, initial=0))
        # Adjacent runs share an iovec.
        ends = map(add, starts, map(pages_to_bytes, counts))
        apart = [True, *map(ne, starts[1:], ends)]
        self._starts = array("Q", compress(starts, apart))
        self._numbers = array("Q", compress(numbers, apart))
        self._numbers.append(numbers[-1])
        self._blocks = numbers if region_pages else None
        self._counts = array("H", counts) if region_pages else _NO_BLOCKS
        self._sizes = sizes
        self._region_pages = region_pages
        self._offset = offset

    def requests(self, pid: int, *, base: int, max_pages: int) -> Iterator[Request]:
        """Yield the requests that restore the pages, as few as there can be.

        Args:
            pid: the process to be written to.
            base: added to every address.
            max_pages: of a request, unless its first block alone has more.
        """
        numbers, offset, page, total = self._numbers, self._offset, 0, self._numbers[-1]
        while page < total:
            first = bisect_right(numbers, page) - 1
            end = numbers[min(first + MAX_RESTORER_IOVECS, len(numbers) - 1)]
            end = self._end(page, min(end, page + max_pages))
            last = bisect_left(numbers, end)
            bounds = numbers[first : last + 1]
            skipped = page - bounds[0]
            bounds[0], bounds[-1] = page, end
            starts = self._starts[first:last]
            starts[0] += pages_to_bytes(skipped)
            iovs = array("Q", bytes(2 * starts.itemsize * len(starts)))
            iovs[0::2] = array("Q", map(base.__add__, starts)) if base else starts
            iovs[1::2] = array("Q", [(b - a) << PAGE_SHIFT for a, b in pairwise(bounds)])
            sizes, block_pages = self._blocks_of(page, end)
            request = build_request(
                remote_pid=pid,
                offs=offset,
                region_pages=self._region_pages,
                sizes=sizes,
                block_pages=block_pages,
                iovs=iovs,
            )
            yield request
            page, offset = end, offset + request.total_compressed_size

    def _end(self, page: int, end: int) -> int:
        """Return the last end of a block up to ``end``, or that of the block at ``page``."""
        if self._blocks is None:
            return end
        block = bisect_right(self._blocks, end) - 1
        if self._blocks[block] == page:
            block += 1
        return self._blocks[block]

    def _blocks_of(self, page: int, end: int) -> tuple[array[int], array[int]]:
        """Return stored sizes and pages of the blocks of pages."""
        if self._sizes is None:
            return array("I", (PAGE_SIZE,)) * (end - page), _NO_BLOCKS
        if self._blocks is None:
            return self._sizes[page:end], _NO_BLOCKS
        first, last = bisect_left(self._blocks, page), bisect_left(self._blocks, end)
        return self._sizes[first:last], self._counts[first:last]


class Scattered:
    """Runs of single pages, or of blocks of one kind, whose payloads do not lie back to back.

    Attributes:
        spans: of the pages file, offset and bytes; what they hold is a stretch when it is together.
    """

    def __init__(self, runs: _Runs, pieces: list[tuple[int, int]]) -> None:
        self._runs = runs
        self._first, self._end = pieces[0][0], pieces[-1][1]
        self.spans = [(runs.offsets[first], sum(runs.lengths[first:end])) for first, end in pieces]

    def gathered(self, offset: int) -> Stretch:
        """Return the stretch that they make when all spans lie at ``offset`` of a file."""
        return self._runs.stretch(self._first, self._end, offset)

    def extents(self) -> Iterator[Extent]:
        """Yield them as they lie in the pages file."""
        return self._runs.extents(self._first, self._end)


def stretches(held: Held, *, gather: bool) -> Iterator[Stretch | Scattered | Extent]:
    """Yield the payload of the pages that a level holds: in stretches where many runs are alike.

    Whatever is not like the rest comes as the extents of :mod:`helperd.images.chain`, one by one.

    Args:
        held: the pages.
        gather: yield scattered runs as such, not as extents.
    """
    runs = _Runs(held)
    pieces: list[tuple[int, int]] = []
    n_pages = 0
    for first, end in pairwise([*runs.breaks(), len(runs.kinds)]):
        kind, count = runs.kinds[first], sum(runs.counts[first:end])
        many = kind != _ALONE and end - first >= MANY
        single = (
            gather
            and kind != _ALONE
            and not many
            and count <= MAX_GATHERED_PAGES
            and sum(runs.lengths[first:end]) <= MAX_PIECE_BYTES
        )
        if pieces and (
            not single
            or n_pages + count > MAX_GATHERED_PAGES
            or max(kind, _PER_PAGE) != max(runs.kinds[pieces[0][0]], _PER_PAGE)
        ):
            yield from runs.scattered(pieces)
            pieces, n_pages = [], 0
        if single:
            pieces.append((first, end))
            n_pages += count
        elif many:
            yield runs.stretch(first, end, runs.offsets[first])
        else:
            yield from runs.extents(first, end)
    if pieces:
        yield from runs.scattered(pieces)


class _Runs:
    """The runs of pages that a level holds, column by column.

    Attributes:
        kinds: of the runs.
        counts: pages of each.
        tables: where the stored sizes of each begin; NO_TABLE for uncompressed pages.
        offsets: of the payload of each.
        lengths: bytes of the payload of each; 0 where it is of no kind.
    """

    def __init__(self, held: Held) -> None:
        columns, rows = held.level.pagemap.columns, held.entries
        self._level: Level = held.level
        self._starts, self._ends, self._rows = held.starts, held.ends, rows
        self._sizes = sizes = columns.sizes
        self.counts = [
            (end - start) >> PAGE_SHIFT for start, end in zip(held.starts, held.ends, strict=True)
        ]
        self.tables, self.offsets = _of(columns.table, rows), _of(columns.offset, rows)
        block_pages = _of(columns.block_pages, rows)
        self.kinds = [
            _RAW if table == NO_TABLE else _PER_PAGE if pages == 1 else _PER_PAGE + pages
            for table, pages in zip(self.tables, block_pages, strict=True)
        ]
        self._cut(_of(columns.vaddr, rows), _of(columns.nr_pages, rows))
        self.lengths = [
            count << PAGE_SHIFT
            if kind == _RAW
            else sizes[table]
            if kind > _PER_PAGE or (kind and count == 1)
            else sum(sizes[table : table + count])
            if kind
            else 0
            for kind, table, count in zip(self.kinds, self.tables, self.counts, strict=True)
        ]

    def _cut(self, starts: list[int], counts: list[int]) -> None:
        """Take into account which runs are a part of their entry, or of more than one block."""
        columns = self._level.pagemap.columns
        if max(self.kinds, default=_ALONE) > _PER_PAGE:
            self.kinds = [
                kind if kind <= _PER_PAGE or count == whole <= kind - _PER_PAGE else _ALONE
                for kind, count, whole in zip(self.kinds, self.counts, counts, strict=True)
            ]
        for at in compress(range(len(starts)), map(ne, self._starts, starts)):
            if self.kinds[at] not in (_RAW, _PER_PAGE):
                continue
            skipped = (self._starts[at] - starts[at]) >> PAGE_SHIFT
            self.offsets[at] = columns.block_offset(self._rows[at], skipped)
            self.tables[at] += skipped if self.kinds[at] == _PER_PAGE else 0

    def breaks(self) -> list[int]:
        """Return the first run, and all that are not like the one before or do not lie behind."""
        kinds = self.kinds
        apart = map(ne, kinds[1:], kinds)
        gaps = map(ne, self.offsets[1:], map(add, self.offsets, self.lengths))
        unlike = list(map(or_, apart, gaps))
        if any(map(_RAW.__ne__, kinds)):
            blocks = [
                count if kind == _PER_PAGE else kind != _RAW
                for kind, count in zip(kinds, self.counts, strict=True)
            ]
            # Entries in between may have blocks, but no payload.
            elsewhere = map(ne, self.tables[1:], map(add, self.tables, blocks))
            unlike = list(map(or_, unlike, elsewhere))
        return [*range(min(len(kinds), 1)), *compress(range(1, len(kinds)), unlike)]

    def stretch(self, first: int, end: int, offset: int) -> Stretch:
        """Return runs as a stretch whose payload lies at ``offset``."""
        kinds, counts = self.kinds[first:end], self.counts[first:end]
        sizes = None
        if set(kinds) != {_RAW}:
            sizes = array("I")
            for kind, table, count in zip(kinds, self.tables[first:end], counts, strict=True):
                if kind == _RAW:
                    sizes += array("I", (PAGE_SIZE,)) * count
                elif kind > _PER_PAGE or count == 1:
                    sizes.append(self._sizes[table])
                else:
                    sizes += self._sizes[table : table + count]
        return Stretch(self._starts[first:end], counts, sizes, max(kinds[0] - _PER_PAGE, 0), offset)

    def scattered(self, pieces: list[tuple[int, int]]) -> Iterator[Scattered | Extent]:
        """Yield pieces, each of payload that lies together, as one if that is worth it."""
        if len(pieces) >= FEWEST:
            yield Scattered(self, pieces)
        else:
            yield from self.extents(pieces[0][0], pieces[-1][1])

    def extents(self, first: int, end: int) -> Iterator[Extent]:
        """Yield some of the runs one by one."""
        row, entry = -1, None
        for at in range(first, end):
            # The same object for all of its runs: what it takes to find a payload is done once.
            if entry is None or self._rows[at] != row:
                row = self._rows[at]
                entry = self._level.pagemap.entry(row)
            yield from self._level.extents(entry, self._starts[at], self._ends[at])


def _of(column: array[int], rows: Sequence[int]) -> list[int]:
    """Return what a column says of some entries."""
    if isinstance(rows, range) and len(rows) == len(column):
        return column.tolist()
    return list(map(column.__getitem__, rows))
