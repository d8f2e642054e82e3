"""What a directory of images and its chain hold, in numbers."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

from helperd import blocks
from helperd.errors import HelperdError, ImageError
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.entries import NO_TABLE
from helperd.images.pagemap import PE_PRESENT, Pagemap, PagemapEntry
from helperd.images.ranges import Ranges
from helperd.images.sweep import Held, sweep
from helperd.offline.archived import ArchivedCheckpoints

#: How a page is stored, in the order in which pictures and tables tell of them.
KINDS = ("zero", "raw", "lz4", "uncompressed")
ZERO, RAW, LZ4, UNCOMPRESSED = KINDS


@dataclass(slots=True)
class LevelSummary:
    """What one level of the chain has of one process or shared memory object.

    Attributes:
        path: the directory.
        schema: of its pagemaps: none, sizes or blocks.
        stored_pages: pages with a payload there ...
        used_pages: ... and those of them that the dump takes from there.
        payload_bytes: of the pages file.
        hole_bytes: of it that take no space.
        n_zero, n_raw, n_lz4: compressed blocks, by how they are stored.
        n_uncompressed: pages that are not compressed.
        block_pages: pages of a block, the largest of the entries; 1 = per page, 0 = not compressed.
    """

    path: str
    schema: str
    stored_pages: int = 0
    used_pages: int = 0
    payload_bytes: int = 0
    hole_bytes: int = 0
    n_zero: int = 0
    n_raw: int = 0
    n_lz4: int = 0
    n_uncompressed: int = 0
    block_pages: int = 0

    @property
    def ratio(self) -> float:
        """Bytes of the stored pages for each byte of payload."""
        return blocks.pages_to_bytes(self.stored_pages) / max(self.payload_bytes, 1)


class Stretch(NamedTuple):
    """Neighbouring pages of the dump that one level stores in one way.

    Attributes:
        vaddr: of the first page.
        n_pages: how many.
        depth: of the level, 0 = the dump itself.
        kind: one of KINDS.
    """

    vaddr: int
    n_pages: int
    depth: int
    kind: str


@dataclass
class MemorySummary:
    """A process or a shared memory object of the dump.

    Attributes:
        name: of its pagemap.
        pid: the process, or
        shmem_id: the shared memory object.
        n_pages: pages of the dump, wherever they are.
        ranges: runs of neighbouring pages, as (address, pages).
        levels: from the dump itself to its first pre-dump.
    """

    name: str
    pid: int | None
    shmem_id: int | None
    n_pages: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    levels: list[LevelSummary] = field(default_factory=list)
    _held: list[Held] = field(default_factory=list, repr=False, compare=False)

    @functools.cached_property
    def stretches(self) -> list[Stretch]:
        """What is where, ascending by address; made when it is asked for."""
        return stretches_of(self._held)


@dataclass(frozen=True, slots=True)
class Summary:
    """What :func:`summarize` found.

    Attributes:
        path: the directory of the dump.
        levels: the directories of its chain, itself first.
        schemas: of each.
        memories: of its processes, then of its shared memory.
    """

    path: str
    levels: tuple[str, ...]
    schemas: tuple[str, ...]
    memories: tuple[MemorySummary, ...]

    @property
    def chain_depth(self) -> int:
        """Levels of the chain; 1 without a parent."""
        return len(self.levels)


def show_directory(path: str) -> Summary:
    """Return what a dump and its chain hold. Blocks are counted, not decoded.

    Raises:
        ImageError: the images are broken or incomplete; see :mod:`helperd.offline.check`.
    """
    return summarize(ImageDirectory(path), path)


def show_archive(path: str) -> tuple[list[Summary], dict[str, str]]:
    """Return what each checkpoint in an archive holds, and who made it, in words by name.

    Raises:
        ImageError: the archive or its images are broken or incomplete.
    """
    with ArchivedCheckpoints(path) as archived:
        try:
            summaries = [
                summarize(top, f"{path}:{top.folder}", named=archived.told)
                for top in archived.tops()
            ]
        except HelperdError as error:
            raise archived.retold(error) from error
        return summaries, archived.origin


def summarize(
    top: ImageDirectory, path: str, *, named: Callable[[str], str] = lambda path: path
) -> Summary:
    """Return what the dump in a directory, and its chain, hold.

    Args:
        top: the directory of the dump.
        path: what it is called.
        named: returns what a directory of the chain is called, of its path.

    Raises:
        ImageError: the images are broken or incomplete.
    """
    directories = list(ancestors(top))
    if not top.pagemap_names:
        raise ImageError(f"{path}: not an image directory, there is no pagemap")
    memories = [_memory(directories, top, pid=pid) for pid in top.pids]
    memories += [_memory(directories, top, shmem_id=shmem_id) for shmem_id in top.shmem_ids]
    for memory in memories:
        for level in memory.levels:
            level.path = named(level.path)
    return Summary(
        path,
        tuple(named(directory.path) for directory in directories),
        tuple(directory.schema.value for directory in directories),
        tuple(memories),
    )


def _memory(
    directories: list[ImageDirectory],
    top: ImageDirectory,
    *,
    pid: int | None = None,
    shmem_id: int | None = None,
) -> MemorySummary:
    name = pagemap_name(pid=pid, shmem_id=shmem_id)
    memory = MemorySummary(name, pid, shmem_id)
    memory.levels = [_level(directory, name) for directory in directories]
    memory._held = sweep(top, name)
    starts: list[int] = []
    ends: list[int] = []
    for held in memory._held:
        n_pages = (sum(held.ends) - sum(held.starts)) >> blocks.PAGE_SHIFT
        memory.n_pages += n_pages
        memory.levels[held.level.depth].used_pages += n_pages
        starts += held.starts
        ends += held.ends
    # Runs of pages do not overlap, so their ends are in the order of their starts.
    starts.sort()
    ends.sort()
    memory.ranges = [
        (start, (end - start) >> blocks.PAGE_SHIFT) for start, end in Ranges.of(starts, ends)
    ]
    return memory


def _level(directory: ImageDirectory, name: str) -> LevelSummary:
    level = LevelSummary(directory.path, directory.schema.value)
    if not directory.has_pagemap(name):
        return level
    pagemap = directory.pagemap_by_name(name)
    columns = pagemap.columns
    level.stored_pages = pagemap.n_pages
    kinds = kinds_of(pagemap)
    level.n_zero, level.n_raw, level.n_lz4 = map(kinds.count, (ZERO, RAW, LZ4))
    for row, kind in enumerate(kinds) if None in kinds else ():
        if kind is None:
            zero, raw, lz4 = pagemap.entry(row).count_kinds()
            level.n_zero += zero
            level.n_raw += raw
            level.n_lz4 += lz4
    level.block_pages = max(pagemap.kinds_of_blocks, default=0)
    plain = [kind == UNCOMPRESSED for kind in kinds]
    level.n_uncompressed = sum(compress(columns.nr_pages, plain))
    if pagemap.payload_end:
        with directory.open_pages(pagemap.pages_name) as file:
            level.payload_bytes = file.size
            level.hole_bytes = file.holes.total
    return level


def kinds_of(pagemap: Pagemap) -> list[str | None]:
    """Return how the pages of each entry are stored; None for several blocks, "" for nowhere."""
    columns, sizes = pagemap.columns, pagemap.columns.sizes
    if not pagemap.schemas:
        return [UNCOMPRESSED if flags & PE_PRESENT else "" for flags in columns.flags]
    fields = zip(columns.table, columns.flags, columns.nr_pages, columns.block_pages, strict=True)
    return [
        (UNCOMPRESSED if flags & PE_PRESENT else "")
        if at == NO_TABLE
        else None
        if pages > block_pages
        else LZ4
        if 0 < sizes[at] != pages << blocks.PAGE_SHIFT
        else RAW
        if sizes[at]
        else ZERO
        for at, flags, pages, block_pages in fields
    ]


def stretches_of(levels: Iterable[Held]) -> list[Stretch]:
    """Return what the levels of a chain hold, ascending by address; neighbours alike are one."""
    found: list[tuple[int, int, int, str]] = []
    for held in levels:
        depth, pagemap = held.level.depth, held.level.pagemap
        kinds = kinds_of(pagemap)
        for start, end, row in zip(held.starts, held.ends, held.entries, strict=True):
            kind = kinds[row]
            if kind is not None:
                found.append((start, end, depth, kind))
            else:
                found += _parts(pagemap.entry(row), start, end, depth)
    found.sort()
    stretches: list[Stretch] = []
    last_start = last_end = last_depth = -1
    last_kind = ""
    for start, end, depth, kind in found:
        if start == last_end and depth == last_depth and kind == last_kind:
            last_end = end
            continue
        if last_kind:
            n_pages = (last_end - last_start) >> blocks.PAGE_SHIFT
            stretches.append(Stretch(last_start, n_pages, last_depth, last_kind))
        last_start, last_end, last_depth, last_kind = start, end, depth, kind
    if last_kind:
        n_pages = (last_end - last_start) >> blocks.PAGE_SHIFT
        stretches.append(Stretch(last_start, n_pages, last_depth, last_kind))
    return stretches


def _parts(
    entry: PagemapEntry, first: int, end: int, depth: int
) -> Iterator[tuple[int, int, int, str]]:
    """Yield the pages of a compressed entry from ``first`` to ``end``, by how they are stored."""
    assert entry.sizes is not None
    block_bytes = blocks.pages_to_bytes(entry.block_pages)
    start_block = (first - entry.vaddr) // block_bytes
    end_block = -(-(end - entry.vaddr) // block_bytes)
    for index, kind in _kind_runs(entry, entry.sizes, start_block, end_block):
        start = max(entry.vaddr + index.start * block_bytes, first)
        stop = min(entry.vaddr + index.stop * block_bytes, end)
        yield start, stop, depth, kind


def _kind_runs(
    entry: PagemapEntry, sizes: array[int], start: int, end: int
) -> Iterator[tuple[range, str]]:
    block_bytes = blocks.pages_to_bytes(entry.block_pages)
    last_bytes = blocks.pages_to_bytes(entry.nr_pages) - (entry.n_blocks - 1) * block_bytes
    run_start, run_kind = start, ""
    for index in range(start, end):
        raw = last_bytes if index == entry.n_blocks - 1 else block_bytes
        size = sizes[index]
        kind = ZERO if size == blocks.ZERO_SIZE else RAW if size == raw else LZ4
        if kind != run_kind:
            if index > run_start:
                yield range(run_start, index), run_kind
            run_start, run_kind = index, kind
    yield range(run_start, end), run_kind
