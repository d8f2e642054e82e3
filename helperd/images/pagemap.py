"""pagemap-*.img: which pages are stored, where their payload lies, and how it is compressed.

Reading checks everything that later arithmetic relies on; an entry that was accepted has sane
addresses, block counts and sizes. Fields that helperd does not know survive a rewrite.
"""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import compress
from typing import NamedTuple

from google.protobuf import message as protobuf

from helperd import blocks
from helperd.errors import ImageFormatError, ShortImage
from helperd.images.entries import NO_TABLE, Entries, place
from helperd.images.entry_fields import (
    CONTINUES,
    HAS_REGION,
    NEW_FORM,
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    REGION_ZERO,
)
from helperd.images.inventory import Schema
from helperd.images.pb import pagemap_pb2
from helperd.images.records import PAGEMAP_MAGICS, open_image, os_failure, read_records

__all__ = ["PE_LAZY", "PE_PARENT", "PE_PAYLOAD_ALIGNED", "PE_PRESENT", "Pagemap", "PagemapEntry"]

#: Translates flags to 1 where the payload is in the image, to 0 elsewhere.
PRESENT = bytes(int(bool(flags & PE_PRESENT)) for flags in range(256))

_OFFSET_END = 1 << 63


class Kinds(NamedTuple):
    """How many blocks are all zero, stored raw, and LZ4."""

    zero: int
    raw: int
    lz4: int


