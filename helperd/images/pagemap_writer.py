"""Pagemap files, written entry by entry, in either schema."""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterable
from struct import pack
from typing import BinaryIO

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
#: Longer tables are encoded faster by protobuf.
_SHORT_TABLE = 8


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
