"""Convert pagemaps of very many entries without an object for each: whatever has nothing odd."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from itertools import compress
from operator import eq
from typing import NamedTuple

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.images.entry_fields import CONTINUES, HAS_REGION, REGION_ZERO
from helperd.images.mappings import Mappings
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, PRESENT, Pagemap
from helperd.images.pagemap_writer import PlainColumns
from helperd.images.pagesfile import PagesFile
from helperd.offline.encode_entries import MAX_ENTRY_PAGES, Advance, Output, Storage, encode_pages

#: Stored sizes that may be held, of 16 GiB of pages: 16 MiB.
_MAX_PAGES = 1 << 22
_MAX_BYTES = 1 << 62
#: No block's size: of one with which no entry begins.
_NOT_FIRST = (1 << 32) - 1


def plain_columns(pagemap: Pagemap) -> PlainColumns | None:
    """Return the entries as those of uncompressed pages; None if some are more than that.

    Those are entries with fields that are not known, and entries that were cut.
    """
    columns = pagemap.columns
    if columns.extra or any(form & CONTINUES for form in set(columns.form)):
        return None
    if pages_to_bytes(pagemap.n_pages) >= _MAX_BYTES:
        return None  # which no file can have
    mask = ~(HAS_REGION | REGION_ZERO)
    return PlainColumns(
        columns.vaddr,
        columns.nr_pages,
        columns.flags.translate(bytes(bits & ~PE_PAYLOAD_ALIGNED for bits in range(256))),
        array("H", [form & mask for form in columns.form]),
    )


def may_be_columns(pagemap: Pagemap, source: PagesFile, storage: Storage) -> bool:
    """Return whether :func:`compress_columns` can compress what lies in ``source``.

    It can where every entry is compressed as it is, as a whole.
    """
    columns, mappings = pagemap.columns, storage.mappings
    return (
        not pagemap.schemas
        and not any(flags & PE_PAYLOAD_ALIGNED for flags in set(columns.flags))
        and not len(source.holes)
        and (mappings is None or not len(mappings.raw))
        and (mappings is None or not storage.region_pages or not _is_cut(pagemap, mappings))
        and max(columns.nr_pages, default=0) <= MAX_ENTRY_PAGES
        and pagemap.n_pages <= _MAX_PAGES
    )


def _is_cut(pagemap: Pagemap, mappings: Mappings) -> bool:
    """Return whether a mapping ends inside of an entry."""
    columns = pagemap.columns
    rows = ((it, bisect_left(columns.vaddr, it) - 1) for it in mappings.borders(0, 1 << 64))
    return any(row >= 0 and border < columns.end(row) for border, row in rows)


class Compressed(NamedTuple):
    """What became of pages.

    Attributes:
        sizes: stored size of each block.
        n_raw: blocks that are stored as they are.
        n_bytes: of the pages file.
    """

    sizes: array[int]
    n_raw: int
    n_bytes: int


def compress_columns(
    pagemap: Pagemap,
    source: PagesFile,
    target: int,
    storage: Storage,
    *,
    threads: int,
    advance: Advance,
) -> Compressed:
    """Compress all pages to a new pages file.

    Args:
        pagemap: of the pages; see :func:`may_be_columns`.
        source: where they are.
        target: descriptor of the new pages file.
        storage: how.
        threads: that encode.
        advance: is told of the progress.

    Raises:
        ShortImage: the source ends too early.
        OSError: from the system calls.
    """
    counts = list(compress(pagemap.columns.nr_pages, pagemap.columns.flags.translate(PRESENT)))
    block_pages = storage.region_pages or 1
    # What a block has that is stored raw, and with which an entry begins.
    raw_first = array("I")
    if storage.aligned:
        for count in counts:
            raw_first.append(pages_to_bytes(min(count, block_pages)))
            raw_first.extend((_NOT_FIRST,) * (-(-count // block_pages) - 1))
    sizes = array("I")
    n_raw = 0
    output = Output(target, 0)
    for pages, encoded in encode_pages(source, counts, storage, threads=threads):
        n_raw += sum(map(eq, encoded.sizes, map(PAGE_SIZE.__mul__, pages)))
        at = 0
        begin = 0
        if storage.aligned:
            firsts = map(eq, encoded.sizes, raw_first[len(sizes) : len(sizes) + len(pages)])
            for block in compress(range(len(pages)), firsts):
                end = at + sum(encoded.sizes[begin:block])
                output.put(encoded.payload, at, end)
                output.align()
                at, begin = end, block
        output.put(encoded.payload, at, len(encoded.payload))
        output.flush()
        sizes += encoded.sizes
        advance(pages_to_bytes(sum(pages)))
    os.ftruncate(target, output.end)
    return Compressed(sizes, n_raw, output.end)
