"""A pagemap as columns: read in one sweep, small, and without the protobuf library.

The one reader of pagemaps: :mod:`helperd.images.pagemap` makes an object of each entry for whoever
rewrites them; a restore on demand uses the columns themselves. The tables of stored sizes, which
only decoding needs, are read later (:meth:`Entries.load_tables`).

Most entries are written in one way, and there may be hundreds of thousands. Such runs are matched
by an expression and decoded all at once; whatever does not fit is decoded field by field, and so
is everything about which there is something to complain.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from itertools import accumulate
from operator import le

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT, PAGE_SIZE, pages_to_bytes
from helperd.errors import ImageFormatError
from helperd.images.entry_fields import (
    HAS_COUNT,
    KNOWN_FLAGS,
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    Table,
    decode_fields,
    flags_of,
)
from helperd.images.fields import decode_varints, walk_fields
from helperd.images.tables import Tables

__all__ = ["NO_TABLE", "PE_LAZY", "PE_PARENT", "PE_PAYLOAD_ALIGNED", "PE_PRESENT", "Entries"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: The groups of _RECORD.
    Row = tuple[Any, ...]

#: Stands for the table of an entry that is not compressed.
NO_TABLE = (1 << 64) - 1

_MAGICS = struct.pack("<II", 0x54564319, 0x56084025)
_WORD = struct.Struct("<I")
_ADDRESS_END, _OFFSET_END = 1 << 64, 1 << 63
_CHECKSUM_FIELD = 28950
#: Records decoded at once; bounds the memory that it takes.
_AT_ONCE = 1 << 14

# A record of less than 64 KiB: its size, fields 1, 2, 5, perhaps 3 and 4, in order, then perhaps a
# table of the sizes schema.
_RECORD = re.compile(
    rb"(..)\0\0\x08([\x80-\xff]{0,9}[\x00-\x7f])\x10\0"
    rb"(?:\x18([\0\1]))?(?:\x20([\x00-\x7f]))?\x28([\x80-\xff]{0,4}[\x00-\x7f])"
    rb"(?:((?:\x30[\x80-\xff]{0,4}[\x00-\x7f])+)\x38([\x80-\xff]{0,7}[\x00-\x7f]))?",
    re.DOTALL,
)


class Entries:
    """The entries of one pagemap, column by column.

    Attributes:
        path: the file.
        head: the first record, as it is.
        pages_id: of the pages file.
        checksum: that the head has, which is right; None = it has none.
        vaddr: ``array('Q')``, address of each entry's first page.
        nr_pages: ``array('Q')``.
        flags: PE_* bits, one byte each; the legacy ``in_parent`` is folded in.
        form: ``array('H')``, which fields each was read with, see entry_fields.
        block_pages: ``array('H')``, pages of each block but the last; 1 = per page, or raw.
        offset: ``array('Q')``, file offset of each entry's first payload byte.
        payload_end: bytes that the pages file must have.
        table: ``array('Q')``, index in ``sizes`` of each entry's first block, or NO_TABLE.
        sizes: ``array('I')``, the stored sizes of all blocks; filled by :meth:`load_tables`.
        extra: unknown fields of the entries that have some, by index.
        schemas: of the tables, "sizes" and "blocks".
    """

    def __init__(self, path: str, data: bytes) -> None:
        """Read the pagemap file whose bytes are ``data``.

        Raises:
            ImageFormatError: broken framing, an entry that contradicts itself or its neighbours.
        """
        self.path = path
        self.head = b""
        self.pages_id = 0
        self.checksum: int | None = None
        self.vaddr = array("Q")
        self.nr_pages = array("Q")
        self.flags = bytearray()
        self.form = array("H")
        self.block_pages = array("H")
        self.offset = array("Q")
        self.table = array("Q")
        self.payload_end = 0
        self._tables = Tables(self, data)
        self.sizes = self._tables.sizes
        self.extra: dict[int, bytes] = {}
        self.schemas: set[str] = set()
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
        return self.offset[index] + self._tables.sum(at, at + block)

    def load_tables(self) -> None:
        """Read the tables of sizes; once done, does nothing.

        Raises:
            ImageFormatError: a table contradicts its entry.
        """
        self._tables.load()

    def table_of(self, index: int) -> array[int]:
        """Return the stored sizes of one entry's blocks without loading all tables.

        Raises:
            ImageFormatError: the table contradicts its entry.
        """
        return self._tables.of(index)

    def _read(self, data: bytes) -> None:
        if data[: len(_MAGICS)] != _MAGICS:
            raise ImageFormatError(
                f"{self.path}: starts with {data[:8].hex(' ') or 'nothing'}, not with"
                f" {_MAGICS.hex(' ')}: not the image its name says"
            )
        if len(data) == len(_MAGICS):
            raise ImageFormatError(f"{self.path}: has no head, so no pages file")
        start, at = self._frame(data, len(_MAGICS))
        self.head = data[start:at]
        self._read_head(self.head)
        wanted, checksum = self.checksum, zlib.crc32(struct.pack("<I", self.pages_id))
        total = len(data)
        view = memoryview(data)
        match, first = _RECORD.match, at
        rows: list[Row] = []
        while at < total:
            found = match(data, at)
            if found is not None:
                end = found.end()
                row = found.groups()
                size = row[0]
                if size[0] | size[1] << 8 == end - at - 4:
                    if wanted is not None:
                        checksum = zlib.crc32(view[at + 4 : end], checksum)
                    rows.append(row)
                    at = end
                    if len(rows) < _AT_ONCE:
                        continue
            if rows:
                self._add_rows(rows, data, first, at)
                rows, first = [], at
                continue
            start, end = self._frame(data, at)
            if wanted is not None:
                checksum = zlib.crc32(view[start:end], checksum)
            self._add_record(data, start, end)
            first = at = end
        self._add_rows(rows, data, first, at)
        if wanted is not None and wanted != checksum:
            raise ImageFormatError(
                f"{self.path}: its checksum is {checksum:#010x}, not {wanted:#010x}, which helperd"
                " wrote: corrupt, or changed by another tool"
            )

    def _frame(self, data: bytes, at: int) -> tuple[int, int]:
        """Return where the record at ``at`` begins and ends."""
        if len(data) - at < _WORD.size:
            raise ImageFormatError(f"{self.path}: record at offset {at} is cut off in its size")
        (size,) = _WORD.unpack_from(data, at)
        start = at + _WORD.size
        if start + size > len(data):
            raise ImageFormatError(
                f"{self.path}: record at offset {at} claims {size} bytes,"
                f" {len(data) - start} are left"
            )
        return start, start + size

    def _read_head(self, record: bytes) -> None:
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
        self.checksum = int.from_bytes(checksum, "little") if isinstance(checksum, bytes) else None

    def _add_rows(self, rows: list[Row], data: bytes, at: int, end: int) -> None:
        """Add the entries of matched records, which lie from ``at`` to ``end``."""
        if rows and not self._add_at_once(rows, at):
            while at < end:
                start, at = self._frame(data, at)
                self._add_record(data, start, at)

    def _add_at_once(self, rows: list[Row], at: int) -> bool:
        """Add matched records all at once; False, and nothing added, if something is odd."""
        sizes, vaddrs, parents, bits, counts, tables, totals = zip(*rows, strict=True)
        kinds = list(zip(bits, parents, strict=True))
        known = {
            kind: flags_of(*(None if field is None else field[0] for field in kind))
            for kind in set(kinds)
        }
        if any(flags & ~KNOWN_FLAGS or flags & 5 == 5 for flags, _ in known.values()):
            return False
        try:
            vaddr, nr_pages = decode_varints(vaddrs), decode_varints(counts)
        except ValueError:
            return False
        flags = bytes([known[kind][0] for kind in kinds])
        n_bytes = [count << PAGE_SHIFT for count in nr_pages]
        ends = [start + length for start, length in zip(vaddr, n_bytes, strict=True)]
        if (
            0 in nr_pages
            or any(start & (PAGE_SIZE - 1) for start in vaddr)
            or not all(map(le, ends, vaddr[1:]))
            or ends[-1] > _ADDRESS_END
            or (self.vaddr and vaddr[0] < self.end(-1))
        ):
            return False
        base, tables_found, n_sizes = len(self.vaddr), array("Q"), self._tables.n_sizes
        table = array("Q", (NO_TABLE,)) * len(rows)
        if any(tables):
            for index, (fields, total) in enumerate(zip(tables, totals, strict=True)):
                at += _WORD.size + (sizes[index][0] | sizes[index][1] << 8)
                if fields is None or total is None:
                    continue
                if not flags[index] & PE_PRESENT:
                    return False
                stop = at - len(total) - 1
                start = 0 if fields[1:] == total and nr_pages[index] == 1 else stop - len(fields)
                n_bytes[index] = payload = _number(total)
                tables_found.extend((base + index, start, stop, payload, 1))
                table[index] = n_sizes
                n_sizes += nr_pages[index]
        offset = self._offsets(flags, n_bytes)
        if offset is None:
            return False
        if tables_found:
            self.schemas.add("sizes")
            self._tables.add(tables_found, n_sizes)
        self.vaddr += vaddr
        self.nr_pages += nr_pages
        self.flags += flags
        self.form.extend([known[kind][1] | HAS_COUNT for kind in kinds])
        self.block_pages += array("H", (1,)) * len(rows)
        self.table += table
        self.offset += offset
        return True

    def _offsets(self, flags: bytes, n_bytes: list[int]) -> array[int] | None:
        """Return where payloads of so many bytes lie; None if beyond any file."""
        if any(bits & PE_PAYLOAD_ALIGNED for bits in set(flags)):
            offsets, end = array("Q"), self.payload_end
            for bits, length in zip(flags, n_bytes, strict=True):
                start, end = place(end, bits, length)
                if end >= _OFFSET_END:
                    return None
                offsets.append(start)
        else:
            lengths = [
                n if bits & PE_PRESENT else 0 for bits, n in zip(flags, n_bytes, strict=True)
            ]
            ends = list(accumulate(lengths, initial=self.payload_end))
            end = ends.pop()
            if end >= _OFFSET_END:
                return None
            offsets = array("Q", ends)
        self.payload_end = end
        return offsets

    def _add_record(self, data: bytes, start: int, end: int) -> None:
        """Add any entry, after checking it."""
        try:
            fields = decode_fields(data, start, end)
            self._check(fields.vaddr, fields.nr_pages, fields.flags, fields.block_pages)
            payload = pages_to_bytes(fields.nr_pages)
            if fields.table is not None:
                payload = fields.table.total
                if not fields.flags & PE_PRESENT:
                    raise ImageFormatError(
                        f"vaddr {fields.vaddr:#x} has compressed sizes but is not present"
                    )
            offset, payload_end = place(self.payload_end, fields.flags, payload)
            if payload_end >= _OFFSET_END:
                raise ImageFormatError(f"vaddr {fields.vaddr:#x} has its payload beyond any file")
        except ImageFormatError as error:
            raise self.broken(data, len(self.vaddr), str(error)) from error
        self._add_table(fields.table, -(-fields.nr_pages // fields.block_pages))
        self.payload_end = payload_end
        if fields.extra:
            self.extra[len(self.vaddr)] = fields.extra
        self.vaddr.append(fields.vaddr)
        self.nr_pages.append(fields.nr_pages)
        self.flags.append(fields.flags)
        self.form.append(fields.form)
        self.block_pages.append(fields.block_pages)
        self.offset.append(offset)

    def _add_table(self, table: Table | None, n_blocks: int) -> None:
        if table is None:
            self.table.append(NO_TABLE)
            return
        self.schemas.add("sizes" if table.flat else "blocks")
        n_sizes = self._tables.n_sizes
        self.table.append(n_sizes)
        found = (len(self.vaddr), table.start, table.end, table.total, table.flat)
        self._tables.add(found, n_sizes + n_blocks)

    def _check(self, vaddr: int, nr_pages: int, flags: int, block_pages: int) -> None:
        if vaddr % PAGE_SIZE:
            raise ImageFormatError(f"vaddr {vaddr:#x} is not a multiple of the page size")
        if nr_pages <= 0:
            raise ImageFormatError(f"vaddr {vaddr:#x} has no pages")
        if vaddr + pages_to_bytes(nr_pages) > _ADDRESS_END:
            raise ImageFormatError(f"{nr_pages} pages at {vaddr:#x} go beyond the address space")
        if flags & ~KNOWN_FLAGS:
            raise ImageFormatError(f"vaddr {vaddr:#x} has unknown flags {flags & ~KNOWN_FLAGS:#x}")
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

    def broken(self, data: bytes, index: int, why: str) -> ImageFormatError:
        """Return the error for the entry ``index`` of the file whose bytes are ``data``."""
        at = len(_MAGICS)
        for _ in range(index + 1):  # behind the head
            at = self._frame(data, at)[1]
        return ImageFormatError(f"{self.path}: entry {index} at offset {at}: {why}")


def place(offset: int, flags: int, payload: int) -> tuple[int, int]:
    """Return where an entry's payload of so many bytes begins and ends.

    Args:
        offset: where the payload before ends.
        flags: of the entry; one that is not present has no payload.
        payload: its bytes if it is present.
    """
    if not flags & PE_PRESENT:
        return offset, offset
    if flags & PE_PAYLOAD_ALIGNED:
        offset = -(-offset // PAGE_SIZE) * PAGE_SIZE
    return offset, offset + payload


def _number(varint: bytes) -> int:
    value = shift = 0
    for byte in varint:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value
