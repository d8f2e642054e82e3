"""Where every page of a dump comes from, across its chain of parents.

The pagemap of the last dump alone says which pages there are. Those it has not stored itself are
looked up page by page in the parent, then in its parent, and so on: one entry of the child often
spans several of the parent, and the parent also holds pages that the child no longer has.
"""

from __future__ import annotations

import bisect
import operator
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from helperd import blocks
from helperd.errors import ImageError
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.extent import MAX_EXTENT_PAGES, Extent
from helperd.images.pagemap import PE_PRESENT, PagemapEntry, check_pages_size
from helperd.images.records import not_listed, open_image

_RAW_PAGES = array("I", [blocks.PAGE_SIZE]) * MAX_EXTENT_PAGES


def resolve(
    directory: ImageDirectory, *, pid: int | None = None, shmem_id: int | None = None
) -> Iterator[Extent]:
    """Yield where the pages of a process or a shared memory object are, ascending by address.

    A parent is opened when the first page is needed from it; what is wrong with it is raised then.
    Memory grows linearly with the pagemaps, not with the pages.

    Args:
        directory: of the dump.
        pid: the process, or
        shmem_id: the shared memory object; its addresses are offsets in it.

    Raises:
        ImageError: a pagemap or a parent is missing, the links make a loop, or a page is stored
            nowhere (its address is named).
        ImageFormatError: a pagemap is broken.
        ShortImage: a pages file is shorter than its pagemap says.
    """
    for run in walk(directory, pagemap_name(pid=pid, shmem_id=shmem_id)):
        yield from run.level.extents(run.entry, run.first, run.end)


def ancestors(directory: ImageDirectory) -> Iterator[ImageDirectory]:
    """Yield a directory, its parent, and so on up to the first pre-dump.

    Raises:
        ImageError: a parent is missing, or the links make a loop.
    """
    seen: list[ImageDirectory] = []
    level: ImageDirectory | None = directory
    while level is not None:
        if any(other.identity == level.identity for other in seen):
            raise ImageError(f"{seen[-1].path}: the parent links make a loop back to {level.path}")
        seen.append(level)
        yield level
        level = level.parent()


def with_parents(paths: Sequence[str]) -> list[str]:
    """Return directories with all their parents, each once, a parent before its children.

    Raises:
        ImageError: as :func:`ancestors` says.
    """
    found: dict[tuple[int, int], str] = {}
    for path in paths:
        for directory in reversed(list(ancestors(ImageDirectory(path)))):
            found.setdefault(directory.identity, directory.path)
    return list(found.values())


class Run(NamedTuple):
    """Pages of a dump that one present entry of one level holds."""

    level: Level
    entry: PagemapEntry
    first: int
    end: int


def walk(directory: ImageDirectory, name: str) -> Iterator[Run]:
    """Yield which level holds the pages of the pagemap ``name``, ascending by address.

    Raises:
        ImageError, ShortImage: as :func:`resolve` says.
    """
    levels = [Level(directory, name, 0)]
    for top in levels[0].entries:
        if top.flags & PE_PRESENT:
            yield Run(levels[0], top, top.vaddr, top.end)
            continue
        # Runs still to be found, the lowest address last: (level to look at, first, end).
        pending = [(0, top.vaddr, top.end)]
        while pending:
            depth, first, end = pending.pop()
            if depth == len(levels):
                levels.append(open_parent(levels, name, first))
            level = levels[depth]
            entry = level.entry_at(first)
            stop = min(end, entry.end)
            if stop < end:
                pending.append((depth, stop, end))
            if entry.present:
                yield Run(level, entry, first, stop)
            elif entry.in_parent:
                pending.append((depth + 1, first, stop))
            else:
                raise ImageError(
                    f"{level.pagemap_path}: page {first:#x} is stored nowhere (flags"
                    f" {entry.flags:#x}); a dump for lazy-pages keeps it in the source process"
                )


