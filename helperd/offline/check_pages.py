"""Check the pages that a pagemap lists: every block is read and decoded."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from helperd import blocks
from helperd.codec.chunk import Chunk
from helperd.errors import CorruptBlock
from helperd.images.pagemap import Pagemap, PagemapEntry, check_pages_size
from helperd.images.pagesfile import Block, PagesFile, blocks_of, zero_lz4_blocks
from helperd.images.ranges import Ranges
from helperd.images.sweep import plan_pagemap
from helperd.offline.findings import PROBLEM, WARNING, Finding
from helperd.offline.parallel import ordered

# Zero blocks that are passed over together.
_ZERO_RUN = bytes(64)
# Pages of one file in the same trouble are told in so many lines at most.
_MAX_LINES = 20


def check_pages(
    pagemap: Pagemap,
    file: PagesFile,
    needed: Ranges,
    *,
    lost: str,
    threads: int,
    advance: Callable[[int], None],
) -> list[Finding]:
    """Decode all pages of a pagemap, and say what is wrong with them.

    Args:
        pagemap: of the pages.
        file: where they are.
        needed: addresses of the pages that a dump needs from here.
        lost: how severe a needed page in a hole is.
        threads: that decode.
        advance: is told of payload bytes that have been dealt with.

    Raises:
        ShortImage, ImageFormatError: the file is not as long as the pagemap says.
    """
    check_pages_size(pagemap, file.path, file.size, exact=True)
    troubles = _Troubles(file, needed, lost)
    with_holes = bool(len(file.holes))
    # All that is to be said of holes comes first.
    chunks: Iterable[Chunk] = plan_pagemap(
        pagemap, lambda entry: _data_parts((entry,), file, troubles), one_by_one=with_holes
    )
    if with_holes:
        chunks = list(chunks)

    def look(chunk: Chunk) -> tuple[Chunk, list[_Trouble]]:
        return chunk, list(_look(chunk, troubles))

    for chunk, found in ordered(look, chunks, threads):
        for trouble in found:
            troubles.add(trouble)
        advance(chunk.payload)
    return list(troubles.findings())


@dataclass(slots=True)
class _Trouble:
    """Neighbouring pages that have the same fault."""

    severity: str
    what: str
    vaddr: int
    n_pages: int
    detail: str = ""


class _Troubles:
    """The troubles of a pages file; neighbours become one."""

    def __init__(self, file: PagesFile, needed: Ranges, lost: str) -> None:
        self._path = file.path
        self.file = file
        self.needed = needed
        self._lost = lost
        self._found: list[_Trouble] = []
        self._n_more = 0

    def lost(self, block: Block) -> Iterator[_Trouble]:
        """Yield the pages of a block in a hole that are needed."""
        end = block.vaddr + blocks.pages_to_bytes(block.n_pages)
        for start, stop in self.needed.within(block.vaddr, end):
            yield _Trouble(self._lost, _IN_HOLE, start, (stop - start) >> blocks.PAGE_SHIFT)

    def add(self, trouble: _Trouble) -> None:
        last = self._found[-1] if self._found else None
        if (
            last is not None
            and (last.severity, last.what) == (trouble.severity, trouble.what)
            and last.vaddr + blocks.pages_to_bytes(last.n_pages) == trouble.vaddr
        ):
            last.n_pages += trouble.n_pages
        elif len(self._found) < _MAX_LINES or (
            # Rather a problem more than a problem hidden behind warnings.
            trouble.severity == PROBLEM and not any(t.severity == PROBLEM for t in self._found)
        ):
            self._found.append(trouble)
        else:
            self._n_more += trouble.n_pages

    def findings(self) -> Iterator[Finding]:
        severity = PROBLEM if any(t.severity == PROBLEM for t in self._found) else WARNING
        for trouble in self._found:
            detail = f"; the first: {trouble.detail}" if trouble.detail else ""
            message = (
                f"{self._path}: {trouble.n_pages} pages from {trouble.vaddr:#x} on"
                f" {trouble.what}{detail}"
            )
            yield Finding(trouble.severity, self._path, message, trouble.vaddr, trouble.n_pages)
        if self._n_more:
            message = f"{self._path}: {self._n_more} more pages are like these"
            yield Finding(severity, self._path, message)


_IN_HOLE = (
    "are needed but lie in holes of the file: punched out and lost, or zero pages that a copying"
    " tool left out (then see --holes-are-zeros)"
)
_CORRUPT = "do not decode"
_CORRUPT_UNUSED = "do not decode, but are superseded"


def _look(chunk: Chunk, troubles: _Troubles) -> Iterator[_Trouble]:
    """Read and decode a chunk; yield what is wrong with it. In any thread."""
    file = troubles.file
    try:
        decoded = file.decode(chunk)
    except CorruptBlock:
        yield from _look_closely(chunk, troubles)
        return
    were_holes = {page for page, _ in zero_lz4_blocks(chunk, decoded.live)}
    if not were_holes and not file.in_hole(chunk.offset, chunk.payload):
        return
    for block in blocks_of(chunk):
        if block.page in were_holes or file.in_hole(block.offset, block.size):
            yield from troubles.lost(block)


def _look_closely(chunk: Chunk, troubles: _Troubles) -> Iterator[_Trouble]:
    for block, content in troubles.file.decode_blocks(chunk):
        in_hole = troubles.file.in_hole(block.offset, block.size)
        if isinstance(content, CorruptBlock):
            end = block.vaddr + blocks.pages_to_bytes(block.n_pages)
            is_needed = troubles.needed.overlaps(block.vaddr, end)
            if in_hole and not is_needed:
                continue  # punched out, as it should be
            yield _Trouble(
                PROBLEM if is_needed else WARNING,
                _CORRUPT if is_needed else _CORRUPT_UNUSED,
                block.vaddr,
                block.n_pages,
                str(content),
            )
        elif in_hole:
            yield from troubles.lost(block)


def _data_parts(
    entries: Iterable[PagemapEntry], file: PagesFile, troubles: _Troubles
) -> Iterator[PagemapEntry]:
    """Yield the entries without what needs no reading: pages in holes, runs of zero blocks."""
    for entry in entries:
        if entry.sizes is not None:
            yield from _stored_parts(entry, entry.sizes)
            continue
        if not entry.present or not len(file.holes):
            yield entry
            continue
        holes = Ranges(
            (start >> blocks.PAGE_SHIFT, -(-end >> blocks.PAGE_SHIFT))
            for start, end in (
                (start - entry.offset, end - entry.offset)
                for start, end in file.holes.within(
                    entry.offset, entry.offset + entry.payload_bytes
                )
            )
        )
        for first, end in holes:
            lost = Block(0, entry.page_address(first), end - first, 0, 0)
            for trouble in troubles.lost(lost):
                troubles.add(trouble)
        for first, end in holes.gaps(0, entry.nr_pages):
            yield entry.part(first, end)


def _stored_parts(entry: PagemapEntry, sizes: array[int]) -> Iterator[PagemapEntry]:
    """Yield a compressed entry without its long runs of zero blocks.

    There is nothing to be read, and any number of pages can be claimed in a few bytes.
    """
    stored = bytes(map(bool, sizes))
    if _ZERO_RUN not in stored:
        yield entry
        return
    offset, first = entry.offset, stored.find(1)
    while first >= 0:
        start = stored.find(_ZERO_RUN, first)
        end = len(stored) if start < 0 else start
        part = sizes[first:end]
        page = first * entry.block_pages
        n_pages = min(entry.nr_pages, end * entry.block_pages) - page
        payload = sum(part)
        yield PagemapEntry(
            entry.page_address(page),
            n_pages,
            entry.flags,
            entry.region_pages,
            part,
            offset,
            payload,
        )
        offset += payload
        first = stored.find(1, end)
