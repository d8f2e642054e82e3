"""The stored sizes in an entry's table, whichever of the two schemas it has.

Sizes of single pages, and many others, take one byte or two: those are decoded many at a time. The
protobuf library is left for long tables of larger ones: its import takes longer than a restore on
demand may wait for.
"""

from __future__ import annotations

from array import array

from helperd.errors import ImageFormatError
from helperd.images.fields import VARINT, read_varint, walk_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLE_FIELD = 6
#: Of a number by itself.
_KEY = b"\x30"
#: Sizes in fewer bytes are decoded one by one.
_FEW_BYTES = 32
#: Fields of more bytes are worth the import of the protobuf library.
_MANY_BYTES = 1 << 15
_LONE = bytes(range(0x80))
_CONTINUED = bytes(range(0x80, 0x100))
#: 1 for a byte that another one of the same number follows.
_GOES_ON = bytes(byte >> 7 for byte in range(256))
#: 1 for a number of two bytes, 0 for one of one.
_ONE, _TWO = b"\0", b"\1"
_KEYED_TWO = b"\0\1\0"
#: What a first byte of two, and a second one, adds to the lower and the higher byte of a number.
_LOW_FIRST = bytes(byte & 0x7F for byte in range(256))
_LOW_SECOND = bytes(byte << 7 & 0x80 for byte in range(256))
_HIGH_SECOND = bytes(byte >> 1 & 0x3F for byte in range(256))


def table_sizes(fields: bytes, *, flat: bool) -> array[int]:
    """Return the stored sizes in an entry's fields 6.

    Args:
        fields: from the first field 6 to the end of the last.
        flat: they are of the sizes schema.

    Raises:
        ImageFormatError: they are no 32-bit numbers.
    """
    if flat and fields[:1] == _KEY and (sizes := _decode_short(fields, is_keyed=True)) is not None:
        return sizes
    sizes = array("I")
    try:
        for part, is_keyed in _parts(fields, flat=flat):
            some = _decode_short(part, is_keyed=is_keyed)
            if some is not None:
                sizes += some
            elif len(fields) > _MANY_BYTES:
                return _with_protobuf(fields, flat=flat)
            else:
                sizes.extend(_one_by_one(part, is_keyed=is_keyed))
    except (ValueError, OverflowError) as error:
        raise ImageFormatError(f"not a table of stored sizes: {error}") from error
    return sizes


def _parts(fields: bytes, *, flat: bool) -> Iterator[tuple[bytes, bool]]:
    """Yield numbers that follow one another, and whether each has a key of one byte before it."""
    for number, kind, value, (start, end) in walk_fields(fields, table=True):
        if number != _TABLE_FIELD:
            continue
        if kind == VARINT:
            yield fields[start:end], True
            continue
        bodies: list[int | bytes] = [value]
        if not flat:
            assert isinstance(value, bytes)
            bodies = [content for key, _, content, _ in walk_fields(value) if key == 1]
        for body in bodies:
            if not isinstance(body, bytes):
                raise ValueError("block_sizes are not packed")
            yield body, False


def _one_by_one(part: bytes, *, is_keyed: bool) -> Iterator[int]:
    at = 0
    while at < len(part):
        size, at = read_varint(part, at + is_keyed, len(part))
        yield size


def _decode_short(part: bytes, *, is_keyed: bool) -> array[int] | None:
    """Return the numbers; None if they are few or longer, or there is something else among them."""
    marks = part.translate(_GOES_ON)
    if len(part) < _FEW_BYTES or b"\1\1" in marks or marks[-1]:
        return None
    if is_keyed and marks == _KEYED_TWO * (len(marks) // len(_KEYED_TWO)):
        # Mostly all are alike.
        keys, first, last = part[0::3], part[1::3], part[2::3]
        return _join(first, last) if keys.count(_KEY) == len(keys) else None
    # Keys, and last bytes of numbers; and first bytes of those that have two.
    last = part.translate(None, _CONTINUED)
    first = part.translate(None, _LONE)
    if is_keyed:
        keys, last = last[0::2], last[1::2]
        lengths = marks.replace(_KEYED_TWO, b"\2").replace(b"\0\0", _ONE)
        lengths = lengths.replace(b"\2", _TWO)
        # Were a key longer, there would be a lone 0 before it and another one.
        if keys.count(_KEY) != len(keys) or len(lengths) != len(keys) or len(last) != len(keys):
            return None
    else:
        lengths = marks.replace(b"\1\0", _TWO)
    if len(first) < len(last):
        # To each of one byte a zero is added, as if it had a second one.
        first, last = _spread(first, last, lengths)
    return _join(first, last)


def _join(first: bytes, last: bytes) -> array[int]:
    """Return the numbers of these first and second bytes."""
    n_bytes = len(last)
    numbers = bytearray(2 * n_bytes)
    low = int.from_bytes(first.translate(_LOW_FIRST), "little")
    low |= int.from_bytes(last.translate(_LOW_SECOND), "little")
    numbers[0::2] = low.to_bytes(n_bytes, "little")
    numbers[1::2] = last.translate(_HIGH_SECOND)
    return array("I", array("H", numbers))


def _spread(first: bytes, last: bytes, lengths: bytes) -> tuple[bytes, bytes]:
    """Return first bytes of all numbers, and second ones: 0 for a number of one byte."""
    firsts, seconds = bytearray(last), bytearray(last)
    at = used = 0
    while at < len(lengths):
        is_two = lengths[at]
        end = lengths.find(_ONE if is_two else _TWO, at)
        end = len(lengths) if end < 0 else end
        if is_two:
            firsts[at:end] = first[used : used + end - at]
            used += end - at
        else:
            seconds[at:end] = bytes(end - at)
        at = end
    return bytes(firsts), bytes(seconds)


def _with_protobuf(fields: bytes, *, flat: bool) -> array[int]:
    from google.protobuf.message import DecodeError

    from helperd.images.pb import pagemap_blocks_pb2, pagemap_sizes_pb2

    try:
        if flat:
            # Merging takes what is there; that vaddr and others are not is no error then.
            message = pagemap_sizes_pb2.Entry()
            message.MergeFromString(fields)
            return array("I", message.compressed_size)
        blocks = pagemap_blocks_pb2.Entry()
        blocks.MergeFromString(fields)
        return array("I", blocks.blocks.block_sizes)
    except DecodeError as error:
        raise ImageFormatError(f"not a table of stored sizes: {error}") from error
