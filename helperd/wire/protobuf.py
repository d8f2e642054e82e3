"""As much of protobuf's wire format as two small messages need.

The protobuf library takes longer to import than a whole restore may wait for a client of the
server. The tests hold this against the library. Source: protobuf's "Encoding" page.
"""

from __future__ import annotations

from helperd.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _LENGTH = 0, 2
_MAX_VARINT_BITS = 64


def encode(fields: dict[int, int | str | list[int]]) -> bytes:
    """Return a message of fields by their numbers; lists are packed, defaults left out."""
    message = bytearray()
    for number, value in fields.items():
        if isinstance(value, int):
            if value:
                message += _varint(number << 3 | _VARINT) + _varint(value)
            continue
        body = value.encode() if isinstance(value, str) else b"".join(map(_varint, value))
        if body:
            message += _varint(number << 3 | _LENGTH) + _varint(len(body)) + body
    return bytes(message)


def decode(message: bytes) -> dict[int, int | bytes]:
    """Return a message's fields by their numbers; of a repeated one the last.

    Raises:
        ProtocolError: it is not a message of numbers and strings.
    """
    try:
        return dict(_fields(message))
    except IndexError as error:
        raise ProtocolError("a message from the server is cut off") from error


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _LENGTH and at + value <= len(message):
            yield key >> 3, message[at : at + value]
            at += value
        else:
            raise ProtocolError(f"a message from the server has a bad field {key >> 3}")


def _varint(value: int) -> bytes:
    value &= (1 << _MAX_VARINT_BITS) - 1  # Negative numbers are sent as 64-bit ones.
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= _MAX_VARINT_BITS:
            raise ProtocolError("a message from the server has a number that is too long")
