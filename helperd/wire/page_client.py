"""CRIU's page-server protocol without any I/O, the client's side: asking for pages."""

from __future__ import annotations

from collections import deque

from helperd.blocks import PAGE_SHIFT
from helperd.errors import MalformedRequest, TruncatedRequest
from helperd.wire.page_feed import Feed
from helperd.wire.page_messages import (
    PRESENT,
    STATUS,
    Command,
    Ended,
    Event,
    Get,
    Layout,
    Reply,
    checked_get,
    pack_header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class Requester(Feed):
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
            request = checked_get(pid, vaddr, nr_pages)
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
