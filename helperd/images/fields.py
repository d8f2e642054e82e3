"""The fields of a protobuf message, found without the protobuf library.

Its import takes longer than a restore on demand may wait for. Long tables of numbers are still its
work: nothing else here decodes a million of them as fast. Source: protobuf's "Encoding" page.
"""

from __future__ import annotations

import re
from array import array

from helperd.errors import ImageFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

#: What an entry's table of sizes is: numbers one by one, or one field that holds them all.
_TABLE_FIELD = 6
_UNPACKED = re.compile(rb"(?:\x30[\x80-\xff]{0,9}[\x00-\x7f])+")
_UNPACKED_KEY = b"\x30"
_SHORT_BYTES = 64
_FIXED = {FIXED64: 8, FIXED32: 4}


def walk_fields(
    data: bytes, start: int = 0, end: int | None = None, *, table: bool = False
) -> Iterator[tuple[int, int, int | bytes, tuple[int, int]]]:
    """Yield (number, wire type, value, (start, end)) of each field of a message.

    Args:
        data: where the message is.
        start: of the message in it.
        end: of the message in it.
        table: pass over each run of numbers in fields 6 as one, with the value 0.

    Raises:
        ValueError: it is no message.
    """
    end = len(data) if end is None else end
    at = start
    while at < end:
        if table and data[at : at + 1] == _UNPACKED_KEY and (run := _UNPACKED.match(data, at, end)):
            yield _TABLE_FIELD, VARINT, 0, run.span()
            at = run.end()
            continue
        first = at
        key, at = read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = read_varint(data, at, end)
        elif kind == LENGTH or kind in _FIXED:
            length = _FIXED.get(kind, -1)
            if length < 0:
                length, at = read_varint(data, at, end)
            if length > end - at:
                raise ValueError(f"field {number} at {first} is cut off")
            value = data[at : at + length]
            at += length
        else:
            raise ValueError(f"field {number} at {first} has wire type {kind}")
        if not number:
            raise ValueError(f"a field 0 at {first}")
        yield number, kind, value, (first, at)


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number at ``at`` and where it ends.

    Raises:
        ValueError: it goes on beyond ``end`` or 64 bits.
    """
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
        shift += 7
        if shift >= 70:
            break
    raise ValueError(f"a number at {at} is cut off or too long")


def encode_varint(value: int) -> bytes:
    """Return a number as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def table_sizes(fields: bytes) -> array[int]:
    """Return the stored sizes in the last fields of a pagemap entry, from its field 6 on.

    Raises:
        ImageFormatError: there is no table of 32-bit numbers in them.
    """
    try:
        if len(fields) <= _SHORT_BYTES:
            return array("I", _short_table(fields))
        return _long_table(fields)
    except (ValueError, OverflowError) as error:
        raise ImageFormatError(f"not a table of stored sizes: {error}") from error


def _short_table(fields: bytes) -> Iterator[int]:
    found = list(walk_fields(fields, table=True))
    flat = any(number == 7 for number, *_ in found)
    for number, kind, value, (start, end) in found:
        if number != _TABLE_FIELD:
            continue
        if kind == VARINT:
            at = start
            while at < end:
                size, at = read_varint(fields, at + 1, end)
                yield size
            continue
        if not isinstance(value, bytes):
            raise ValueError("field 6 is neither numbers nor a message")
        bodies: list[int | bytes] = [value]
        if not flat:
            bodies = [content for key, _, content, _ in walk_fields(value) if key == 1]
        for body in bodies:
            if not isinstance(body, bytes):
                raise ValueError("block_sizes are not packed")
            at = 0
            while at < len(body):
                size, at = read_varint(body, at, len(body))
                yield size


def _long_table(fields: bytes) -> array[int]:
    from google.protobuf.message import DecodeError

    from helperd.images.pb import pagemap_blocks_pb2, pagemap_sizes_pb2

    message: pagemap_sizes_pb2.Entry | pagemap_blocks_pb2.Entry
    message = pagemap_sizes_pb2.Entry()
    flat = fields[:1] == _UNPACKED_KEY or 7 in {field[0] for field in walk_fields(fields)}
    try:
        if flat:
            # Merging takes what is there; that vaddr and others are not is no error then.
            message.MergeFromString(fields)
            return array("I", message.compressed_size)
        blocks = pagemap_blocks_pb2.Entry()
        blocks.MergeFromString(fields)
        return array("I", blocks.blocks.block_sizes)
    except DecodeError as error:
        raise ImageFormatError(f"not a table of stored sizes: {error}") from error
