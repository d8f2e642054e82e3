"""The messages of CRIU's page-server protocol: headers, commands, flags, and what they mean.

A message is a header and, for pages that are present, their payload. All integers are
little-endian. The header has two layouts and no version:

=========  ======  ===========================================================================
CRIU       bytes   layout
=========  ======  ===========================================================================
to 4.1.1   24      u32 command, u32 nr_pages, u64 vaddr, u64 dst_id
from 4.2   32      u32 command, 4 bytes of any value, u64 nr_pages, u64 vaddr, u64 dst_id
=========  ======  ===========================================================================

The command is in the low 16 bits of its word, flags of a pagemap entry in the high ones.
"""

from __future__ import annotations

import enum
import struct
from array import array
from typing import Final, NamedTuple

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.errors import MalformedRequest

#: Flags of pages on the wire, as in a pagemap: in the parent, fetched later, payload follows.
PARENT: Final = 1
LAZY: Final = 2
PRESENT: Final = 4

#: What a server answers to OPEN2, to PARENT and to CLOSE.
HAS_PARENT: Final = struct.Struct("<B")
STATUS: Final = struct.Struct("<i")

#: Different objects of one session; bounds what a receiver remembers.
MAX_OBJECTS: Final = 1 << 17

_ADDRESS_END = 1 << 64
FILE_END = 1 << 63
_LOWEST_ADDRESS = 1 << 16
_TYPE_BITS = 8
_MAX_PID = (1 << 31) - 1
SIZE = struct.Struct("<I")


class Layout(enum.Enum):
    """A layout of the header, by its bytes."""

    #: CRIU up to 4.1.1.
    SHORT = 24
    #: CRIU from 4.2 on.
    LONG = 32

    @property
    def struct(self) -> struct.Struct:
        """Packs and unpacks command, nr_pages, vaddr and dst_id."""
        return _STRUCTS[self]


_STRUCTS = {Layout.SHORT: struct.Struct("<IIQQ"), Layout.LONG: struct.Struct("<I4xQQQ")}


class Command(enum.IntEnum):
    """Commands, with the values that they have on the wire."""

    ADD = 1
    HOLE = 2
    OPEN = 3
    OPEN2 = 4
    PARENT = 5
    ADD_F = 6
    GET = 7
    ADD_F_COMPRESSED = 8
    CLOSE = 0x1023
    FORCE_CLOSE = 0x1024


class Kind(enum.Enum):
    """What an object is whose pages are sent."""

    TASK = "task"
    SHMEM = "shmem"


# The second and further values come from old writers.
_KINDS = {
    **dict.fromkeys((1, 10, 11, 16, 17), Kind.TASK),
    **dict.fromkeys((2, 27, 28, 29, 32, 33, 34), Kind.SHMEM),
}
_TYPES = {Kind.TASK: 1, Kind.SHMEM: 2}

# Plain numbers, for they are compared with at each message.
ADD_F, ADD_F_COMPRESSED = int(Command.ADD_F), int(Command.ADD_F_COMPRESSED)


class ObjectId(NamedTuple):
    """An object: the memory of a task by its pid, or shared memory by its id."""

    kind: Kind
    id: int

    @property
    def dst_id(self) -> int:
        """The id as it is on the wire."""
        return self.id << _TYPE_BITS | _TYPES[self.kind]


class Opened(NamedTuple):
    """An object begins; the one before is complete. With ``asks`` HAS_PARENT is the answer."""

    object: ObjectId
    asks: bool


class AsksParent(NamedTuple):
    """STATUS is the answer: 1 if the parent directory has a pagemap of the object, else 0."""

    object: ObjectId


class Pages(NamedTuple):
    """A run of pages of the open object; if PRESENT is in ``flags`` its payload follows."""

    vaddr: int
    nr_pages: int
    flags: int
    compressed: bool


class Payload(NamedTuple):
    """Bytes of the last Pages, which were fed with all else; valid until more is fed."""

    data: memoryview


class StoredPages(NamedTuple):
    """Pages of the last, compressed, Pages: the stored size of each, and the bytes of all."""

    sizes: array[int]
    payload: bytes


class Get(NamedTuple):
    """Pages are asked for; the answer is :func:`pages_header` and as many pages or fewer."""

    pid: int
    vaddr: int
    nr_pages: int


class Closed(NamedTuple):
    """The session is complete; STATUS is the answer, 0 only when all that was sent is safe."""

    forced: bool


class Reply(NamedTuple):
    """Pages that were asked for; their payload follows."""

    pid: int
    vaddr: int
    nr_pages: int


class Ended(NamedTuple):
    """The server has answered the CLOSE with its status."""

    status: int


Event = Opened | AsksParent | Pages | Payload | StoredPages | Get | Closed | Reply | Ended


def pack_header(layout: Layout, word: int, nr_pages: int, vaddr: int, dst_id: int) -> bytes:
    """Return a header; ``word`` is the command with its flags.

    Raises:
        ValueError: a number does not fit into the layout.
    """
    try:
        return layout.struct.pack(word, nr_pages, vaddr, dst_id)
    except struct.error as error:
        raise ValueError(f"{nr_pages} pages at {vaddr:#x} of {dst_id}: {error}") from error


def pages_header(layout: Layout, request: Get, nr_pages: int) -> bytes:
    """Return the header of the reply to a request, before ``nr_pages`` pages of payload."""
    word = Command.ADD_F | PRESENT << 16
    return pack_header(layout, word, nr_pages, request.vaddr, request.pid)


def tell_layout(head: bytes | bytearray) -> Layout | None:
    """Return the layout of a first message by its first 24 bytes; None if it is the same in both.

    The last word of the short layout is the object, whose lowest byte is its type and never 0; in
    the long one an address is there, whose lowest byte is. In requests for pages it is a bare pid,
    and the word before is an address of 64 KiB at least, or else a count, which is less.
    """
    word, _, middle, last = Layout.SHORT.struct.unpack(head)
    command = word & 0xFFFF
    if command in (Command.CLOSE, Command.FORCE_CLOSE) and not middle and not last:
        return None
    if command == Command.GET:
        return Layout.SHORT if middle >= _LOWEST_ADDRESS else Layout.LONG
    return Layout.SHORT if last & 0xFF else Layout.LONG


def object_id(dst_id: int) -> ObjectId:
    """Return the object of a dst_id.

    Raises:
        MalformedRequest: it is of no known kind, or has no number.
    """
    number, kind = dst_id >> _TYPE_BITS, _KINDS.get(dst_id & 0xFF)
    if kind is None:
        raise MalformedRequest(f"an object of the unknown type {dst_id & 0xFF} ({dst_id:#x})")
    if kind is Kind.TASK and not 1 <= number <= _MAX_PID:
        raise MalformedRequest(f"{number} is no pid ({dst_id:#x})")
    return ObjectId(kind, number)


def checked_range(vaddr: int, nr_pages: int) -> int:
    """Return the end of a range of pages that makes sense."""
    end = vaddr + (nr_pages << PAGE_SHIFT)
    if vaddr % PAGE_SIZE or not nr_pages or end > _ADDRESS_END:
        raise MalformedRequest(f"{nr_pages} pages at {vaddr:#x}")
    return end


def checked_get(pid: int, vaddr: int, nr_pages: int) -> Get:
    """Return a request for pages of a task.

    Raises:
        MalformedRequest: it is for no task, or for pages that no task can have.
    """
    if not 1 <= pid <= _MAX_PID:
        raise MalformedRequest(f"{pid} is no pid")
    checked_range(vaddr, nr_pages)
    return Get(pid, vaddr, nr_pages)
