"""pagemap-*.img: which pages are stored, where their payload lies, and how it is compressed.

Reading checks everything that later arithmetic relies on; an entry that was accepted has sane
addresses, block counts and sizes. Fields that helperd does not know survive a rewrite.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, replace
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


@dataclass(slots=True)
class Pagemap:
    """A pagemap file: the id of its pages file and its entries, ascending by address.

    Attributes:
        path: the file it was read from.
        schemas: of the tables of its entries; both, if entries of two kinds stand side by side.
        head: first record as it was read.
        entries: checked, sorted, not overlapping.
    """

    path: str
    schemas: frozenset[Schema]
    head: pagemap_pb2.Head
    entries: list[PagemapEntry]

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
        return sum(entry.nr_pages for entry in self.entries if entry.present)

    @property
    def payload_end(self) -> int:
        """Bytes that the pages file must have; 0 when nothing is stored."""
        return max((entry.offset + entry.payload_bytes for entry in self.entries), default=0)


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
    return pagemap_of(read_entries(path))


def pagemap_of(columns: Entries) -> Pagemap:
    """Return a pagemap as objects; its tables are read now.

    Raises:
        ImageFormatError: a table contradicts its entry.
    """
    columns.load_tables()
    sizes, extra = columns.sizes, columns.extra
    entries = []
    rows = zip(
        columns.vaddr,
        columns.nr_pages,
        columns.flags,
        columns.block_pages,
        columns.table,
        columns.offset,
        columns.form,
        strict=True,
    )
    for vaddr, nr_pages, flags, block_pages, at, offset, form in rows:
        if at == NO_TABLE:
            payload = blocks.pages_to_bytes(nr_pages) if flags & PE_PRESENT else 0
            entry = PagemapEntry(vaddr, nr_pages, flags, 0, None, offset, payload, form)
        else:
            table = sizes[at : at + -(-nr_pages // block_pages)]
            # One page per block is the per-page mode, by another name.
            one_by_one = block_pages == 1 and (not form & HAS_REGION or form & REGION_ZERO)
            region_pages = 0 if one_by_one else block_pages
            payload = sum(table)
            entry = PagemapEntry(vaddr, nr_pages, flags, region_pages, table, offset, payload, form)
        entries.append(entry)
    for index, fields in extra.items():
        entries[index].extra = fields
    schemas = frozenset(map(Schema, columns.schemas))
    return Pagemap(columns.path, schemas, _decode_head(columns.head, columns.path), entries)


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
