"""Pagemap files, written entry by entry, in either schema."""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterable
from itertools import chain
from struct import pack
from typing import BinaryIO, NamedTuple

from helperd.blocks import pages_to_bytes
from helperd.errors import ImageFormatError
from helperd.images.entry_fields import (
    CONTINUES,
    CONTINUES_KEY,
    FLAGS_IN_PARENT,
    HAS_COUNT,
    HAS_FLAGS,
    HAS_IN_PARENT,
    HAS_REGION,
    IN_PARENT,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    REPEATS_COUNT,
    nested_extra,
)
from helperd.images.fields import encode_varint
from helperd.images.inventory import Schema
from helperd.images.pagemap import PagemapEntry
from helperd.images.pb import pagemap_blocks_pb2, pagemap_pb2, pagemap_sizes_pb2
from helperd.images.records import MAX_RECORD_BYTES, PAGEMAP_MAGICS, write_magics, write_record

_COMPAT_END = 1 << 32
#: Encodings that are kept.
_MAX_TAILS = 1 << 14
#: What the number of a page's address begins with, if it goes on: three bytes, for nine bits.
_LOW_BYTES = [encode_varint(1 << 21 | page << 12)[:3] for page in range(1 << 9)]
#: Entries that are written at once.
_AT_ONCE = 1 << 13
#: Longer tables are encoded faster by protobuf.
_SHORT_TABLE = 8


class PlainColumns(NamedTuple):
    """Entries without tables and without fields that are not known, column by column.

    Attributes:
        vaddr, nr_pages: ``array('Q')``.
        flags: one byte each.
        form: ``array('H')``.
    """

    vaddr: array[int]
    nr_pages: array[int]
    flags: bytes | bytearray
    form: array[int]


