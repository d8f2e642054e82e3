"""A pagemap as columns: read in one sweep, small, and without the protobuf library.

The one reader of pagemaps: :mod:`helperd.images.pagemap` makes an object of each entry for whoever
rewrites them; a restore on demand uses the columns themselves. The tables of stored sizes, which
only decoding needs, are read later (:meth:`Entries.load_tables`).

There may be hundreds of thousands of entries: they are decoded and checked many at a time, see
:mod:`helperd.images.shapes`. Where there is something to complain about they are gone through one
by one.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from itertools import accumulate, pairwise
from operator import add, le

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT, PAGE_SIZE, pages_to_bytes
from helperd.errors import ImageFormatError
from helperd.images.entry_fields import (
    KNOWN_FLAGS,
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    Table,
    decode_fields,
)
from helperd.images.fields import walk_fields
from helperd.images.shapes import FLAT_SIZE, LONGEST, NESTED_SIZE, decode_batch
from helperd.images.tables import NO_TABLE, Tables

__all__ = ["NO_TABLE", "PE_LAZY", "PE_PARENT", "PE_PAYLOAD_ALIGNED", "PE_PRESENT", "Entries"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.images.shapes import Batch

_MAGICS = struct.pack("<II", 0x54564319, 0x56084025)
_WORD = struct.Struct("<I")
_ADDRESS_END, _OFFSET_END = 1 << 64, 1 << 63
_CHECKSUM_FIELD = 28950
#: Records decoded at once; bounds the memory that it takes.
_AT_ONCE = 1 << 16
#: Fewer of the same length are not worth looking for.
_FEW = 64

#: How far on the next record is, by the frame of one that may have a shape.
_SHORT = {_WORD.pack(size): _WORD.size + size for size in range(LONGEST + 1)}
_SCHEMAS = {FLAT_SIZE: "sizes", NESTED_SIZE: "blocks"}


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
        checksum = zlib.crc32(struct.pack("<I", self.pages_id))
        total = len(data)
        while at < total:
            starts = _short_records(data, at)
            if len(starts) > 1:
                self._add_records(data, starts)
                at = starts[-1]
                checksum = self._further_checksum(checksum, data, starts)
                continue
            start, end = self._frame(data, at)
            self._add_record(data, start, end)
            checksum = self._further_checksum(checksum, data, (at, end))
            at = end
        if self.checksum is not None and self.checksum != checksum:
            raise ImageFormatError(
                f"{self.path}: its checksum is {checksum:#010x}, not {self.checksum:#010x}, which"
                " helperd wrote: corrupt, or changed by another tool"
            )

    def _further_checksum(self, checksum: int, data: bytes, starts: Sequence[int]) -> int:
        """Return the checksum continued by records, without their frames."""
        if self.checksum is None:
            return checksum
        if isinstance(starts, range):
            together = bytearray(data[starts[0] : starts[-1]])
            for index in range(_WORD.size):
                del together[0 :: starts.step - index]
            return zlib.crc32(together, checksum)
        view = memoryview(data)
        records = [view[start + 4 : end] for start, end in pairwise(starts)]
        return zlib.crc32(b"".join(records), checksum)

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

    def _add_records(self, data: bytes, starts: Sequence[int]) -> None:
        """Add entries, all at once unless something is odd with one of them."""
        try:
            batch = decode_batch(data, starts)
        except ImageFormatError:
            batch = None
        if batch is None or not self._add_batch(batch):
            # So that the complaint is about the first that there is something to complain about.
            for start, end in pairwise(starts):
                self._add_record(data, start + _WORD.size, end)

    def _add_batch(self, batch: Batch) -> bool:
        """Add entries; False, and nothing added, if there is something to complain about."""
        vaddr, nr_pages, flags = batch.vaddr, batch.nr_pages, batch.flags
        n_bytes = [count << PAGE_SHIFT for count in nr_pages]
        ends = list(map(add, vaddr, n_bytes))
        if (
            0 in nr_pages
            or any(map((PAGE_SIZE - 1).__and__, vaddr))
            or not all(map(le, ends, vaddr[1:]))
            or ends[-1] > _ADDRESS_END
            or (self.vaddr and vaddr[0] < self.end(-1))
            or max(batch.block_pages) > MAX_REGION_PAGES
            or any(bits & ~KNOWN_FLAGS or bits & 5 == 5 for bits in set(flags))
            or any(
                kind and not bits & PE_PRESENT
                for kind, bits in set(zip(batch.kind, flags, strict=True))
            )
            or not all(flags[row] & PE_PRESENT for row in batch.tables)
        ):
            return False
        payload = n_bytes
        if any(batch.kind):
            sizes = zip(batch.kind, batch.total, n_bytes, strict=True)
            payload = [total if kind else whole for kind, total, whole in sizes]
        for row, table in batch.tables.items():
            payload[row] = table.total
        offset = self._offsets(flags, payload)
        if offset is None:
            return False
        self.table += self._tables.add_batch(batch, len(self.vaddr))
        self.schemas |= {"sizes" if table.flat else "blocks" for table in batch.tables.values()}
        self.schemas |= {_SCHEMAS[kind] for kind in set(batch.kind) if kind}
        for row, fields in batch.extra.items():
            self.extra[len(self.vaddr) + row] = fields
        self.vaddr += vaddr
        self.nr_pages += nr_pages
        self.flags += flags
        self.form += batch.form
        self.block_pages += array("H", batch.block_pages.tolist())
        self.offset += offset
        return True

    def _offsets(self, flags: bytes | bytearray, n_bytes: list[int]) -> array[int] | None:
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


def _short_records(data: bytes, at: int) -> Sequence[int]:
    """Return where records that may have a shape begin, and where the last one ends."""
    step = _SHORT.get(data[at : at + _WORD.size])
    if step is None:
        return (at,)
    # Often all have the same length.
    count = min((len(data) - at) // step, _AT_ONCE)
    for index in range(_WORD.size):
        column = data[at + index : at + count * step : step]
        count = len(column) - len(column.lstrip(column[:1]))
        if count < _FEW:
            break
    else:
        return range(at, at + count * step + 1, step)
    starts = [at]
    while len(starts) <= _AT_ONCE and (frame := _SHORT.get(data[at : at + _WORD.size])):
        at += frame
        starts.append(at)
    if at > len(data):
        starts.pop()
    return starts


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
