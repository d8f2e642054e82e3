"""CRIU's page-server protocol without any I/O: what a dump sends, and what is answered.

Data in, events out; nothing is allocated for what was only announced. The payload of a message may
be fed with all else, or be received by the caller straight into buffers of its own::

    receiver = Receiver()
    for event in receiver.receive(header):       # receiver.header_left bytes
        ...
    if receiver.payload_left:                    # bytes of pages that follow the last event
        n = socket.recv_into(own_buffer[: receiver.payload_left])
        receiver.payload_received(n)

A message is a header and, for pages that are present, their payload. All integers are
little-endian. The header has two layouts and no version; a receiver tells them apart by the first
message:

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
from collections import deque
from typing import Final, NamedTuple

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.errors import MalformedRequest, TruncatedRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

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
_FILE_END = 1 << 63
_LOWEST_ADDRESS = 1 << 16
_TYPE_BITS = 8
_MAX_PID = (1 << 31) - 1
_SIZE = struct.Struct("<I")


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
_ADD_F, _ADD_F_COMPRESSED = int(Command.ADD_F), int(Command.ADD_F_COMPRESSED)


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


class _Feed:
    """Cuts a stream into headers and payload; what a header means is the subclass' business."""

    def __init__(self, header_bytes: int) -> None:
        self._head = bytearray()
        self._header_bytes = header_bytes
        #: Bytes of pages that come before the next header.
        self.payload_left = 0

    @property
    def header_left(self) -> int:
        """Bytes that complete the next header, once the payload is through."""
        return self._header_bytes - len(self._head)

    def payload_received(self, n_bytes: int) -> None:
        """Note that the caller has received payload by itself.

        Raises:
            ValueError: more than was due.
        """
        if n_bytes > self.payload_left:
            raise ValueError(f"{n_bytes} bytes of payload, {self.payload_left} were due")
        self.payload_left -= n_bytes

    def receive(self, data: Buffer) -> Iterator[Event]:
        """Feed bytes as they came, cut in any way; yield what they mean.

        Raises:
            MalformedRequest: they break the protocol; nothing more can be fed.
        """
        view = memoryview(data).cast("B")
        at, end = 0, len(view)
        while at < end:
            if self.payload_left:
                taken = min(self.payload_left, end - at)
                self.payload_left -= taken
                yield Payload(view[at : at + taken])
                at += taken
                continue
            if self._inside():
                taken, event = self._take_inside(view[at:])
                at += taken
                if event is not None:
                    yield event
                continue
            taken = min(self._header_bytes - len(self._head), end - at)
            self._head += view[at : at + taken]
            at += taken
            if len(self._head) == self._header_bytes:
                event = self._take_header()
                if event is not None:
                    yield event

    def _inside(self) -> bool:
        """Return whether what comes is neither a header nor plain payload."""
        return False

    def _take_inside(self, view: memoryview) -> tuple[int, Event | None]:
        raise NotImplementedError

    def _take_header(self) -> Event | None:
        """Take the header in ``_head``, or lengthen it."""
        raise NotImplementedError


