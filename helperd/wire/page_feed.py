"""A byte stream, cut into headers and payload."""

from __future__ import annotations

from helperd.wire.page_messages import Payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from helperd.wire.page_messages import Event


class Feed:
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
