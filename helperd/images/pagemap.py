"""pagemap-*.img: which pages are stored, where their payload lies, and how it is compressed.

Reading checks everything that later arithmetic relies on; an entry that was accepted has sane
addresses, block counts and sizes. Fields that helperd does not know survive a rewrite.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from google.protobuf import message as protobuf
from google.protobuf.unknown_fields import UnknownFieldSet

from helperd import blocks
from helperd.errors import ImageFormatError, ShortImage
from helperd.images.inventory import Schema
from helperd.images.pb import pagemap_blocks_pb2, pagemap_pb2, pagemap_sizes_pb2
from helperd.images.records import PAGEMAP_MAGICS, read_records, write_magics, write_record

#: The pages are in the parent's images.
PE_PARENT = 1
#: The pages may be fetched after the restore (lazy-pages).
PE_LAZY = 2
#: The payload is in this image's pages file.
PE_PRESENT = 4
#: Blocks schema: the payload starts at the next page boundary of the pages file.
PE_PAYLOAD_ALIGNED = 8

_ADDRESS_END = 1 << 64
_OFFSET_END = 1 << 63
_COMPAT_END = 1 << 32
_TABLE_FIELD = 6
_KNOWN_FLAGS = {
    Schema.NONE: PE_PARENT | PE_LAZY | PE_PRESENT | PE_PAYLOAD_ALIGNED,
    Schema.SIZES: PE_PARENT | PE_LAZY | PE_PRESENT,
    Schema.BLOCKS: PE_PARENT | PE_LAZY | PE_PRESENT | PE_PAYLOAD_ALIGNED,
}


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
        message: the entry as it was read, without its table of sizes; b"" for a new entry.
    """

    vaddr: int
    nr_pages: int
    flags: int = PE_PRESENT
    region_pages: int = 0
    sizes: array[int] | None = None
    offset: int = 0
    payload_bytes: int = 0
    message: bytes = b""

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

    def part(self, first: int, end: int) -> PagemapEntry:
        """Return the uncompressed pages from ``first`` to before ``end`` as an entry."""
        start = blocks.pages_to_bytes(first)
        return replace(
            self,
            vaddr=self.vaddr + start,
            nr_pages=end - first,
            offset=self.offset + start,
            payload_bytes=blocks.pages_to_bytes(end - first),
        )


@dataclass(slots=True)
class Pagemap:
    """A pagemap file: the id of its pages file and its entries, ascending by address.

    Attributes:
        path: the file it was read from.
        schema: of its entries.
        head: first record as it was read.
        entries: checked, sorted, not overlapping.
    """

    path: str
    schema: Schema
    head: pagemap_pb2.Head
    entries: list[PagemapEntry]

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


def read_pagemap(path: str, schema: Schema) -> Pagemap:
    """Read and check a pagemap file; memory grows linearly with it.

    Args:
        path: the file.
        schema: what the inventory of its directory says.

    Raises:
        ImageFormatError: broken framing, an entry that contradicts itself, its neighbours, or the
            schema.
        ImageError: the file is missing or cannot be read.
    """
    head: pagemap_pb2.Head | None = None
    entries: list[PagemapEntry] = []
    offset = address = checksum = 0
    for at, payload in read_records(path, PAGEMAP_MAGICS):
        if head is None:
            head = _decode_head(payload, path)
            checksum = _first_checksum(head)
            continue
        checksum = zlib.crc32(payload, checksum)
        try:
            entry = decode_entry(payload, schema)
            _check_entry(entry, schema)
            if entry.vaddr < address:
                raise ImageFormatError(
                    f"vaddr {entry.vaddr:#x} lies before {address:#x}, the end of the last entry"
                )
            address = entry.end
            offset = place_payload(entry, offset)
        except ImageFormatError as error:
            raise ImageFormatError(
                f"{path}: entry {len(entries)} at offset {at}: {error}"
            ) from error
        entries.append(entry)
    if head is None:
        raise _no_head(path)
    if head.HasField("checksum") and head.checksum != checksum:
        raise ImageFormatError(
            f"{path}: its checksum is {checksum:#010x}, not {head.checksum:#010x}, which helperd"
            " wrote: corrupt, or changed by another tool"
        )
    return Pagemap(path, schema, head, entries)


def read_head(path: str) -> pagemap_pb2.Head:
    """Read the head of a pagemap file, which names its pages file.

    Raises:
        ImageFormatError: broken framing, or no head.
        ImageError: the file is missing or cannot be read.
    """
    for _, payload in read_records(path, PAGEMAP_MAGICS):
        return _decode_head(payload, path)
    raise _no_head(path)


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
        self._checksum = _first_checksum(head)
        self._write_head()

    def append(self, entry: PagemapEntry) -> None:
        """Write an entry, which lies behind all others."""
        payload = encode_entry(entry, self._schema)
        self._checksum = zlib.crc32(payload, self._checksum)
        write_record(self._stream, payload)

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