class Receiver(_Feed):
    """The server's side: understands what a dump, or a client that fetches pages, sends.

    Args:
        layout: of the headers; None to tell it by the first message.

    Attributes:
        layout: None until it is known.
        object: the open one.
        closed: whether the CLOSE has come.
    """

    def __init__(self, layout: Layout | None = None) -> None:
        super().__init__((layout or Layout.SHORT).value)
        self.layout = layout
        self._unpack = (layout or Layout.SHORT).struct.unpack
        self.object: ObjectId | None = None
        self.closed = False
        self._seen: set[ObjectId] = set()
        self._dst_id = 0
        self._address = 0
        self._stored_pages = 0
        self._compressed_left = 0
        # A page that is fed in parts: its size word, and its bytes.
        self._part = bytearray()
        # Bytes of zeros that may follow a CLOSE that came before the layout was known.
        self._tail = 0

    def finish(self) -> None:
        """Note the end of the stream.

        Raises:
            TruncatedRequest: it is not where one may be.
        """
        if not self.closed:
            where = "inside a message" if self._in_message() else "between messages"
            raise TruncatedRequest(
                f"the client has gone {where}, without a CLOSE: the dump has failed there"
            )

    @property
    def stored_wanted(self) -> int:
        """Bytes of compressed pages that are sure to come before the next header.

        As many as can be told: at least a word for each page.
        """
        if not self._compressed_left:
            return 0
        part = _SIZE.size
        if len(self._part) >= _SIZE.size:
            part += _SIZE.unpack_from(self._part)[0]
        return part - len(self._part) + (self._compressed_left - 1) * _SIZE.size

    def _in_message(self) -> bool:
        return bool(self._head or self.payload_left or self._compressed_left)

    # Headers.

    def _take_header(self) -> Event | None:
        if self.closed:
            raise MalformedRequest("bytes after the CLOSE")
        if self.layout is None:
            self.layout = _tell_layout(self._head)
            if self.layout is None:
                self._tail = Layout.LONG.value - Layout.SHORT.value
            self._unpack = (self.layout or Layout.SHORT).struct.unpack
            if self.layout is Layout.LONG:
                self._header_bytes = Layout.LONG.value
                return None
        word, nr_pages, vaddr, dst_id = self._unpack(self._head)
        self._head.clear()
        command, flags = word & 0xFFFF, word >> 16
        if command in (_ADD_F, _ADD_F_COMPRESSED):
            return self._take_pages(dst_id, vaddr, nr_pages, flags, compressed=command != _ADD_F)
        if flags:
            raise MalformedRequest(f"command {command:#x} with flags {flags:#x}, which it has none")
        if command == Command.ADD:
            return self._take_pages(dst_id, vaddr, nr_pages, PRESENT, compressed=False)
        if command == Command.HOLE:
            return self._take_pages(dst_id, vaddr, nr_pages, PARENT, compressed=False)
        if command in (Command.OPEN, Command.OPEN2, Command.PARENT):
            if nr_pages or vaddr:
                raise MalformedRequest(
                    f"command {command}: {nr_pages} pages at {vaddr:#x}, where none belong"
                )
            if command == Command.PARENT:
                return AsksParent(_object_id(dst_id))
            return Opened(self._open(dst_id), asks=command == Command.OPEN2)
        if command == Command.GET:
            return _checked_get(dst_id, vaddr, nr_pages)
        if command in (Command.CLOSE, Command.FORCE_CLOSE):
            self.closed = True
            self._header_bytes = 1
            return Closed(forced=command == Command.FORCE_CLOSE)
        raise MalformedRequest(f"unknown command {command:#x}: not a CRIU that is known")

    def _open(self, dst_id: int) -> ObjectId:
        new = _object_id(dst_id)
        if new in self._seen:
            raise MalformedRequest(f"{new.kind.value} {new.id} is sent a second time")
        if len(self._seen) >= MAX_OBJECTS:
            raise MalformedRequest(f"more than {MAX_OBJECTS} objects in one session")
        self._seen.add(new)
        self.object, self._dst_id = new, dst_id
        self._address = self._stored_pages = 0
        return new

    def _take_pages(
        self, dst_id: int, vaddr: int, nr_pages: int, flags: int, *, compressed: bool
    ) -> Event:
        # The first pages of an object that nobody has opened open it.
        if dst_id != self._dst_id and _object_id(dst_id) != self.object:
            self._open(dst_id)
        if not flags or flags & ~(PARENT | LAZY | PRESENT) or flags & 5 == 5:
            raise MalformedRequest(f"{nr_pages} pages at {vaddr:#x} with flags {flags:#x}")
        if compressed and not flags & PRESENT:
            raise MalformedRequest(f"compressed pages at {vaddr:#x} that are not sent")
        end = _checked_range(vaddr, nr_pages)
        if vaddr < self._address:
            raise MalformedRequest(
                f"pages at {vaddr:#x} come after those before {self._address:#x}"
            )
        self._address = end
        if flags & PRESENT:
            self._stored_pages += nr_pages
            if self._stored_pages << PAGE_SHIFT >= _FILE_END:
                raise MalformedRequest(f"{self._stored_pages} pages, more than any file can hold")
            if compressed:
                self._compressed_left = nr_pages
            else:
                self.payload_left = nr_pages << PAGE_SHIFT
        return Pages(vaddr, nr_pages, flags, compressed)

    # Compressed payload, and what may follow a CLOSE.

    def _inside(self) -> bool:
        return self._compressed_left > 0 or (self.closed and self._tail > 0)

    def _take_inside(self, view: memoryview) -> tuple[int, Event | None]:
        if self.closed:
            taken = min(self._tail, len(view))
            if any(view[:taken]):
                raise MalformedRequest("bytes after the CLOSE")
            self._tail -= taken
            return taken, None
        sizes, payload = array("I"), bytearray()
        at, end = 0, len(view)
        while self._compressed_left and at < end:
            part = self._part
            if len(part) < _SIZE.size:
                taken = min(_SIZE.size - len(part), end - at)
                part += view[at : at + taken]
                at += taken
                if len(part) < _SIZE.size:
                    break
            (size,) = _SIZE.unpack_from(part)
            if size > PAGE_SIZE:
                raise MalformedRequest(f"a compressed page of {size} bytes")
            taken = min(_SIZE.size + size - len(part), end - at)
            part += view[at : at + taken]
            at += taken
            if len(part) == _SIZE.size + size:
                sizes.append(size)
                payload += part[_SIZE.size :]
                part.clear()
                self._compressed_left -= 1
        return at, StoredPages(sizes, bytes(payload)) if sizes else None


