"""Shards, in which images travel: the format of criu-image-streamer, without any I/O.

A *shard* is one of several byte streams that carry the files of an image between them: *markers*,
each a u32 length and a protobuf. A marker has a number, counted from 0 over all shards, and is one
of :class:`Kind`; after a DATA marker as many raw bytes follow as it says. Reassembled in the order
of their numbers the markers say what belongs to which file.

Everything here is bounded: lengths before they are believed, names, the number of files. Source:
criu-image-streamer's documentation and what it sends.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from helperd.errors import MalformedStream, TruncatedStream
from helperd.wire import protobuf
from helperd.wire.stream import check_name, decode_fields, decode_text, framed

#: Longest marker, in bytes; criu-image-streamer's own limit.
MAX_MARKER_BYTES = 10 << 10
#: Most bytes that one DATA marker may announce.
MAX_DATA_BYTES = (1 << 32) - 1
#: Most files of an image.
MAX_FILES = 1 << 20

_WORD = struct.Struct("<I")
_SEQ, _NAME, _DATA, _FILE_EOF, _IMAGE_EOF = 1, 2, 3, 4, 5


class Kind(enum.IntEnum):
    """What a marker says; the numbers are those of its fields."""

    #: The following markers are about the file ``name``.
    NAME = _NAME
    #: ``size`` bytes of the file follow.
    DATA = _DATA
    #: The file is complete.
    FILE_EOF = _FILE_EOF
    #: The image is complete.
    IMAGE_EOF = _IMAGE_EOF


class Marker(NamedTuple):
    """A marker: its number over all shards, its kind, and what goes with that kind."""

    seq: int
    kind: Kind
    name: str = ""
    size: int = 0


def encode_marker(marker: Marker) -> bytes:
    """Return a marker as it stands in a shard, with its length."""
    body: int | str = 1
    if marker.kind is Kind.NAME:
        body = marker.name
    elif marker.kind is Kind.DATA:
        body = marker.size
    message = protobuf.encode({_SEQ: marker.seq, marker.kind: body})
    if body == 0:
        message += bytes((marker.kind << 3, 0))  # a field of a oneof is never left out
    return framed(message)


def decode_marker(message: bytes) -> Marker:
    """Return a marker from its protobuf.

    Raises:
        MalformedStream: it is none.
    """
    fields = decode_fields(message, "a marker")
    seq = fields.pop(_SEQ, 0)
    if not isinstance(seq, int) or len(fields) != 1:
        raise MalformedStream(f"a marker with the fields {sorted(fields)}: exactly one of 2 to 5")
    ((number, body),) = fields.items()
    if number == Kind.NAME and isinstance(body, bytes):
        return Marker(seq, Kind.NAME, name=check_name(decode_text(body)))
    if number == Kind.DATA and isinstance(body, int) and body <= MAX_DATA_BYTES:
        return Marker(seq, Kind.DATA, size=body)
    if number in (Kind.FILE_EOF, Kind.IMAGE_EOF) and body == 1:
        return Marker(seq, Kind(number))
    raise MalformedStream(f"marker {seq} has a field {number} that says nothing")


class MarkerReader:
    """Parses the markers of one shard; the raw bytes between them are the caller's.

    Attributes:
        wants: bytes to be read from the shard next, exactly so many.
    """

    def __init__(self) -> None:
        self.wants = _WORD.size
        self._in_marker = False

    def feed(self, data: bytes) -> Marker | None:
        """Take the bytes that were wanted; return the marker that they complete, if any.

        Raises:
            MalformedStream: they are no marker.
        """
        if len(data) != self.wants:
            raise ValueError(f"{self.wants} bytes are wanted, not {len(data)}")
        if self._in_marker:
            self.wants, self._in_marker = _WORD.size, False
            return decode_marker(data)
        (size,) = _WORD.unpack(data)
        if not 0 < size < MAX_MARKER_BYTES:
            raise MalformedStream(
                f"a marker of {size} bytes: 1 to {MAX_MARKER_BYTES - 1} are possible;"
                " not a shard of an image, or one that was compressed on its way"
            )
        self.wants, self._in_marker = size, True
        return None

    def end(self) -> None:
        """Say that the shard has ended.

        Raises:
            TruncatedStream: inside a marker.
        """
        if self._in_marker:
            raise TruncatedStream("a shard ends inside a marker")


class MarkerWriter:
    """Numbers and builds the markers of an image; the caller chooses a shard for each."""

    def __init__(self) -> None:
        self._seq = 0
        self._name: str | None = None

    def data(self, name: str, size: int) -> bytes:
        """Return the markers that precede ``size`` bytes of the file ``name`` in a shard."""
        return self._select(name) + self._next(Kind.DATA, size=size)

    def file_eof(self, name: str) -> bytes:
        """Return the markers that say that the file ``name`` is complete."""
        return self._select(name) + self._next(Kind.FILE_EOF)

    def image_eof(self) -> bytes:
        """Return the marker that says that the image is complete."""
        return self._next(Kind.IMAGE_EOF)

    def _select(self, name: str) -> bytes:
        if self._name == name:
            return b""
        self._name = name
        return self._next(Kind.NAME, name=name)

    def _next(self, kind: Kind, name: str = "", size: int = 0) -> bytes:
        marker = Marker(self._seq, kind, name, size)
        self._seq += 1
        return encode_marker(marker)


class Step(NamedTuple):
    """The next marker in order, about the file ``name``, and the shard it came from.

    A NAME step comes once for each file, when it begins.
    """

    shard: int
    kind: Kind
    name: str
    size: int


@dataclass
class Reassembly:
    """Puts the markers of all shards in order and checks that they make up an image.

    Attributes:
        n_shards: shards, numbered from 0.
        complete: whether the marker of the image's end was passed.
    """

    n_shards: int
    complete: bool = False
    _seq: int = 0
    _pending: dict[int, tuple[int, Marker]] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _name: str | None = None
    _open: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> set[int]:
        """Shards whose next marker is wanted."""
        busy = {shard for shard, _ in self._pending.values()}
        return set(range(self.n_shards)) - busy - self._ended

    def add(self, shard: int, marker: Marker) -> None:
        """Take the next marker of a waiting shard.

        Raises:
            MalformedStream: its number was there before, or the image was complete.
        """
        if self.complete:
            raise MalformedStream(f"marker {marker.seq} comes after the end of the image")
        if marker.seq < self._seq or marker.seq in self._pending:
            raise MalformedStream(f"two markers have the number {marker.seq}")
        self._pending[marker.seq] = shard, marker

    def end(self, shard: int) -> None:
        """Say that a shard has ended."""
        self._ended.add(shard)

    def next_step(self) -> Step | None:
        """Return the next step, None while markers are awaited or when all is done.

        After a DATA step its bytes must be taken from the shard before its next marker.

        Raises:
            TruncatedStream: the shards have ended before the image has.
            MalformedStream: a number is missing, or the marker makes no sense where it is.
        """
        while self._seq in self._pending:
            shard, marker = self._pending.pop(self._seq)
            self._seq += 1
            step = self._apply(shard, marker)
            if step is not None:
                return step
        if self.waiting or self.complete:
            return None
        if self._pending:
            raise MalformedStream(
                f"marker {self._seq} is missing: the next one is {min(self._pending)}; are all"
                " shards there, of one image?"
            )
        raise TruncatedStream(f"the shards end at marker {self._seq}, before the image does")

    def _apply(self, shard: int, marker: Marker) -> Step | None:
        if marker.kind is Kind.NAME:
            return self._begin(shard, marker)
        if marker.kind is Kind.IMAGE_EOF:
            if self._open or self._pending:
                what = f"{min(self._open)} is incomplete" if self._open else "markers are left"
                raise MalformedStream(f"marker {marker.seq} ends the image, but {what}")
            self.complete = True
            return Step(shard, marker.kind, "", 0)
        if self._name is None:
            raise MalformedStream(f"marker {marker.seq} belongs to no file")
        name = self._name
        if marker.kind is Kind.FILE_EOF:
            self._open.discard(name)
            self._done.add(name)
            self._name = None
        return Step(shard, marker.kind, name, marker.size)

    def _begin(self, shard: int, marker: Marker) -> Step | None:
        name = self._name = marker.name
        if name in self._done:
            raise MalformedStream(f"marker {marker.seq} begins {name} for a second time")
        if name in self._open:
            return None
        if len(self._open) + len(self._done) >= MAX_FILES:
            raise MalformedStream(f"an image of more than {MAX_FILES} files")
        self._open.add(name)
        return Step(shard, Kind.NAME, name, 0)
