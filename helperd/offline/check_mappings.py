"""Check that blocks are what a CRIU restores: none crosses the border of a mapping."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from helperd import blocks
from helperd.images.directory import ImageDirectory
from helperd.images.entries import NO_TABLE
from helperd.images.mappings import Mappings, mappings_of
from helperd.images.pagemap import Pagemap, PagemapEntry
from helperd.offline.findings import PROBLEM, Finding


def check_mappings(directory: ImageDirectory, name: str, pagemap: Pagemap) -> list[Finding]:
    """Return what is wrong with the blocks of a pagemap, given the mappings they belong to.

    Raises:
        ImageError: the image of the mappings is broken.
    """
    if not pagemap.schemas:
        return []
    mappings = mappings_of(directory, name)
    if mappings is None:
        return []
    crossing: list[int] = []
    in_raw: list[int] = []
    for entry in _suspects(pagemap, mappings):
        if entry.block_pages > 1:
            crossing += _crossing(entry, mappings)
        if mappings.raw.overlaps(entry.vaddr, entry.end):
            in_raw += _lz4_in_raw(entry, mappings)
    findings = []
    for addresses, what in (
        (crossing, "the borders of mappings: CRIU restores them wrongly, some without an error"),
        (in_raw, "mappings of huge pages or of a plugin, which CRIU refuses"),
    ):
        if addresses:
            n_blocks = len(set(addresses))
            several = n_blocks > 1
            how = "cross" if addresses is crossing else "are LZ4 in"
            if not several:
                how = "crosses" if addresses is crossing else "is LZ4 in"
            message = (
                f"{pagemap.path}: {n_blocks} block{'s' if several else ''} {how} {what};"
                f" the first at {addresses[0]:#x}; helperd compress --force mends it"
            )
            findings.append(Finding(PROBLEM, pagemap.path, message, addresses[0]))
    return findings


def _suspects(pagemap: Pagemap, mappings: Mappings) -> Iterator[PagemapEntry]:
    """Yield the entries with a table that have a border inside, or pages that are stored raw."""
    columns = pagemap.columns
    borders = mappings.borders(0, 1 << 64)
    rows = {bisect_right(columns.vaddr, border) - 1 for border in borders}
    for start, end in mappings.raw:
        rows.update(range(bisect_right(columns.vaddr, start) - 1, bisect_left(columns.vaddr, end)))
    for row in sorted(rows):
        if row >= 0 and columns.table[row] != NO_TABLE:
            yield pagemap.entry(row)


def _crossing(entry: PagemapEntry, mappings: Mappings) -> list[int]:
    """Return the addresses of an entry's blocks that have a border in them."""
    block_bytes = blocks.pages_to_bytes(entry.block_pages)
    found: list[int] = []
    for border in mappings.borders(entry.vaddr, entry.end):
        inside = (border - entry.vaddr) % block_bytes
        if inside and (not found or found[-1] != border - inside):
            found.append(border - inside)
    return found


def _lz4_in_raw(entry: PagemapEntry, mappings: Mappings) -> list[int]:
    """Return the addresses of an entry's blocks of LZ4 that lie where CRIU wants none."""
    assert entry.sizes is not None
    block_bytes = blocks.pages_to_bytes(entry.block_pages)
    found = []
    for start, end in mappings.raw.within(entry.vaddr, entry.end):
        first = (start - entry.vaddr) // block_bytes
        for index in range(first, -(-(end - entry.vaddr) // block_bytes)):
            address = entry.vaddr + index * block_bytes
            whole = min(block_bytes, entry.end - address)
            if entry.sizes[index] not in (blocks.ZERO_SIZE, whole):
                found.append(address)
    return found
