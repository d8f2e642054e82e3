"""The fields of a protobuf message, found without the protobuf library.

Its import takes longer than a restore on demand may wait for. Source: protobuf's "Encoding" page.
"""

from __future__ import annotations

import re
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

#: What an entry's table of sizes is: numbers one by one, or one field that holds them all.
_TABLE_FIELD = 6
_UNPACKED = re.compile(rb"(?:\x30[\x80-\xff]{0,9}[\x00-\x7f])+")
_UNPACKED_KEY = b"\x30"
_FIXED = {FIXED64: 8, FIXED32: 4}
_ONE_BYTE = [bytes((value,)) for value in range(0x80)]
#: Bytes of the varints that are decoded side by side, and how: what stays, what moves, how far.
_LANE = 8
_SQUEEZE = (
    (0x007F007F007F007F, 0x7F007F007F007F00, 1),
    (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
    (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
)


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
    """Return a number of at most 64 bits as a varint."""
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_lanes(lanes: bytes | bytearray, count: int) -> array[int]:
    """Return the numbers of ``count`` varints, each filled up to 8 bytes with zeros.

    They are taken for one long integer, of which a few operations push the bits together, seven by
    seven: a fraction of the time that one by one takes.
    """
    bits = int.from_bytes(lanes, "little")
    for low, high, shift in _SQUEEZE:
        bits = bits & _repeat(low, count) | (bits & _repeat(high, count)) >> shift
    return array("Q", bits.to_bytes(_LANE * count, "little"))


def _repeat(lane: int, count: int) -> int:
    return int.from_bytes(lane.to_bytes(_LANE, "little") * count, "little")
