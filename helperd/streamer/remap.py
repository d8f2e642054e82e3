"""Other ports for the TCP sockets that listen: files.img, changed as it is served."""

from __future__ import annotations

import io

from helperd.errors import ImageError, ImageFormatError
from helperd.images.fields import LENGTH, encode_varint, walk_fields
from helperd.images.records import IMG_COMMON_MAGIC, read_records, write_magics, write_record

#: The image that open files are in.
FILES_NAME = "files.img"
_FILES_MAGIC = 0x56303138

_SOCKET = 4  # of a file
_PROTOCOL, _STATE, _PORT = 5, 6, 7  # of a socket
_TCP, _LISTEN = 6, 10


def remap_listeners(path: str, ports: dict[int, int]) -> bytes:
    """Return files.img with other ports for its listening TCP sockets.

    Args:
        path: of files.img.
        ports: the new port for each old one.

    Raises:
        ImageError: there is no socket that listens on a port, or no such file.
        ImageFormatError: the file is broken.
    """
    stream = io.BytesIO()
    magics = (IMG_COMMON_MAGIC, _FILES_MAGIC)
    write_magics(stream, magics)
    listening: set[int] = set()
    for offset, record in read_records(path, magics):
        try:
            write_record(stream, _remap_file(record, ports, listening))
        except (ValueError, IndexError) as error:
            raise ImageFormatError(f"{path}: record at offset {offset}: {error}") from error
    missing = sorted(ports.keys() - listening)
    if missing:
        found = ", ".join(map(str, sorted(listening))) or "none"
        raise ImageError(
            f"{path}: no TCP socket listens on port {missing[0]}; those that listen: {found}"
        )
    return stream.getvalue()


def _remap_file(record: bytes, ports: dict[int, int], listening: set[int]) -> bytes:
    for number, kind, value, (start, end) in walk_fields(record):
        if number == _SOCKET and kind == LENGTH and isinstance(value, bytes):
            socket = _remap_socket(value, ports, listening)
            field = encode_varint(_SOCKET << 3 | LENGTH) + encode_varint(len(socket)) + socket
            return record[:start] + field + record[end:]
    return record


def _remap_socket(message: bytes, ports: dict[int, int], listening: set[int]) -> bytes:
    fields = {number: (value, span) for number, _, value, span in walk_fields(message)}
    port, (start, end) = fields.get(_PORT, (0, (0, 0)))
    is_listener = fields.get(_PROTOCOL, (0,))[0] == _TCP and fields.get(_STATE, (0,))[0] == _LISTEN
    if not is_listener or not isinstance(port, int):
        return message
    listening.add(port)
    if port not in ports:
        return message
    return message[:start] + encode_varint(_PORT << 3) + encode_varint(ports[port]) + message[end:]