def decode_entry(payload: bytes, schema: Schema) -> PagemapEntry:
    """Decode the protobuf of one entry; ``offset`` and ``payload_bytes`` are left at 0.

    Raises:
        ImageFormatError: not an entry, or its field 6 belongs to another schema than ``schema``.
    """
    message = _parse_entry(payload, schema)
    sizes, region_pages = None, 0
    if isinstance(message, pagemap_sizes_pb2.Entry):
        region_pages = message.region_pages
        if message.compressed_size:
            sizes = array("I", message.compressed_size)
            total = message.total_compressed_size
            if message.HasField("total_compressed_size") and total != sum(sizes):
                raise ImageFormatError(
                    f"total_compressed_size is {total}, the blocks have {sum(sizes)} bytes"
                )
            message.ClearField("compressed_size")
        elif message.total_compressed_size:
            raise ImageFormatError(
                f"total_compressed_size is {message.total_compressed_size}, but there are no blocks"
            )
    elif message.HasField("blocks"):
        # One page per block is the per-page mode, by another name.
        region_pages = message.blocks.pages_per_block
        region_pages = 0 if region_pages == 1 else region_pages
        sizes = array("I", message.blocks.block_sizes)
        total = message.blocks.total_payload_size
        if total != sum(sizes):
            raise ImageFormatError(
                f"total_payload_size is {total}, the blocks have {sum(sizes)} bytes"
            )
        message.blocks.ClearField("block_sizes")
    return PagemapEntry(
        vaddr=message.vaddr,
        nr_pages=_decode_nr_pages(message),
        flags=_decode_flags(message),
        region_pages=region_pages,
        sizes=sizes,
        message=payload if sizes is None else message.SerializeToString(),
    )


def encode_entry(entry: PagemapEntry, schema: Schema) -> bytes:
    """Encode one entry: what was read, with the entry's own values and table put in.

    A new entry gets the encoding of new writers, nr_pages in field 5.

    Raises:
        ImageFormatError: the count does not fit the encoding in which the entry was read.
    """
    message = _new_message(schema)
    message.ParseFromString(entry.message)
    message.vaddr = entry.vaddr
    if entry.message and not message.HasField("nr_pages"):
        if entry.nr_pages >= _COMPAT_END:
            raise ImageFormatError(f"{entry.nr_pages} pages do not fit compat_nr_pages")
        message.compat_nr_pages = entry.nr_pages
    else:
        message.nr_pages = entry.nr_pages
        repeat = message.compat_nr_pages and entry.nr_pages < _COMPAT_END
        message.compat_nr_pages = entry.nr_pages if repeat else 0
    if not entry.message or _decode_flags(message) != entry.flags:
        message.flags = entry.flags
        message.ClearField("in_parent")
    if entry.sizes is not None:
        _encode_table(message, entry.sizes, entry.region_pages)
    return message.SerializeToString()


def without_table(entry: PagemapEntry, schema: Schema) -> PagemapEntry:
    """Return the entry as one of uncompressed pages, in any schema; its offset stays.

    Args:
        entry: of a pagemap in ``schema``.
        schema: it was read with.
    """
    message = _new_message(schema)
    message.ParseFromString(entry.message)
    if isinstance(message, pagemap_sizes_pb2.Entry):
        message.ClearField("compressed_size")
        message.ClearField("total_compressed_size")
        message.ClearField("region_pages")
    else:
        message.ClearField("blocks")
    return replace(
        entry,
        flags=entry.flags & ~PE_PAYLOAD_ALIGNED,
        region_pages=0,
        sizes=None,
        message=message.SerializePartialToString(),
    )


def _encode_table(
    message: pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry,
    sizes: array[int],
    region_pages: int,
) -> None:
    if isinstance(message, pagemap_sizes_pb2.Entry):
        message.compressed_size.extend(sizes)
        message.total_compressed_size = sum(sizes)
        if region_pages or message.HasField("region_pages"):
            message.region_pages = region_pages
    else:
        message.blocks.block_sizes.extend(sizes)
        message.blocks.total_payload_size = sum(sizes)
        message.blocks.pages_per_block = region_pages or 1


def _new_message(schema: Schema) -> pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry:
    # Schema.NONE reads with the sizes schema, whose extra fields are then absent.
    return pagemap_blocks_pb2.Entry() if schema is Schema.BLOCKS else pagemap_sizes_pb2.Entry()


def _parse_entry(
    payload: bytes, schema: Schema
) -> pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry:
    """Parse an entry, and refuse one whose field 6 is not what ``schema`` has there.

    Parsers of repeated numbers take a message for the packed encoding, and parsers of a message
    overlook numbers: without this look, luck would decide what a field 6 means.
    """
    seen = pagemap_pb2.FieldSix()
    message = _new_message(schema)
    try:
        seen.ParseFromString(payload)
        if seen.length_delimited and schema is not Schema.BLOCKS:
            raise _wrong_schema(schema)
        message.ParseFromString(payload)
    except protobuf.DecodeError as error:
        raise ImageFormatError(f"not a pagemap entry: {error}") from error
    # A field of another wire type than the schema's ends up among the unknown ones.
    unknown = UnknownFieldSet(message)
    if any(unknown[i].field_number == _TABLE_FIELD for i in range(len(unknown))):
        raise _wrong_schema(schema)
    sizes = message.compressed_size if isinstance(message, pagemap_sizes_pb2.Entry) else ()
    if sizes and schema is Schema.NONE:
        raise _wrong_schema(schema)
    if not message.IsInitialized():
        raise ImageFormatError("lacks vaddr or compat_nr_pages")
    return message


