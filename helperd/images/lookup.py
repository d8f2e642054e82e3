"""Where any page of a dump is, at once and at random: an address, its level, its block.

Where :mod:`helperd.images.chain` goes through a dump once, in order, this serves whoever asks for
pages as they are needed. The chain of parents is flattened into *runs*: pages at ascending
addresses that one entry of one level holds. All pages of all runs are numbered through, from 0 on;
a page's *number* is its place in the dump. Memory grows with the pagemaps only.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import add, eq, sub

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE, pages_to_bytes
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.errors import ImageError, from_errno
from helperd.images.entries import NO_TABLE, PE_LAZY, PE_PARENT, PE_PRESENT, Entries
from helperd.images.level import Level, open_level
from helperd.images.records import not_listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: The level of pages that are in no image: ``criu dump --lazy-pages`` kept them.
ELSEWHERE = 255
#: A chain's parents, at most; a level's number is one byte.
MAX_LEVELS = 254
#: Name of the symlink that leads to the directory of the pre-dump before.
PARENT_NAME = "parent"

#: The level of an entry of the dump itself that is not in the parent, by its flags.
_HERE = bytes(0 if flags & PE_PRESENT else ELSEWHERE for flags in range(256))

_RAW_PAGES = array("I", (PAGE_SIZE,)) * CHUNK_PAGES
_NO_BLOCKS = array("H")


class Piece:
    """Consecutively numbered pages whose blocks can be read and decoded at once.

    Attributes:
        level: index of the level that has the payload.
        first: number of the first wanted page.
        end: number after the last one.
        skip: pages of the chunk before the first wanted one; there may be more behind the last.
        chunk: the whole blocks they lie in; its ranges are the addresses of the wanted pages.
    """

    __slots__ = ("chunk", "end", "first", "level", "skip")

    def __init__(self, level: int, first: int, end: int, skip: int, chunk: Chunk) -> None:
        self.level = level
        self.first = first
        self.end = end
        self.skip = skip
        self.chunk = chunk


class Lookup:
    """The pages of one process, or of one shared memory object, across a chain.

    Attributes:
        name: of the pagemap.
        levels: that hold pages, the dump itself first.
        starts: ``array('Q')``, address of each run.
        numbers: ``array('Q')``, number of each run's first page, and the number of all pages.
        level_of: ``bytearray``, the level of each run, or ELSEWHERE.
        entry_of: ``array('I')``, the entry of each run, in its level.
        flags_of: ``bytearray``, the flags of the dump's own entry that each run is a part of.
    """

    def __init__(self, name: str, levels: Sequence[Level]) -> None:
        """Flatten ``levels``, the dump itself first.

        Raises:
            ImageError: a page is in no level that should have it.
        """
        self.name = name
        self.levels = list(levels)
        self.starts = array("Q")
        self.numbers = array("Q", (0,))
        self.level_of = bytearray()
        self.entry_of = array("I")
        self.flags_of = bytearray()
        self._flatten()

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def n_pages(self) -> int:
        """All pages of the dump."""
        return self.numbers[-1]

    def close(self) -> None:
        """Close the pages files."""
        for level in self.levels:
            level.close()

    def load_tables(self) -> None:
        """Read what decoding needs; see :meth:`helperd.images.entries.Entries.load_tables`."""
        for level in self.levels:
            level.entries.load_tables()

    def run_pages(self, run: int) -> int:
        """Return the pages of a run."""
        return self.numbers[run + 1] - self.numbers[run]

    def number_of(self, address: int) -> int:
        """Return the number of the page at ``address``, -1 when the dump has none there."""
        run = bisect_right(self.starts, address) - 1
        if run < 0:
            return -1
        number = self.numbers[run] + ((address - self.starts[run]) >> PAGE_SHIFT)
        return number if number < self.numbers[run + 1] else -1

    def first_from(self, address: int) -> int:
        """Return the number of the first page at ``address`` or behind it."""
        run = bisect_right(self.starts, address) - 1
        if run < 0:
            return 0
        number = self.numbers[run] + (-(-(address - self.starts[run]) // PAGE_SIZE))
        return min(number, self.numbers[run + 1])

    def run_of(self, number: int) -> int:
        """Return the run of a page by its number."""
        return bisect_right(self.numbers, number) - 1

    def ranges(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the (address, pages) of the pages numbered from ``first`` to before ``end``."""
        if first >= end:
            return []
        run = self.run_of(first)
        if end <= self.numbers[run + 1]:
            return [(self.starts[run] + pages_to_bytes(first - self.numbers[run]), end - first)]
        last = bisect_left(self.numbers, end)
        starts, bounds = self.starts[run:last], self.numbers[run : last + 1]
        starts[0] += pages_to_bytes(first - bounds[0])
        bounds[0], bounds[-1] = first, end
        counts = list(map(sub, bounds[1:], bounds))
        ends = map(add, starts, map(pages_to_bytes, counts))
        if not any(map(eq, starts[1:], ends)):
            return list(zip(starts, counts, strict=True))
        found: list[tuple[int, int]] = []
        for address, n_pages in zip(starts, counts, strict=True):
            if found and found[-1][0] + pages_to_bytes(found[-1][1]) == address:
                found[-1] = (found[-1][0], found[-1][1] + n_pages)
            else:
                found.append((address, n_pages))
        return found

    def block_around(self, number: int, window: int) -> tuple[int, int]:
        """Return the numbers, from and before, of the pages to be had with one page.

        Those of its block; where blocks are single pages, of the aligned ``window`` around it.
        """
        run = self.run_of(number)
        level = self.level_of[run]
        block_pages = 1
        if level != ELSEWHERE:
            block_pages = self.levels[level].entries.block_pages[self.entry_of[run]]
        if block_pages == 1:
            first = number - number % window
            return first, min(first + window, self.n_pages)
        page = self._page_in_entry(run, number)
        first = number - page % block_pages
        return max(first, self.numbers[run]), min(first + block_pages, self.numbers[run + 1])

    def place(self, number: int) -> tuple[int, int, int, int, int]:
        """Return where one page is, by its number; it must be in an image.

        Returns:
            The level; of the page's block there the file offset, the stored bytes and the pages;
            and which page of the block it is.
        """
        run = bisect_right(self.numbers, number) - 1
        level = self.level_of[run]
        entries, entry = self.levels[level].entries, self.entry_of[run]
        page = self._page_in_entry(run, number)
        block_pages = entries.block_pages[entry]
        block, page = divmod(page, block_pages)
        at = entries.table[entry]
        size = PAGE_SIZE if at == NO_TABLE else entries.sizes[at + block]
        n_pages = min(block_pages, entries.nr_pages[entry] - block * block_pages)
        return level, entries.block_offset(entry, block), size, n_pages, page

    def piece(self, number: int, end: int, max_pages: int = CHUNK_PAGES) -> Piece:
        """Return the pages from ``number`` on that can be had at once.

        Args:
            number: of the first wanted page.
            end: number after the last wanted page.
            max_pages: of all blocks, unless the first alone has more.

        Raises:
            ImageError: the page is in no image.
        """
        run = self.run_of(number)
        level = self.level_of[run]
        if level == ELSEWHERE:
            raise ImageError(
                f"{self.name}: page {self.address_of(number):#x} is in no image: a dump for"
                " lazy-pages keeps it in the source process"
            )
        entries = self.levels[level].entries
        entry = self.entry_of[run]
        block_pages = entries.block_pages[entry]
        block, skip = divmod(self._page_in_entry(run, number), block_pages)
        numbers, in_entry = self.numbers, entries.nr_pages
        offset = at = entries.block_offset(entry, block)
        sizes, blocks = array("I"), array("H")
        total, first = 0, number
        while True:
            run_end = numbers[run + 1]
            stop = min(run_end, end)
            room = max(max_pages - total, 0 if total else 1)
            if block_pages == 1:
                count = min(stop - number, room)
                found = self._sizes(entries, entry, block, count)
                number += count
                total += count
            else:
                count = max(room // block_pages, 0 if total else 1)
                lead = skip if not total else 0
                wanted = -(-(stop - number + lead) // block_pages)
                count = min(count, wanted)
                found = self._sizes(entries, entry, block, count)
                left = in_entry[entry] - block * block_pages
                for _ in range(count):
                    blocks.append(min(block_pages, left))
                    left -= block_pages
                covered = sum(blocks[len(blocks) - count :]) if count else 0
                number = min(stop, number + covered - lead)
                total += covered
            sizes += found
            at += sum(found)
            if not count or number != run_end or number >= end:
                break
            if self._page_in_entry(run, number) != in_entry[entry]:
                break  # The run ends within its entry, perhaps within a block of it.
            run += 1
            if self.level_of[run] != level:
                break
            entry, block = self.entry_of[run], 0
            if (
                entries.block_pages[entry] != block_pages
                or entries.offset[entry] != at
                or self.starts[run] != entries.vaddr[entry]
            ):
                break
        chunk = Chunk(skip, 0, total, sizes, blocks, offset, self.ranges(first, number))
        return Piece(level, first, number, skip, chunk)

    def address_of(self, number: int) -> int:
        """Return the address of a page by its number."""
        run = self.run_of(number)
        return self.starts[run] + pages_to_bytes(number - self.numbers[run])

    def _page_in_entry(self, run: int, number: int) -> int:
        """Return which page of its entry the page with a number of a run is."""
        entries = self.levels[self.level_of[run]].entries
        lead = self.starts[run] - entries.vaddr[self.entry_of[run]]
        return (lead >> PAGE_SHIFT) + number - self.numbers[run]

    def _sizes(self, entries: Entries, entry: int, block: int, count: int) -> array[int]:
        at = entries.table[entry]
        if at == NO_TABLE:
            if count > len(_RAW_PAGES):
                return array("I", (PAGE_SIZE,)) * count
            return _RAW_PAGES[:count]
        return entries.sizes[at + block : at + block + count]

    def _flatten(self) -> None:
        top = self.levels[0].entries
        if not any(flags & PE_PARENT for flags in set(top.flags)):
            self.starts = top.vaddr[:]
            self.numbers = array("Q", accumulate(top.nr_pages, initial=0))
            self.level_of = top.flags.translate(_HERE)
            self.entry_of = array("I", range(len(top)))
            self.flags_of = top.flags[:]
            return
        for index in range(len(top)):
            flags = top.flags[index]
            if not flags & PE_PARENT:
                level = 0 if flags & PE_PRESENT else ELSEWHERE
                self._add(top.vaddr[index], top.nr_pages[index], level, index, flags)
                continue
            # Runs still to be found, the lowest address last: (level to look at, first, end).
            pending = [(1, top.vaddr[index], top.end(index))]
            while pending:
                depth, first, end = pending.pop()
                entries, found = self._entry_at(depth, first)
                stop = min(end, entries.end(found))
                if stop < end:
                    pending.append((depth, stop, end))
                found_flags = entries.flags[found]
                if found_flags & PE_PARENT:
                    pending.append((depth + 1, first, stop))
                    continue
                level = depth if found_flags & PE_PRESENT else ELSEWHERE
                self._add(
                    first, (stop - first) >> PAGE_SHIFT, level, found, flags | found_flags & PE_LAZY
                )

    def _entry_at(self, depth: int, address: int) -> tuple[Entries, int]:
        if depth >= len(self.levels):
            raise ImageError(
                f"{self.levels[-1].entries.path}: page {address:#x} is in the parent, but there is"
                f" no parent with a {self.name}"
            )
        entries = self.levels[depth].entries
        index = bisect_right(entries.vaddr, address) - 1
        if index < 0 or entries.end(index) <= address:
            raise not_listed(entries.path, address)
        return entries, index

    def _add(self, start: int, n_pages: int, level: int, entry: int, flags: int) -> None:
        self.starts.append(start)
        self.numbers.append(self.numbers[-1] + n_pages)
        self.level_of.append(level)
        self.entry_of.append(entry)
        self.flags_of.append(flags)


def open_lookup(path: str, name: str) -> Lookup:
    """Open a pagemap of an image directory, with the parents that it needs.

    Args:
        path: of the directory.
        name: of the pagemap, such as ``pagemap-1.img``.

    Raises:
        ImageError: a file or a parent is missing, the links make a loop, a page is nowhere.
        ImageFormatError: a pagemap is broken.
        ShortImage: a pages file is shorter than its pagemap says.
        CorruptBlock: payload that is needed lies in a hole.
    """
    levels: list[Level] = []
    seen: set[tuple[int, int]] = set()
    try:
        while True:
            seen.add(_identity(path, seen))
            levels.append(open_level(path, name))
            if PE_PARENT not in {flags & PE_PARENT for flags in levels[-1].entries.flags}:
                break
            link = os.path.join(path, PARENT_NAME)
            # The real path: links through links would reach the kernel's limit of 40.
            parent = os.path.realpath(link)
            if not os.path.exists(os.path.join(parent, name)) or len(levels) == MAX_LEVELS:
                break
            path = parent
        lookup = Lookup(name, levels)
        _check_holes(lookup)
        return lookup
    except BaseException:
        for level in levels:
            level.close()
        raise


def _check_holes(lookup: Lookup) -> None:
    """Raise CorruptBlock if needed payload lies in a hole, and so would read as zeros.

    Once, before anything is served: who asks for pages later cannot be told no any more.
    """
    suspects = bytes(number for number, level in enumerate(lookup.levels) if level.may_have_holes())
    if not suspects:
        return
    lookup.load_tables()
    for run, level in enumerate(lookup.level_of):
        number = lookup.numbers[run]
        while level in suspects and number < lookup.numbers[run + 1]:
            piece = lookup.piece(number, lookup.numbers[run + 1])
            start = piece.chunk.offset
            lookup.levels[level].check_holes(start, start + sum(piece.chunk.sizes))
            number = piece.end


def _identity(path: str, seen: set[tuple[int, int]]) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        failure = from_errno(error.errno or 0, f"cannot open the image directory {path}")
        raise ImageError(str(failure), errno=error.errno) from error
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        raise ImageError(f"the parent links make a loop back to {path}")
    return identity
