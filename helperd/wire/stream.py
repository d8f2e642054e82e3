"""CRIU's image streams without any I/O: the requests of ``criu --stream``.

A *request* is a u32 length and a protobuf with the name of a file. On a dump one byte follows, and
with it the read end of a pipe that the file comes from. On a restore the answer says whether the
file exists; if it does, the byte follows with the write end of a pipe that the file goes into.

Lengths are bounded before they are believed. Source: CRIU's documentation and what it sends.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from helperd.errors import MalformedStream, ProtocolError, TruncatedStream
from helperd.wire import protobuf

#: Longest name of a file, in bytes, as on Linux' file systems.
MAX_NAME_BYTES = 255
#: Longest request, in bytes; a name and a few bytes of framing.
MAX_REQUEST_BYTES = 1 << 10

_WORD = struct.Struct("<I")
_REPLIES = {False: b"\x08\x00", True: b"\x08\x01"}
_FILENAME, _EXISTS = 1, 1


def check_name(name: str) -> str:
    """Return the name of a file of an image if it is a plain one.

    Raises:
        MalformedStream: it is empty, too long, hidden, or leads out of a directory.
    """
    if not name or len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise MalformedStream(
            f"a file name of {len(name)} characters: 1 to {MAX_NAME_BYTES} bytes are possible"
        )
    if name.startswith(".") or "/" in name or not name.isprintable():
        raise MalformedStream(f"{name!r} is not the name of an image file")
    return name


def encode_request(name: str) -> bytes:
    """Return the request for a file, as CRIU sends it."""
    return framed(protobuf.encode({_FILENAME: name}))


def decode_reply(message: bytes) -> bool:
    """Return what the protobuf of a reply says: whether the file exists."""
    return bool(decode_fields(message, "a reply").get(_EXISTS))


class Request(NamedTuple):
    """CRIU names a file."""

    name: str


class Pipe(NamedTuple):
    """The byte has come that the pipe for the file ``name`` comes with."""

    name: str


class RequestReader:
    """Parses what CRIU sends; one for each connection.

    Args:
        replies: whether requests are answered, as they are on a restore.
    """

    def __init__(self, *, replies: bool) -> None:
        self._replies = replies
        self._buffer = bytearray()
        self._name: str | None = None
        self._unanswered = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the socket.

        Raises:
            MalformedStream: more of them than CRIU has reason to send.
        """
        self._buffer += data
        if len(self._buffer) > 2 * MAX_REQUEST_BYTES:
            raise MalformedStream("requests are sent faster than they are answered")

    def next_event(self) -> Request | Pipe | None:
        """Return what has come, None when more bytes are needed, or a reply first.

        Raises:
            MalformedStream: the bytes are not what CRIU sends.
        """
        if self._unanswered:
            return None
        if self._name is not None:
            if not self._buffer:
                return None
            del self._buffer[:1]
            name, self._name = self._name, None
            return Pipe(name)
        if len(self._buffer) < _WORD.size:
            return None
        (size,) = _WORD.unpack_from(self._buffer)
        if size > MAX_REQUEST_BYTES:
            raise MalformedStream(
                f"a request of {size} bytes, at most {MAX_REQUEST_BYTES} are possible"
            )
        if len(self._buffer) < _WORD.size + size:
            return None
        name = _decode_name(bytes(self._buffer[_WORD.size : _WORD.size + size]))
        del self._buffer[: _WORD.size + size]
        self._name, self._unanswered = name, self._replies
        return Request(name)

    def reply(self, *, exists: bool) -> bytes:
        """Return the answer to the last request; a pipe follows if the file exists."""
        if not self._unanswered:
            raise ValueError("no request is waiting for a reply")
        self._unanswered = False
        if not exists:
            self._name = None
        return framed(_REPLIES[exists])

    def end(self) -> None:
        """Say that the socket has ended.

        Raises:
            TruncatedStream: inside a request.
        """
        if self._buffer or self._name is not None:
            what = f"the request for {self._name}" if self._name else "a request"
            raise TruncatedStream(f"CRIU has left in the middle of {what}")


def framed(message: bytes) -> bytes:
    """Return a message with its length before it."""
    return _WORD.pack(len(message)) + message


def _decode_name(message: bytes) -> str:
    name = decode_fields(message, "a request").get(_FILENAME)
    if not isinstance(name, bytes):
        raise MalformedStream("a request without the name of a file")
    return check_name(decode_text(name))


def decode_fields(message: bytes, what: str) -> dict[int, int | bytes]:
    """Return a message's fields by their numbers.

    Raises:
        MalformedStream: it is none; ``what`` says what it should be.
    """
    try:
        return protobuf.decode(message)
    except ProtocolError as error:
        raise MalformedStream(f"{what} is not well formed: {error}") from error


def decode_text(octets: bytes) -> str:
    """Return the text of a field.

    Raises:
        MalformedStream: it is not UTF-8.
    """
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        raise MalformedStream(f"the file name {octets[:64]!r} is not UTF-8") from error