def _wrong_schema(schema: Schema) -> ImageFormatError:
    if schema is Schema.NONE:
        return ImageFormatError(
            "has compressed blocks, but no inventory beside it says that the image is compressed"
        )
    return ImageFormatError(
        f"has a field 6 that is not of the {schema.value} schema, which the inventory names"
    )


def _no_head(path: str) -> ImageFormatError:
    return ImageFormatError(f"{path}: has no head, so no pages file")


def _decode_head(payload: bytes, path: str) -> pagemap_pb2.Head:
    head = pagemap_pb2.Head()
    try:
        head.ParseFromString(payload)
    except protobuf.DecodeError as error:
        raise ImageFormatError(f"{path}: the first record is not a head: {error}") from error
    if not head.IsInitialized():
        raise ImageFormatError(f"{path}: the head does not name a pages file")
    return head


def _first_checksum(head: pagemap_pb2.Head) -> int:
    """Return the checksum of a pagemap without entries."""
    return zlib.crc32(struct.pack("<I", head.pages_id))


def _decode_nr_pages(message: pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry) -> int:
    if not message.HasField("nr_pages"):
        return message.compat_nr_pages
    if message.compat_nr_pages not in (0, message.nr_pages):
        raise ImageFormatError(
            f"nr_pages is {message.nr_pages}, compat_nr_pages {message.compat_nr_pages}"
        )
    return message.nr_pages


def _decode_flags(message: pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry) -> int:
    if message.in_parent:
        return message.flags | PE_PARENT
    return message.flags if message.HasField("flags") else PE_PRESENT


def _check_entry(entry: PagemapEntry, schema: Schema) -> None:
    """Check one entry by itself.

    Raises:
        ImageFormatError: saying what is wrong with it.
    """
    if entry.vaddr % blocks.PAGE_SIZE:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} is not a multiple of the page size")
    if entry.nr_pages <= 0:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} has no pages")
    if entry.end > _ADDRESS_END:
        raise ImageFormatError(
            f"{entry.nr_pages} pages at {entry.vaddr:#x} go beyond the address space"
        )
    if unknown := entry.flags & ~_KNOWN_FLAGS[schema]:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} has unknown flags {unknown:#x}")
    if entry.present and entry.in_parent:
        raise ImageFormatError(
            f"vaddr {entry.vaddr:#x} is both present and in the parent (flags {entry.flags:#x})"
        )
    if entry.region_pages > blocks.MAX_REGION_PAGES:
        raise ImageFormatError(
            f"vaddr {entry.vaddr:#x} has blocks of {entry.region_pages} pages,"
            f" at most {blocks.MAX_REGION_PAGES} are possible"
        )
    if entry.sizes is not None:
        _check_sizes(entry, entry.sizes)


def _check_sizes(entry: PagemapEntry, sizes: array[int]) -> None:
    if not entry.present:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} has compressed sizes but is not present")
    if len(sizes) != entry.n_blocks:
        raise ImageFormatError(
            f"vaddr {entry.vaddr:#x} has {len(sizes)} blocks, {entry.nr_pages} pages in blocks of"
            f" {entry.block_pages} need {entry.n_blocks}"
        )
    last_pages = entry.nr_pages - (entry.n_blocks - 1) * entry.block_pages
    for largest, n_pages in (
        (max(sizes), entry.block_pages),
        (sizes[-1], last_pages),
    ):
        if largest > blocks.max_stored_size(blocks.pages_to_bytes(n_pages)):
            raise ImageFormatError(
                f"vaddr {entry.vaddr:#x} has a stored size of {largest} for {n_pages} pages"
            )


def place_payload(entry: PagemapEntry, offset: int) -> int:
    """Set where the payload lies when the payload before ends at ``offset``; return its end."""
    if not entry.present:
        entry.offset = offset
        return offset
    if entry.flags & PE_PAYLOAD_ALIGNED:
        offset = -(-offset // blocks.PAGE_SIZE) * blocks.PAGE_SIZE
    entry.offset = offset
    if entry.sizes is None:
        entry.payload_bytes = blocks.pages_to_bytes(entry.nr_pages)
    else:
        entry.payload_bytes = sum(entry.sizes)
    end = entry.offset + entry.payload_bytes
    if end >= _OFFSET_END:
        raise ImageFormatError(f"vaddr {entry.vaddr:#x} has its payload beyond any file")
    return end