class PagemapWriter:
    """Writes a pagemap file entry by entry, as they come; it is valid once it has been finished.

    Args:
        stream: to write to, at its start; seekable if the head has a checksum.
        head: first record; its checksum, if it has one, is computed anew.
        schema: of the entries.
    """

    def __init__(self, stream: BinaryIO, head: pagemap_pb2.Head, schema: Schema) -> None:
        self._stream = stream
        self._head = head
        self._schema = schema
        self._tails: dict[tuple[int, ...], bytes] = {}
        self._checksum = zlib.crc32(pack("<I", head.pages_id))  # of a pagemap without entries
        self._write_head()

    def append(self, entry: PagemapEntry) -> None:
        """Write an entry, which lies behind all others.

        Raises:
            ImageFormatError: its count does not fit the form in which it was read.
            OSError: from the system.
        """
        payload = self._encode(entry)
        if len(payload) > MAX_RECORD_BYTES:
            write_record(self._stream, payload)  # which refuses it
        self._checksum = zlib.crc32(payload, self._checksum)
        self._stream.write(pack("<I", len(payload)) + payload)

    def append_columns(
        self,
        columns: PlainColumns,
        sizes: array[int] | None = None,
        region_pages: int = 0,
        *,
        aligned: bool = False,
    ) -> None:
        """Write very many entries, which lie behind all others.

        Args:
            columns: of them.
            sizes: stored size of each block of the present ones, one after the other; None: they
                are not compressed.
            region_pages: pages of their blocks, 0 = per page.
            aligned: what begins with a raw block begins at a page boundary, and an entry of raw
                blocks alone has no table.

        Raises:
            ImageFormatError, OSError: as :meth:`append` says.
        """
        payloads: list[bytes] = []
        at, block_pages = 0, region_pages or 1
        high = {0: b""}
        tails: dict[tuple[int, int, int, int], bytes] = {}
        for vaddr, nr_pages, flags, form in zip(*columns, strict=True):
            size, first, end = -1, at, at
            if sizes is not None and flags & PE_PRESENT:
                at = end = at + 1 if nr_pages <= block_pages else at - (-nr_pages // block_pages)
                size = sizes[first] if end - first == 1 else -1
            key = nr_pages, flags, form, size
            tail = tails.get(key) if end - first < 2 else None
            if tail is None:
                # Of the lowest address, which takes one byte.
                entry = PagemapEntry(0, nr_pages, flags, form=form)
                if sizes is not None and end > first:
                    _store(entry, sizes[first:end], region_pages, aligned=aligned)
                tail = encode_entry(entry, self._schema)[2:]
                if end - first < 2:
                    tails[key] = tail
            upper = vaddr >> 21
            if upper:
                address = high.get(upper)
                if address is None:
                    address = high[upper] = encode_varint(upper)
                address = _LOW_BYTES[vaddr >> 12 & 0x1FF] + address
            else:
                address = encode_varint(vaddr)
            payloads.append(b"\x08" + address + tail)
            if len(payloads) == _AT_ONCE:
                self._write(payloads)
                payloads.clear()
        self._write(payloads)

    def _write(self, payloads: list[bytes]) -> None:
        self._checksum = zlib.crc32(b"".join(payloads), self._checksum)
        frames = [len(payload).to_bytes(4, "little") for payload in payloads]
        self._stream.write(b"".join(chain.from_iterable(zip(frames, payloads, strict=True))))

    def _encode(self, entry: PagemapEntry) -> bytes:
        sizes = entry.sizes
        if entry.extra or (sizes is not None and len(sizes) != 1):
            return encode_entry(entry, self._schema)
        # Many entries say the same, but for where they are.
        size = -1 if sizes is None else sizes[0]
        key = entry.nr_pages, entry.flags, entry.form, entry.region_pages, size
        tail = self._tails.get(key)
        if tail is None:
            if len(self._tails) >= _MAX_TAILS:
                self._tails.clear()
            whole = encode_entry(entry, self._schema)
            tail = self._tails[key] = whole[1 + len(encode_varint(entry.vaddr)) :]
        return b"\x08" + encode_varint(entry.vaddr) + tail

    def finish(self) -> None:
        """Complete the file; the stream stays open."""
        if self._head.HasField("checksum"):
            # Of fixed length, so the record can be written again.
            self._head.checksum = self._checksum
            self._stream.seek(0)
            self._write_head()
            self._stream.seek(0, os.SEEK_END)

    def _write_head(self) -> None:
        write_magics(self._stream, PAGEMAP_MAGICS)
        write_record(self._stream, self._head.SerializeToString())


def _store(entry: PagemapEntry, sizes: array[int], region_pages: int, *, aligned: bool) -> None:
    """Let an entry have a table, unless it is all raw and such are to have none."""
    if aligned and sizes[0] == pages_to_bytes(min(entry.nr_pages, region_pages or 1)):
        entry.flags |= PE_PAYLOAD_ALIGNED
        if sum(sizes) == pages_to_bytes(entry.nr_pages):
            return
    entry.sizes, entry.region_pages = sizes, region_pages


def write_pagemap(
    stream: BinaryIO, head: pagemap_pb2.Head, entries: Iterable[PagemapEntry], schema: Schema
) -> None:
    """Write a whole pagemap file; the arguments are PagemapWriter's, and the sorted entries."""
    writer = PagemapWriter(stream, head, schema)
    for entry in entries:
        writer.append(entry)
    writer.finish()


def encode_entry(entry: PagemapEntry, schema: Schema) -> bytes:
    """Encode one entry in the form in which it was read; unknown fields come last.

    Raises:
        ImageFormatError: the count does not fit that form.
    """
    form, nr_pages, flags = entry.form, entry.nr_pages, entry.flags
    count = compat = b""
    if form & HAS_COUNT:
        count = b"\x28" + encode_varint(nr_pages)
        compat = encode_varint(nr_pages if form & REPEATS_COUNT and nr_pages < _COMPAT_END else 0)
    elif nr_pages < _COMPAT_END:
        compat = encode_varint(nr_pages)
    else:
        raise ImageFormatError(f"{nr_pages} pages do not fit compat_nr_pages")
    parent = b""
    if form & HAS_IN_PARENT:
        parent = b"\x18\x01" if form & IN_PARENT else b"\x18\0"
        if form & IN_PARENT and not form & FLAGS_IN_PARENT:
            flags &= ~PE_PARENT
    told = b""
    if form & HAS_FLAGS or flags != (0 if form & IN_PARENT else PE_PRESENT):
        told = b"\x20" + encode_varint(flags)
    nested, extra = nested_extra(entry.extra)
    table = b""
    if entry.sizes is not None:
        if schema is Schema.BLOCKS:
            table = _blocks_table(entry.sizes, entry.block_pages, nested)
        else:
            table = _sizes_table(entry.sizes)
            if entry.region_pages or form & HAS_REGION:
                table += b"\x40" + encode_varint(entry.region_pages)
    return b"".join(
        (
            b"\x08",
            encode_varint(entry.vaddr),
            b"\x10",
            compat,
            parent,
            told,
            count,
            table,
            CONTINUES_KEY if form & CONTINUES else b"",
            extra,
        )
    )


def _sizes_table(sizes: array[int]) -> bytes:
    if len(sizes) > _SHORT_TABLE:
        message = pagemap_sizes_pb2.Entry(compressed_size=sizes, total_compressed_size=sum(sizes))
        return message.SerializePartialToString()
    table = b"".join([b"\x30" + encode_varint(size) for size in sizes])
    return table + b"\x38" + encode_varint(sum(sizes))


def _blocks_table(sizes: array[int], pages_per_block: int, nested: bytes) -> bytes:
    """Return field 6 as a message; ``nested`` are its fields that are not known."""
    if len(sizes) > _SHORT_TABLE:
        body = pagemap_blocks_pb2.Blocks(block_sizes=sizes).SerializePartialToString()
    else:
        packed = b"".join(map(encode_varint, sizes))
        body = b"\x0a" + encode_varint(len(packed)) + packed
    body += b"\x10" + encode_varint(sum(sizes)) + b"\x18" + encode_varint(pages_per_block)
    body += nested
    return b"\x32" + encode_varint(len(body)) + body
