"""CRIU's page-server protocol without any I/O, the server's side: what a dump sends.

Data in, events out; nothing is allocated for what was only announced. The payload of a message may
be fed with all else, or be received by the caller straight into buffers of its own::

    receiver = Receiver()
    for event in receiver.receive(header):       # receiver.header_left bytes
        ...
    if receiver.payload_left:                    # bytes of pages that follow the last event
        n = socket.recv_into(own_buffer[: receiver.payload_left])
        receiver.payload_received(n)

Which of the two layouts of :mod:`helperd.wire.page_messages` a client speaks, its first message
tells.
"""

from __future__ import annotations

from array import array

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.errors import MalformedRequest, TruncatedRequest
from helperd.wire.page_feed import Feed
from helperd.wire.page_messages import (
    ADD_F,
    ADD_F_COMPRESSED,
    FILE_END,
    LAZY,
    MAX_OBJECTS,
    PARENT,
    PRESENT,
    SIZE,
    AsksParent,
    Closed,
    Command,
    Event,
    Layout,
    ObjectId,
    Opened,
    Pages,
    StoredPages,
    checked_get,
    checked_range,
    object_id,
    tell_layout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class Receiver(Feed):
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
        # The number of the open one; there may be others of it.
        self._dst_id: int | None = None
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
        part = SIZE.size
        if len(self._part) >= SIZE.size:
            part += SIZE.unpack_from(self._part)[0]
        return part - len(self._part) + (self._compressed_left - 1) * SIZE.size

    def _in_message(self) -> bool:
        return bool(self._head or self.payload_left or self._compressed_left)

    # Headers.

    def _take_header(self) -> Event | None:
        if self.closed:
            raise MalformedRequest("bytes after the CLOSE")
        if self.layout is None:
            self.layout = tell_layout(self._head)
            if self.layout is None:
                self._tail = Layout.LONG.value - Layout.SHORT.value
            self._unpack = (self.layout or Layout.SHORT).struct.unpack
            if self.layout is Layout.LONG:
                self._header_bytes = Layout.LONG.value
                return None
        word, nr_pages, vaddr, dst_id = self._unpack(self._head)
        self._head.clear()
        command, flags = word & 0xFFFF, word >> 16
        if command in (ADD_F, ADD_F_COMPRESSED):
            return self._take_pages(
                dst_id, vaddr, nr_pages, flags, compressed=command != Command.ADD_F
            )
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
                return AsksParent(object_id(dst_id))
            return Opened(self._open(dst_id), asks=command == Command.OPEN2)
        if command == Command.GET:
            return checked_get(dst_id, vaddr, nr_pages)
        if command in (Command.CLOSE, Command.FORCE_CLOSE):
            self.closed = True
            self._header_bytes = 1
            return Closed(forced=command == Command.FORCE_CLOSE)
        raise MalformedRequest(f"unknown command {command:#x}: not a CRIU that is known")

    def _open(self, dst_id: int) -> ObjectId:
        new = object_id(dst_id)
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
        if dst_id != self._dst_id and object_id(dst_id) != self.object:
            self._open(dst_id)
        if not flags or flags & ~(PARENT | LAZY | PRESENT) or flags & 5 == 5:
            raise MalformedRequest(f"{nr_pages} pages at {vaddr:#x} with flags {flags:#x}")
        if compressed and not flags & PRESENT:
            raise MalformedRequest(f"compressed pages at {vaddr:#x} that are not sent")
        end = checked_range(vaddr, nr_pages)
        if vaddr < self._address:
            raise MalformedRequest(
                f"pages at {vaddr:#x} come after those before {self._address:#x}"
            )
        self._address = end
        if flags & PRESENT:
            self._stored_pages += nr_pages
            if self._stored_pages << PAGE_SHIFT >= FILE_END:
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
            if len(part) < SIZE.size:
                taken = min(SIZE.size - len(part), end - at)
                part += view[at : at + taken]
                at += taken
                if len(part) < SIZE.size:
                    break
            (size,) = SIZE.unpack_from(part)
            if size > PAGE_SIZE:
                raise MalformedRequest(f"a compressed page of {size} bytes")
            taken = min(SIZE.size + size - len(part), end - at)
            part += view[at : at + taken]
            at += taken
            if len(part) == SIZE.size + size:
                sizes.append(size)
                payload += part[SIZE.size :]
                part.clear()
                self._compressed_left -= 1
        return at, StoredPages(sizes, bytes(payload)) if sizes else None