class Level:
    """A pagemap of the chain, with a place in it that only moves forward.

    Attributes:
        directory: that it is in.
        depth: levels above it; 0 is the dump itself.
        pagemap: what is in it.
        pagemap_path: the file.
        pages_path: its pages file.
    """

    def __init__(self, directory: ImageDirectory, name: str, depth: int) -> None:
        self.directory = directory
        self.depth = depth
        pagemap = directory.pagemap_by_name(name)
        self.pagemap = pagemap
        self.pagemap_path = pagemap.path
        self.pages_path = directory.file(pagemap.pages_name)
        if pagemap.payload_end:
            with open_image(self.pages_path) as stream:
                size = os.fstat(stream.fileno()).st_size
            check_pages_size(pagemap, self.pages_path, size, exact=False)
        # Block ``_block`` of ``_entry`` has its payload at ``_offset``. As addresses only ascend,
        # finding the payloads of all blocks costs one pass over the table.
        self._entry: PagemapEntry | None = None
        self._block = 0
        self._offset = 0

    @property
    def entries(self) -> list[PagemapEntry]:
        """What is in the pagemap, as objects."""
        return self.pagemap.entries

    def entry_at(self, address: int) -> PagemapEntry:
        """Return the entry that covers the page at ``address``."""
        index = bisect.bisect_right(self.entries, address, key=operator.attrgetter("vaddr")) - 1
        if index < 0 or self.entries[index].end <= address:
            raise not_listed(self.pagemap_path, address)
        return self.entries[index]

    def extents(self, entry: PagemapEntry, first: int, end: int) -> Iterator[Extent]:
        """Yield the payload of a present ``entry``'s pages from ``first`` to before ``end``."""
        page = (first - entry.vaddr) >> blocks.PAGE_SHIFT
        end_page = (end - entry.vaddr) >> blocks.PAGE_SHIFT
        while page < end_page:
            if entry.sizes is None:
                extent = self._uncompressed(entry, page, end_page)
            elif entry.region_pages == 0:
                extent = self._per_page(entry, entry.sizes, page, end_page)
            else:
                extent = self._regions(entry, entry.sizes, page, end_page)
            yield extent
            page += extent.n_pages

    def _uncompressed(self, entry: PagemapEntry, page: int, end_page: int) -> Extent:
        n_pages = min(end_page - page, MAX_EXTENT_PAGES)
        return Extent(
            vaddr=entry.vaddr + blocks.pages_to_bytes(page),
            n_pages=n_pages,
            pages_path=self.pages_path,
            offset=entry.offset + blocks.pages_to_bytes(page),
            region_pages=0,
            sizes=_RAW_PAGES[:n_pages],
            block_pages=None,
        )

    def _per_page(self, entry: PagemapEntry, sizes: array[int], page: int, end_page: int) -> Extent:
        n_pages = min(end_page - page, MAX_EXTENT_PAGES)
        return Extent(
            vaddr=entry.vaddr + blocks.pages_to_bytes(page),
            n_pages=n_pages,
            pages_path=self.pages_path,
            offset=self._payload_offset(entry, sizes, page),
            region_pages=0,
            sizes=sizes[page : page + n_pages],
            block_pages=None,
        )

    def _regions(self, entry: PagemapEntry, sizes: array[int], page: int, end_page: int) -> Extent:
        region = entry.region_pages
        block, skip_pages = divmod(page, region)
        block_end = min(page - skip_pages + region, entry.nr_pages)
        if skip_pages or block_end > end_page:
            n_blocks = 1
            block_pages = array("H", [block_end - block * region])
            n_pages = min(block_end, end_page) - page
        else:
            # Whole blocks; the entry's last one may be short, and only counts when it is reached.
            last = entry.n_blocks if end_page == entry.nr_pages else end_page // region
            n_blocks = min(last - block, MAX_EXTENT_PAGES // region)
            n_pages = min((block + n_blocks) * region, entry.nr_pages) - page
            block_pages = array("H", blocks.split_into_regions(n_pages, region))
        return Extent(
            vaddr=entry.vaddr + blocks.pages_to_bytes(page),
            n_pages=n_pages,
            pages_path=self.pages_path,
            offset=self._payload_offset(entry, sizes, block),
            region_pages=region,
            sizes=sizes[block : block + n_blocks],
            block_pages=block_pages,
            skip_pages=skip_pages,
        )

    def _payload_offset(self, entry: PagemapEntry, sizes: array[int], block: int) -> int:
        if self._entry is not entry:
            self._entry, self._block, self._offset = entry, 0, entry.offset
        self._offset += sum(sizes[self._block : block])
        self._block = block
        return self._offset


def open_parent(levels: list[Level], name: str, address: int) -> Level:
    """Open the level after ``levels``, from which the page at ``address`` is needed first."""
    child = levels[-1]
    parent = child.directory.parent()
    if parent is None:
        raise ImageError(
            f"{child.pagemap_path}: page {address:#x} is in the parent,"
            f" but {child.directory.path} has no parent link"
        )
    if any(level.directory.identity == parent.identity for level in levels):
        raise ImageError(
            f"{child.directory.path}: the parent links make a loop back to {parent.path}"
        )
    if not parent.has_pagemap(name):
        raise ImageError(
            f"{child.pagemap_path}: page {address:#x} is in the parent,"
            f" but {parent.path} has no {name}"
        )
    return Level(parent, name, len(levels))