@dataclass(slots=True)
class PagemapEntry:
    """A run of pages that are stored in the same way.

    Attributes:
        vaddr: address of the first page (for shared memory: offset in the object), in bytes.
        nr_pages: pages of the run, at least 1.
        flags: PE_* bits; the legacy ``in_parent`` is folded in.
        region_pages: pages of a block as the entry says it; 0 = per page.
        sizes: stored size of each block, None = not compressed.
        offset: file offset of the first payload byte in the pages file.
        payload_bytes: bytes of the payload in the pages file; 0 unless present.
        form: which fields it was read with, see :mod:`helperd.images.entry_fields`.
        extra: its fields that are not known.
    """

    vaddr: int
    nr_pages: int
    flags: int = PE_PRESENT
    region_pages: int = 0
    sizes: array[int] | None = None
    offset: int = 0
    payload_bytes: int = 0
    form: int = NEW_FORM
    extra: bytes = b""

    @property
    def end(self) -> int:
        """Address after the last page."""
        return self.vaddr + blocks.pages_to_bytes(self.nr_pages)

    @property
    def present(self) -> bool:
        """Whether the payload is in this image."""
        return bool(self.flags & PE_PRESENT)

    @property
    def in_parent(self) -> bool:
        """Whether the pages have to be taken from the parent."""
        return bool(self.flags & PE_PARENT)

    @property
    def block_pages(self) -> int:
        """Pages of every block but the last, which may be shorter."""
        return self.region_pages or 1

    @property
    def n_blocks(self) -> int:
        """Blocks that the pages make up."""
        return -(-self.nr_pages // self.block_pages)

    def page_address(self, page: int) -> int:
        """Return the address of the page number ``page`` of the run."""
        return self.vaddr + blocks.pages_to_bytes(page)

    def page_offset(self, page: int) -> int:
        """Return the file offset of the uncompressed page number ``page`` of the run."""
        return self.offset + blocks.pages_to_bytes(page)

    def count_kinds(self) -> Kinds:
        """Return how the blocks of a present entry are stored; uncompressed pages count as raw."""
        if self.sizes is None:
            return Kinds(0, self.nr_pages, 0)
        # Only the last block may be shorter than the others.
        block_bytes = blocks.pages_to_bytes(self.block_pages)
        last_bytes = blocks.pages_to_bytes(self.nr_pages) - (len(self.sizes) - 1) * block_bytes
        n_zero = self.sizes.count(blocks.ZERO_SIZE)
        n_raw = self.sizes[:-1].count(block_bytes) + (self.sizes[-1] == last_bytes)
        return Kinds(n_zero, n_raw, len(self.sizes) - n_zero - n_raw)

    def without_table(self) -> PagemapEntry:
        """Return it as an entry of uncompressed pages; its offset stays."""
        flags, form = self.flags & ~PE_PAYLOAD_ALIGNED, self.form & ~(HAS_REGION | REGION_ZERO)
        payload = blocks.pages_to_bytes(self.nr_pages) if self.present else 0
        return PagemapEntry(
            self.vaddr, self.nr_pages, flags, 0, None, self.offset, payload, form, self.extra
        )

    def with_table(self, sizes: array[int] | None, region_pages: int, flags: int) -> PagemapEntry:
        """Return it as an entry with these stored sizes, not yet placed."""
        return PagemapEntry(
            self.vaddr, self.nr_pages, flags, region_pages, sizes, 0, 0, self.form, self.extra
        )

    @property
    def is_raw(self) -> bool:
        """Whether its pages are stored as they are because LZ4 gains nothing.

        In the dialects that align payloads such an entry has no table. What was never compressed
        is not aligned.
        """
        return self.sizes is None and bool(self.flags & PE_PAYLOAD_ALIGNED)

    def part(self, first: int, end: int) -> PagemapEntry:
        """Return the uncompressed pages from ``first`` to before ``end`` as an entry."""
        start = blocks.pages_to_bytes(first)
        return replace(
            self,
            vaddr=self.vaddr + start,
            nr_pages=end - first,
            offset=self.offset + start,
            payload_bytes=blocks.pages_to_bytes(end - first),
            form=self.form | CONTINUES if first else self.form,
        )


class Pagemap:
    """A pagemap file: the id of its pages file and its entries, ascending by address.

    Args:
        columns: of its entries, which are read with their tables now.

    Attributes:
        path: the file it was read from.
        schemas: of the tables of its entries; both, if entries of two kinds stand side by side.
        head: first record as it was read.
        columns: its entries.

    Raises:
        ImageFormatError: a table contradicts its entry.
    """

    def __init__(self, columns: Entries) -> None:
        columns.load_tables()
        self.path = columns.path
        self.columns = columns
        self.schemas = frozenset(map(Schema, columns.schemas))
        self.head = _decode_head(columns.head, columns.path)

    @functools.cached_property
    def entries(self) -> list[PagemapEntry]:
        """The entries as objects, made when they are asked for: there may be very many."""
        return list(map(self.entry, range(len(self.columns))))

    def entry(self, index: int) -> PagemapEntry:
        """Return one entry as an object."""
        columns = self.columns
        nr_pages, flags, at = columns.nr_pages[index], columns.flags[index], columns.table[index]
        block_pages, form = columns.block_pages[index], columns.form[index]
        table, region_pages = None, 0
        payload = blocks.pages_to_bytes(nr_pages) if flags & PE_PRESENT else 0
        if at != NO_TABLE:
            table = columns.sizes[at : at + -(-nr_pages // block_pages)]
            # One page per block is the per-page mode, by another name.
            one_by_one = block_pages == 1 and (not form & HAS_REGION or form & REGION_ZERO)
            region_pages = 0 if one_by_one else block_pages
            payload = sum(table)
        return PagemapEntry(
            columns.vaddr[index],
            nr_pages,
            flags,
            region_pages,
            table,
            columns.offset[index],
            payload,
            form,
            columns.extra.get(index, b""),
        )

    @property
    def name(self) -> str:
        """Name of the file."""
        return os.path.basename(self.path)

    @property
    def is_process(self) -> bool:
        """Whether it is a process's; shared memory is never compressed."""
        return not self.name.startswith("pagemap-shmem-")

    @property
    def pages_name(self) -> str:
        """Name of the file with the payload, beside the pagemap."""
        return pages_name(self.head.pages_id)

    @property
    def n_pages(self) -> int:
        """Pages with a payload in this image."""
        return sum(compress(self.columns.nr_pages, self._present))

    @property
    def payload_end(self) -> int:
        """Bytes that the pages file must have; 0 when nothing is stored."""
        return self.columns.payload_end

    @property
    def n_blocks(self) -> int:
        """Blocks of the pages with a payload."""
        columns = self.columns
        if max(columns.block_pages, default=1) == 1:
            return self.n_pages
        blocks_of = [
            -(-pages // in_block)
            for pages, in_block in zip(columns.nr_pages, columns.block_pages, strict=True)
        ]
        return sum(compress(blocks_of, self._present))

    @property
    def has_raw(self) -> bool:
        """Whether an entry is stored raw because LZ4 gains nothing; see PagemapEntry.is_raw."""
        pairs = set(zip(self.columns.flags, self._without_table, strict=True))
        return any(flags & PE_PAYLOAD_ALIGNED and plain for flags, plain in pairs)

    @property
    def kinds_of_blocks(self) -> set[int]:
        """Pages of a block, of all entries that have a table."""
        with_table = (not plain for plain in self._without_table)
        return set(compress(self.columns.block_pages, with_table))

    @property
    def largest_region(self) -> int:
        """Pages of the largest blocks in region mode, 0 = all are single pages."""
        columns = self.columns
        largest = max(columns.block_pages, default=1)
        if largest > 1:
            return largest
        forms = set(compress(columns.form, (not plain for plain in self._without_table)))
        return int(any(form & HAS_REGION and not form & REGION_ZERO for form in forms))

    def uncompressed(self) -> Iterator[PagemapEntry]:
        """Yield the present entries that nobody has tried to compress."""
        for index, (flags, at) in enumerate(
            zip(self.columns.flags, self.columns.table, strict=True)
        ):
            if at == NO_TABLE and flags & PE_PRESENT and not flags & PE_PAYLOAD_ALIGNED:
                yield self.entry(index)

    @property
    def _present(self) -> bytearray:
        return self.columns.flags.translate(PRESENT)

    @property
    def _without_table(self) -> list[bool]:
        return [at == NO_TABLE for at in self.columns.table]


def pages_name(pages_id: int) -> str:
    """Return the name of the pages file with this id."""
    return f"pages-{pages_id}.img"


def check_pages_size(pagemap: Pagemap, path: str, size: int, *, exact: bool) -> None:
    """Compare the size of a pages file with what its pagemap says.

    Args:
        pagemap: with its entries.
        path: of the pages file.
        size: its bytes.
        exact: it must not be longer either. It is when the pagemap has lost entries at its end.

    Raises:
        ShortImage: it ends before the payload does.
        ImageFormatError: it goes on after the payload.
    """
    if size < pagemap.payload_end:
        raise ShortImage(
            f"{path}: ends at offset {size}, its pagemap {pagemap.path} needs"
            f" {pagemap.payload_end} bytes"
        )
    if exact and size > pagemap.payload_end:
        raise ImageFormatError(
            f"{path}: has {size} bytes, but its pagemap {pagemap.path} knows of"
            f" {pagemap.payload_end} only; the rest would be lost"
        )


def read_pagemap(path: str) -> Pagemap:
    """Read and check a pagemap file; memory grows linearly with it.

    Raises:
        ImageFormatError: broken framing, an entry that contradicts itself or its neighbours.
        ImageError: the file is missing or cannot be read.
    """
    return Pagemap(read_entries(path))


def read_entries(path: str) -> Entries:
    """Read a pagemap file as columns; raises as :func:`read_pagemap` does."""
    with open_image(path) as stream:
        try:
            data = stream.read()
        except OSError as error:
            raise os_failure(error, f"cannot read {path}") from error
    return Entries(path, data)


def read_head(path: str) -> pagemap_pb2.Head:
    """Read the head of a pagemap file, which names its pages file.

    Raises:
        ImageFormatError: broken framing, or no head.
        ImageError: the file is missing or cannot be read.
    """
    for _, payload in read_records(path, PAGEMAP_MAGICS):
        return _decode_head(payload, path)
    raise ImageFormatError(f"{path}: has no head, so no pages file")


def place_payload(entry: PagemapEntry, offset: int) -> int:
    """Set where the payload lies when the payload before ends at ``offset``; return its end.

    Raises:
        ImageFormatError: beyond any file.
    """
    payload = blocks.pages_to_bytes(entry.nr_pages) if entry.sizes is None else sum(entry.sizes)
    entry.offset, end = place(offset, entry.flags, payload)
    entry.payload_bytes = end - entry.offset
    if end >= _OFFSET_END:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} has its payload beyond any file")
    return end


def _decode_head(payload: bytes, path: str) -> pagemap_pb2.Head:
    head = pagemap_pb2.Head()
    try:
        head.ParseFromString(payload)
    except protobuf.DecodeError as error:
        raise ImageFormatError(f"{path}: the first record is not a head: {error}") from error
    if not head.IsInitialized():
        raise ImageFormatError(f"{path}: the head does not name a pages file")
    return head
