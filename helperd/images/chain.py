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
from collections.abc import Iterator

from helperd import blocks, errors
from helperd.images import records
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.pagemap import PagemapEntry
from helperd.images.payload import MAX_EXTENT_PAGES, Extent

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
    name = pagemap_name(pid=pid, shmem_id=shmem_id)
    levels = [_Level(directory, name)]
    for top in levels[0].entries:
        # Runs still to be found, the lowest address last: (level to look at, first, end).
        pending = [(0, top.vaddr, top.end)]
        while pending:
            depth, first, end = pending.pop()
            if depth == len(levels):
                levels.append(_open_parent(levels, name, first))
            level = levels[depth]
            entry = level.entry_at(first)
            stop = min(end, entry.end)
            if stop < end:
                pending.append((depth, stop, end))
            if entry.present:
                yield from level.extents(entry, first, stop)
            elif entry.in_parent:
                pending.append((depth + 1, first, stop))
            else:
                raise errors.ImageError(
                    f"{level.pagemap_path}: page {first:#x} is stored nowhere (flags"
                    f" {entry.flags:#x}); a dump for lazy-pages keeps it in the source process"
                )


class _Level:
    """A pagemap of the chain, with a place in it that only moves forward."""

    def __init__(self, directory: ImageDirectory, name: str) -> None:
        self.directory = directory
        pagemap = directory.pagemap_by_name(name)
        self.pagemap_path = pagemap.path
        self.entries = pagemap.entries
        self.pages_path = directory.file(pagemap.pages_name)
        if pagemap.payload_end:
            _check_pages_file(self.pages_path, pagemap.payload_end, pagemap.path)
        # Block ``_block`` of ``_entry`` has its payload at ``_offset``. As addresses only ascend,
        # finding the payloads of all blocks costs one pass over the table.
        self._entry: PagemapEntry | None = None
        self._block = 0
        self._offset = 0

    def entry_at(self, address: int) -> PagemapEntry:
        """Return the entry that covers the page at ``address``."""
        index = bisect.bisect_right(self.entries, address, key=operator.attrgetter("vaddr")) - 1
        if index < 0 or self.entries[index].end <= address:
            raise errors.ImageError(
                f"{self.pagemap_path}: page {address:#x} is needed from here but not listed:"
                " this is not the parent the dump was made with"
            )
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


def _open_parent(levels: list[_Level], name: str, address: int) -> _Level:
    """Open the level after ``levels``, from which the page at ``address`` is needed first."""
    child = levels[-1]
    parent = child.directory.parent()
    if parent is None:
        raise errors.ImageError(
            f"{child.pagemap_path}: page {address:#x} is in the parent,"
            f" but {child.directory.path} has no parent link"
        )
    if any(level.directory.identity == parent.identity for level in levels):
        raise errors.ImageError(
            f"{child.directory.path}: the parent links make a loop back to {parent.path}"
        )
    if not parent.has_pagemap(name):
        raise errors.ImageError(
            f"{child.pagemap_path}: page {address:#x} is in the parent,"
            f" but {parent.path} has no {name}"
        )
    return _Level(parent, name)


def _check_pages_file(path: str, n_bytes: int, pagemap_path: str) -> None:
    with records.open_image(path) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
    if file_bytes < n_bytes:
        raise errors.ShortImage(
            f"{path}: has {file_bytes} bytes, its pagemap {pagemap_path} needs {n_bytes}"
        )
