"""A pagemap as arrays: read in one sweep, small, and without the protobuf library.

:mod:`helperd.images.pagemap` makes an object of each entry and keeps what it does not know, for
whoever rewrites a pagemap. A restore on demand waits for this instead: 300,000 entries must cost
neither 100 MB nor the import of a library. The tables of stored sizes, which only decoding needs,
are read later (:meth:`Entries.load_tables`). The tests hold both readers to the same answers.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from bisect import bisect_left

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SIZE,
    max_stored_size,
    pages_to_bytes,
)
from helperd.errors import ImageFormatError
from helperd.images.fields import LENGTH, VARINT, table_sizes, walk_fields

PE_PARENT, PE_LAZY, PE_PRESENT, PE_PAYLOAD_ALIGNED = 1, 2, 4, 8
#: Stands for the table of an entry that is not compressed.
NO_TABLE = (1 << 64) - 1

_MAGICS = struct.pack("<II", 0x54564319, 0x56084025)
_WORD = struct.Struct("<I")
_KNOWN_FLAGS = PE_PARENT | PE_LAZY | PE_PRESENT | PE_PAYLOAD_ALIGNED
_ADDRESS_END, _OFFSET_END, _COMPAT_END = 1 << 64, 1 << 63, 1 << 32
_CHECKSUM_FIELD = 28950
_SUMS_SHIFT = 8
_MAX_U64 = (1 << 64) - 1

# Fields 1 to 5 in order, as every writer has them, then perhaps a table and what follows it.
_PLAIN = re.compile(
    rb"\x08([\x80-\xff]{0,9}[\x00-\x7f])\x10([\x80-\xff]{0,9}[\x00-\x7f])"
    rb"(?:\x18([\x00-\x7f]))?(?:\x20([\x80-\xff]{0,9}[\x00-\x7f]))?"
    rb"(?:\x28([\x80-\xff]{0,9}[\x00-\x7f]))?"
)


class Entries:
    """The entries of one pagemap, column by column.

    Attributes:
        path: the file.
        pages_id: of the pages file.
        vaddr: ``array('Q')``, address of each entry's first page.
        nr_pages: ``array('Q')``.
        flags: PE_* bits, one byte each; the legacy ``in_parent`` is folded in.
        block_pages: ``array('H')``, pages of each block but the last; 1 = per page, or raw.
        offset: ``array('Q')``, file offset of each entry's first payload byte.
        payload_end: bytes that the pages file must have.
        table: ``array('Q')``, index in ``sizes`` of each entry's first block, or NO_TABLE.
        sizes: ``array('I')``, the stored sizes of all blocks; filled by :meth:`load_tables`.
    """

    def __init__(self, path: str, data: bytes) -> None:
        """Read the pagemap file whose bytes are ``data``.

        Raises:
            ImageFormatError: broken framing, an entry that contradicts itself or its neighbours.
        """
        self.path = path
        self.pages_id = 0
        self.vaddr = array("Q")
        self.nr_pages = array("Q")
        self.flags = bytearray()
        self.block_pages = array("H")
        self.offset = array("Q")
        self.table = array("Q")
        self.payload_end = 0
        self.sizes = array("I")
        self._data: bytes | None = data
        self._n_sizes = 0
        # Of each entry with a table: its index, where its fields from the table on begin and end,
        # and the bytes of its blocks.
        self._tables = array("Q")
        self._sums = array("Q", (0,))
        self._read(data)

    def __len__(self) -> int:
        return len(self.vaddr)

    def end(self, index: int) -> int:
        """Return the address after the last page of an entry."""
        return self.vaddr[index] + pages_to_bytes(self.nr_pages[index])

    def block_offset(self, index: int, block: int) -> int:
        """Return the file offset of the payload of a block of a present entry."""
        at = self.table[index]
        if at == NO_TABLE:
            return self.offset[index] + pages_to_bytes(block)
        return self.offset[index] + self._sum(at + block) - self._sum(at)

    def load_tables(self) -> None:
        """Read the tables of sizes; once done, does nothing.

        Raises:
            ImageFormatError: a table contradicts its entry.
        """
        if self._data is None:
            return
        data, tables = self._data, self._tables
        for at in range(0, len(tables), 4):
            index, start, end, total = tables[at : at + 4]
            self.sizes.extend(self._parse_table(index, data[start:end], total))
        self._data = None
        self._tables = array("Q")
        sizes, sums, total = self.sizes, self._sums, 0
        step = 1 << _SUMS_SHIFT
        for first in range(0, len(sizes) - step + 1, step):
            total += sum(sizes[first : first + step])
            sums.append(total)

    def table_of(self, index: int) -> array[int]:
        """Return the stored sizes of one entry's blocks without loading all tables.

        Raises:
            ImageFormatError: the table contradicts its entry.
        """
        n_blocks = -(-self.nr_pages[index] // self.block_pages[index])
        at = self.table[index]
        if self._data is None:
            return self.sizes[at : at + n_blocks]
        which = 4 * bisect_left(self._tables[0::4], index)
        _, start, end, total = self._tables[which : which + 4]
        return self._parse_table(index, self._data[start:end], total)

    def _sum(self, at: int) -> int:
        """Return the sum of the first ``at`` stored sizes of the file."""
        whole = at >> _SUMS_SHIFT
        return self._sums[whole] + sum(self.sizes[whole << _SUMS_SHIFT : at])

    def _read(self, data: bytes) -> None:
        if data[: len(_MAGICS)] != _MAGICS:
            raise ImageFormatError(
                f"{self.path}: starts with {data[:8].hex(' ') or 'nothing'}, not with"
                f" {_MAGICS.hex(' ')}: not the image its name says"
            )
        at, total = len(_MAGICS), len(data)
        head = True
        checksum = wanted = None
        match, size_at = _PLAIN.match, _WORD.unpack_from
        while at < total:
            if total - at < _WORD.size:
                raise ImageFormatError(f"{self.path}: record at offset {at} is cut off in its size")
            (size,) = size_at(data, at)
            start = at + _WORD.size
            end = start + size
            if end > total:
                raise ImageFormatError(
                    f"{self.path}: record at offset {at} claims {size} bytes,"
                    f" {total - start} are left"
                )
            at = end
            if head:
                head = False
                wanted = self._read_head(data[start:end])
                checksum = None if wanted is None else zlib.crc32(struct.pack("<I", self.pages_id))
                continue
            if checksum is not None:
                checksum = zlib.crc32(data[start:end], checksum)
            plain = match(data, start, end)
            try:
                if plain is not None and plain.end() == end:
                    self._add_plain(plain)
                else:
                    self._add(data, start, end)
            except ImageFormatError as error:
                raise self._broken(len(self.vaddr), str(error)) from error
        if head:
            raise ImageFormatError(f"{self.path}: has no head, so no pages file")
        if wanted is not None and wanted != checksum:
            raise ImageFormatError(
                f"{self.path}: its checksum is {checksum:#010x}, not {wanted:#010x}, which helperd"
                " wrote: corrupt, or changed by another tool"
            )

    def _broken(self, index: int, why: str) -> ImageFormatError:
        return ImageFormatError(f"{self.path}: entry {index}: {why}")

    def _read_head(self, record: bytes) -> int | None:
        try:
            fields = {number: value for number, _, value, _ in walk_fields(record)}
        except ValueError as error:
            raise ImageFormatError(
                f"{self.path}: the first record is not a head: {error}"
            ) from error
        pages_id = fields.get(1)
        if not isinstance(pages_id, int):
            raise ImageFormatError(f"{self.path}: the head does not name a pages file")
        self.pages_id = pages_id & 0xFFFFFFFF
        checksum = fields.get(_CHECKSUM_FIELD)
        return int.from_bytes(checksum, "little") if isinstance(checksum, bytes) else None

    def _add_plain(self, match: re.Match[bytes]) -> None:
        vaddr, compat, parent, flags, nr_pages = match.groups()
        count = _number(compat) & 0xFFFFFFFF
        if nr_pages is not None:
            count = _same_count(_number(nr_pages), count)
        in_parent = parent is not None and parent != b"\0"
        bits = None if flags is None else _number(flags)
        self._append(_number(vaddr), count, _flags(bits, in_parent=in_parent), 1, None)

    def _add(self, data: bytes, start: int, end: int) -> None:
        """Add an entry with a table, or in an unusual order, or with fields that are not known."""
        seen: dict[int, int | bytes] = {}
        table: tuple[int, int] | None = None
        kinds = set()
        try:
            for number, kind, value, span in walk_fields(data, start, end, table=True):
                if number == 6:
                    kinds.add(kind)
                    table = (span[0] if table is None else table[0], span[1])
                    continue
                seen[number] = value
        except ValueError as error:
            raise ImageFormatError(f"not a pagemap entry: {error}") from error
        vaddr, compat = _integer(seen, 1), _integer(seen, 2)
        if vaddr is None or compat is None:
            raise ImageFormatError("lacks vaddr or compat_nr_pages")
        count = compat & 0xFFFFFFFF
        nr_pages = _integer(seen, 5)
        if nr_pages is not None:
            count = _same_count(nr_pages, count)
        bits = _flags(_integer(seen, 4), in_parent=bool(_integer(seen, 3)))
        total, region = _integer(seen, 7), _integer(seen, 8) or 0
        if table is None:
            if total:
                raise ImageFormatError(f"total_compressed_size is {total}, but there are no blocks")
            self._append(vaddr, count, bits, 1, None)
            return
        if len(kinds) != 1 or kinds - {VARINT, LENGTH}:
            raise ImageFormatError("has a field 6 of no schema")
        if kinds == {LENGTH} and total is None:
            total, region = _blocks_header(data, *table)
        elif total is None:
            total = sum(table_sizes(data[table[0] : table[1]]))
        index = len(self.vaddr)
        self._append(vaddr, count, bits, region or 1, total)
        self._tables.extend((index, table[0], end, total))

    def _append(
        self, vaddr: int, nr_pages: int, flags: int, block_pages: int, total: int | None
    ) -> None:
        """Add an entry, ``total`` bytes of blocks, None = not compressed, after checking it."""
        if vaddr % PAGE_SIZE:
            raise ImageFormatError(f"vaddr {vaddr:#x} is not a multiple of the page size")
        if nr_pages <= 0:
            raise ImageFormatError(f"vaddr {vaddr:#x} has no pages")
        if vaddr + pages_to_bytes(nr_pages) > _ADDRESS_END:
            raise ImageFormatError(f"{nr_pages} pages at {vaddr:#x} go beyond the address space")
        if flags & ~_KNOWN_FLAGS:
            raise ImageFormatError(f"vaddr {vaddr:#x} has unknown flags {flags & ~_KNOWN_FLAGS:#x}")
        if flags & PE_PRESENT and flags & PE_PARENT:
            raise ImageFormatError(
                f"vaddr {vaddr:#x} is both present and in the parent (flags {flags:#x})"
            )
        if block_pages > MAX_REGION_PAGES:
            raise ImageFormatError(
                f"vaddr {vaddr:#x} has blocks of {block_pages} pages,"
                f" at most {MAX_REGION_PAGES} are possible"
            )
        if self.vaddr and vaddr < self.end(-1):
            raise ImageFormatError(
                f"vaddr {vaddr:#x} lies before {self.end(-1):#x}, the end of the last entry"
            )
        offset = self.payload_end
        if flags & PE_PRESENT:
            if flags & PE_PAYLOAD_ALIGNED:
                offset = -(-offset // PAGE_SIZE) * PAGE_SIZE
            end = offset + (pages_to_bytes(nr_pages) if total is None else total)
            if end >= _OFFSET_END:
                raise ImageFormatError(f"vaddr {vaddr:#x} has its payload beyond any file")
            self.payload_end = end
        elif total is not None:
            raise ImageFormatError(f"vaddr {vaddr:#x} has compressed sizes but is not present")
        self.vaddr.append(vaddr)
        self.nr_pages.append(nr_pages)
        self.flags.append(flags)
        self.block_pages.append(block_pages)
        self.offset.append(offset)
        if total is None:
            self.table.append(NO_TABLE)
        else:
            self.table.append(self._n_sizes)
            self._n_sizes += -(-nr_pages // block_pages)

    def _parse_table(self, index: int, fields: bytes, total: int) -> array[int]:
        try:
            sizes = table_sizes(fields)
            self._check_table(index, sizes, total)
        except ImageFormatError as error:
            raise self._broken(index, str(error)) from error
        return sizes

    def _check_table(self, index: int, sizes: array[int], total: int) -> None:
        block_pages, nr_pages = self.block_pages[index], self.nr_pages[index]
        vaddr = self.vaddr[index]
        n_blocks = -(-nr_pages // block_pages)
        if len(sizes) != n_blocks:
            raise ImageFormatError(
                f"vaddr {vaddr:#x} has {len(sizes)} blocks, {nr_pages} pages in blocks of"
                f" {block_pages} need {n_blocks}"
            )
        if sum(sizes) != total:
            raise ImageFormatError(f"its payload has {total} bytes, the blocks have {sum(sizes)}")
        last_pages = nr_pages - (n_blocks - 1) * block_pages
        for largest, n_pages in ((max(sizes), block_pages), (sizes[-1], last_pages)):
            if largest > max_stored_size(pages_to_bytes(n_pages)):
                raise ImageFormatError(
                    f"vaddr {vaddr:#x} has a stored size of {largest} for {n_pages} pages"
                )


def _number(varint: bytes) -> int:
    value = shift = 0
    for byte in varint:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value & _MAX_U64


def _integer(fields: dict[int, int | bytes], number: int) -> int | None:
    value = fields.get(number)
    if isinstance(value, bytes):
        raise ImageFormatError(f"field {number} is no number")
    return value


def _same_count(nr_pages: int, compat: int) -> int:
    if compat not in (0, nr_pages):
        raise ImageFormatError(f"nr_pages is {nr_pages}, compat_nr_pages {compat}")
    return nr_pages


def _flags(flags: int | None, *, in_parent: bool) -> int:
    if in_parent:
        return (flags or 0) & 0xFFFFFFFF | PE_PARENT
    return PE_PRESENT if flags is None else flags & 0xFFFFFFFF


def _blocks_header(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the payload bytes and the pages of a block of field 6 as a message."""
    fields = {}
    try:
        for _, _, body, span in walk_fields(data, start, end):
            if span[1] != end or not isinstance(body, bytes):
                raise ImageFormatError("has more than one field 6")
            fields = {number: value for number, _, value, _ in walk_fields(body)}
    except ValueError as error:
        raise ImageFormatError(f"not a table of blocks: {error}") from error
    total, block_pages = _integer(fields, 2), _integer(fields, 3)
    if total is None or not block_pages:
        raise ImageFormatError("a table of blocks without total_payload_size or pages_per_block")
    return total, block_pages
