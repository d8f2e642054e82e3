"""One entry of a pagemap, field by field; no protobuf library, whose import takes too long here.

Three dialects of compressed entries exist. Which one an entry has, its own fields say:

=========  ================================================================================
sizes      field 7 is there, or field 6 is numbers one by one: field 6 are the stored sizes
           (one by one, or packed), 7 is their sum, 8 the pages of a block
blocks     field 6 is a message: 1 the stored sizes (packed), 2 their sum, 3 pages of a block
=========  ================================================================================

A packed field 6 and a message look alike on the wire; field 7, which every writer of the first
puts, tells them apart. Sources: CRIU pull request 2895, what it became, and merged CRIU's images.
"""

from __future__ import annotations

from helperd.errors import ImageFormatError
from helperd.images.fields import LENGTH, VARINT, encode_varint, read_varint, walk_fields
from helperd.images.sizes import table_sizes

#: The pages are in the parent's images.
PE_PARENT = 1
#: The pages may be fetched after the restore (lazy-pages).
PE_LAZY = 2
#: The payload is in this image's pages file.
PE_PRESENT = 4
#: The payload starts at the next page boundary of the pages file.
PE_PAYLOAD_ALIGNED = 8
KNOWN_FLAGS = PE_PARENT | PE_LAZY | PE_PRESENT | PE_PAYLOAD_ALIGNED

#: Which fields an entry was read with, so that it can be written as it was.
HAS_FLAGS, HAS_COUNT, REPEATS_COUNT = 1, 2, 4
#: Field 3, the legacy mark, is there; and it is true; and flags say so as well.
HAS_IN_PARENT, IN_PARENT, FLAGS_IN_PARENT = 8, 16, 32
#: Field 8 is there, 0 though it may be.
HAS_REGION, REGION_ZERO = 64, 128
#: helperd cut the entry off from the one before: see CONTINUES_FIELD.
CONTINUES = 256
#: An entry as CRIU writes it since 4.2; one as it did up to 4.1, its count in field 2 alone.
NEW_FORM, OLD_FORM = HAS_FLAGS | HAS_COUNT, HAS_FLAGS

#: helperd's own field, not CRIU's, who ignores it: the entry was one with the entry before until
#: it was compressed. Decompressing puts them together again.
CONTINUES_FIELD = 28951
CONTINUES_KEY = bytes.fromhex("b8910e01")

_NUMBERS = frozenset((1, 2, 3, 4, 5, 7, 8))
_TABLE_FIELD = 6
#: Key of a field 6 that is length-delimited.
_TABLE_KEY = b"\x32"


class Table:
    """Where the stored sizes of an entry are, and their sum.

    Attributes:
        start: of the fields that hold them, in the file.
        end: of these fields.
        flat: they are of the sizes schema.
        total: of all sizes, as the entry says it.
    """

    __slots__ = ("end", "flat", "start", "total")

    def __init__(self, start: int, end: int, flat: bool, total: int) -> None:
        self.start = start
        self.end = end
        self.flat = flat
        self.total = total


class Fields:
    """What an entry says.

    Attributes:
        vaddr: address of the first page.
        nr_pages: from whichever field has it.
        flags: PE_* bits, the legacy mark folded in.
        form: which fields it has.
        block_pages: pages of a block; 1 = per page, and also where there is no table.
        table: of the stored sizes; None = not compressed.
        extra: the fields that are not known, to be written again.
    """

    __slots__ = ("block_pages", "extra", "flags", "form", "nr_pages", "table", "vaddr")

    def __init__(
        self,
        vaddr: int,
        nr_pages: int,
        flags: int,
        form: int,
        block_pages: int,
        table: Table | None,
        extra: bytes,
    ) -> None:
        self.vaddr = vaddr
        self.nr_pages = nr_pages
        self.flags = flags
        self.form = form
        self.block_pages = block_pages
        self.table = table
        self.extra = extra