class Requester(_Feed):
    """The client's side: asks for pages of a task, and understands the replies.

    Replies come in the order of the requests, each with as many pages as were asked for or fewer;
    several requests may be under way.

    Args:
        layout: that the server expects. A client cannot find it out: it hangs or fails if wrong.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.value)
        self.layout = layout
        self._asked: deque[Get] = deque()
        self._closing = False
        self._ended = False

    @property
    def pending(self) -> int:
        """How many requests have not been replied to."""
        return len(self._asked)

    @property
    def header_left(self) -> int:
        """Bytes that complete the next header, or the status after it."""
        return (STATUS.size if self._inside() else self._header_bytes) - len(self._head)

    def get(self, pid: int, vaddr: int, nr_pages: int) -> bytes:
        """Return the request for pages.

        Raises:
            ValueError: it makes no sense, or a CLOSE has been sent.
        """
        if self._closing:
            raise ValueError("nothing can be asked for after the CLOSE")
        try:
            request = _checked_get(pid, vaddr, nr_pages)
        except MalformedRequest as error:
            raise ValueError(str(error)) from error
        packed = pack_header(self.layout, Command.GET, nr_pages, vaddr, pid)
        self._asked.append(request)
        return packed

    def close(self) -> bytes:
        """Return the CLOSE; an :class:`Ended` is the last event."""
        self._closing = True
        return pack_header(self.layout, Command.CLOSE, 0, 0, 0)

    def finish(self) -> None:
        """Note the end of the stream.

        Raises:
            TruncatedRequest: replies are missing.
        """
        if not self._ended:
            raise TruncatedRequest(
                f"the server has gone, {self.pending} replies and its status are missing"
            )

    def _inside(self) -> bool:
        # The status is all that comes when everything has been replied to and the CLOSE was sent.
        return self._closing and not self._asked

    def _take_inside(self, view: memoryview) -> tuple[int, Event | None]:
        if self._ended:
            raise MalformedRequest("bytes after the status")
        taken = min(STATUS.size - len(self._head), len(view))
        self._head += view[:taken]
        if len(self._head) < STATUS.size:
            return taken, None
        self._ended = True
        return taken, Ended(*STATUS.unpack(self._head))

    def _take_header(self) -> Event | None:
        word, nr_pages, vaddr, dst_id = self.layout.struct.unpack(self._head)
        self._head.clear()
        if not self._asked:
            raise MalformedRequest("a reply that nobody has asked for")
        asked = self._asked.popleft()
        if word != Command.ADD_F | PRESENT << 16:
            raise MalformedRequest(f"a reply {word:#x} instead of pages that are present")
        if (dst_id, vaddr) != (asked.pid, asked.vaddr) or not 1 <= nr_pages <= asked.nr_pages:
            raise MalformedRequest(
                f"a reply of {nr_pages} pages at {vaddr:#x} of {dst_id} to a request for"
                f" {asked.nr_pages} at {asked.vaddr:#x} of {asked.pid}"
            )
        self.payload_left = nr_pages << PAGE_SHIFT
        return Reply(asked.pid, vaddr, nr_pages)


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


def _tell_layout(head: bytes | bytearray) -> Layout | None:
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


def _object_id(dst_id: int) -> ObjectId:
    number, kind = dst_id >> _TYPE_BITS, _KINDS.get(dst_id & 0xFF)
    if kind is None:
        raise MalformedRequest(f"an object of the unknown type {dst_id & 0xFF} ({dst_id:#x})")
    if kind is Kind.TASK and not 1 <= number <= _MAX_PID:
        raise MalformedRequest(f"{number} is no pid ({dst_id:#x})")
    return ObjectId(kind, number)


def _checked_range(vaddr: int, nr_pages: int) -> int:
    """Return the end of a range of pages that makes sense."""
    end = vaddr + (nr_pages << PAGE_SHIFT)
    if vaddr % PAGE_SIZE or not nr_pages or end > _ADDRESS_END:
        raise MalformedRequest(f"{nr_pages} pages at {vaddr:#x}")
    return end


def _checked_get(pid: int, vaddr: int, nr_pages: int) -> Get:
    if not 1 <= pid <= _MAX_PID:
        raise MalformedRequest(f"{pid} is no pid")
    _checked_range(vaddr, nr_pages)
    return Get(pid, vaddr, nr_pages)