def decode_fields(data: bytes, start: int, end: int) -> Fields:
    """Decode the entry in ``data`` from ``start`` to ``end``; its table is found, not read.

    Raises:
        ImageFormatError: it is none, or its fields contradict each other.
    """
    numbers: dict[int, int] = {}
    extra = b""
    first = last = -1
    kinds: set[int] = set()
    region = b""
    try:
        for number, kind, value, span in walk_fields(data, start, end, table=True):
            if number == _TABLE_FIELD:
                kinds.add(kind)
                first, last = span[0] if first < 0 else first, span[1]
            elif number in _NUMBERS:
                if not isinstance(value, int):
                    raise ImageFormatError(f"field {number} is no number")
                numbers[number] = value
                if number == 8:
                    region = data[span[0] : span[1]]
            elif number == CONTINUES_FIELD and kind == VARINT:
                numbers[number] = value  # type: ignore[assignment]
            else:
                extra += data[span[0] : span[1]]
    except ValueError as error:
        raise ImageFormatError(f"not a pagemap entry: {error}") from error
    if 1 not in numbers or 2 not in numbers:
        raise ImageFormatError("lacks vaddr or compat_nr_pages")
    flags, form = flags_of(numbers.get(4), numbers.get(3))
    nr_pages, count_form = count_of(numbers.get(5), numbers[2])
    form |= count_form | (CONTINUES if numbers.get(CONTINUES_FIELD) else 0)
    total = numbers.get(7)
    if not kinds:
        if total:
            raise ImageFormatError(f"total_compressed_size is {total}, but there are no blocks")
        return Fields(numbers[1], nr_pages, flags, form, 1, None, extra)
    if len(kinds) != 1 or kinds - {VARINT, LENGTH}:
        raise ImageFormatError("has a field 6 of no schema")
    if kinds == {LENGTH} and total is None:
        total, block_pages, unknown = _blocks_header(data, first, last)
        if unknown:
            extra = _TABLE_KEY + encode_varint(len(unknown)) + unknown + extra
        table = Table(first, last, False, total)
        return Fields(numbers[1], nr_pages, flags, form, block_pages, table, extra + region)
    block_pages = numbers.get(8, 0)
    if 8 in numbers:
        form |= HAS_REGION | (0 if block_pages else REGION_ZERO)
    if total is None:
        total = sum(table_sizes(data[first:last], flat=True))
    table = Table(first, last, True, total)
    return Fields(numbers[1], nr_pages, flags, form, block_pages or 1, table, extra)


def flags_of(flags: int | None, in_parent: int | None) -> tuple[int, int]:
    """Return an entry's flags and its form from its fields 4 and 3, None = not there."""
    form = 0
    bits = PE_PRESENT if flags is None and not in_parent else (flags or 0) & 0xFFFFFFFF
    if flags is not None:
        form |= HAS_FLAGS
    if in_parent is not None:
        form |= HAS_IN_PARENT
    if in_parent:
        form |= IN_PARENT | (FLAGS_IN_PARENT if bits & PE_PARENT else 0)
        bits |= PE_PARENT
    return bits, form


def count_of(nr_pages: int | None, compat: int) -> tuple[int, int]:
    """Return an entry's count and its form from its fields 5 and 2.

    Raises:
        ImageFormatError: they contradict each other.
    """
    compat &= 0xFFFFFFFF
    if nr_pages is None:
        return compat, 0
    if compat not in (0, nr_pages):
        raise ImageFormatError(f"nr_pages is {nr_pages}, compat_nr_pages {compat}")
    return nr_pages, HAS_COUNT | (REPEATS_COUNT if compat else 0)


def nested_extra(extra: bytes) -> tuple[bytes, bytes]:
    """Return unknown fields of an entry's table of blocks, and those of the entry itself."""
    if not extra.startswith(_TABLE_KEY):
        return b"", extra
    length, at = read_varint(extra, 1, len(extra))
    return extra[at : at + length], extra[at + length :]


def _blocks_header(data: bytes, start: int, end: int) -> tuple[int, int, bytes]:
    """Return the payload bytes and the pages of a block of field 6 as a message, and the rest."""
    numbers: dict[int, int] = {}
    unknown = b""
    try:
        for _, _, body, span in walk_fields(data, start, end):
            if span[1] != end or not isinstance(body, bytes):
                raise ImageFormatError("has more than one field 6")
            for number, _, value, (first, last) in walk_fields(body):
                if number in (2, 3) and isinstance(value, int):
                    numbers[number] = value
                elif number != 1:
                    unknown += body[first:last]
    except ValueError as error:
        raise ImageFormatError(f"has a field 6 of no schema: {error}") from error
    if 2 not in numbers or not numbers.get(3):
        raise ImageFormatError("has a field 6 without total_payload_size or pages_per_block")
    return numbers[2], numbers[3], unknown
