"""What a client sends, in pieces of work; what it asks is answered at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.codec.block import decode_block
from helperd.errors import MalformedRequest
from helperd.page_server.parents import name_of
from helperd.page_server.pieces import Piece, PieceBuilder
from helperd.wire.page_messages import (
    HAS_PARENT,
    PARENT,
    PRESENT,
    STATUS,
    AsksParent,
    Closed,
    Get,
    Layout,
    Opened,
    Pages,
    StoredPages,
)
from helperd.wire.page_server import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from helperd.codec.encode import Encoder
    from helperd.images.writer import ImageWriter
    from helperd.page_server.connection import Connection
    from helperd.page_server.parents import Parents
    from helperd.page_server.storage import Storage
    from helperd.wire.page_messages import Event, ObjectId

_SCRATCH_BYTES = 1 << 16


class Intake:
    """Reads a session up to its CLOSE.

    Args:
        connection: to the client.
        images: where objects are begun.
        parents: answer what is asked of them.
        storage: says how.
        take_encoder: gives a free encoder.

    Attributes:
        receiver: the protocol's state.
        names: the pagemaps that were begun.
    """

    def __init__(
        self,
        connection: Connection,
        images: ImageWriter,
        parents: Parents,
        storage: Storage,
        take_encoder: Callable[[], Encoder],
    ) -> None:
        self._connection = connection
        self._images = images
        self._parents = parents
        self._storage = storage
        self.receiver = Receiver(storage.layout)
        self.names: list[str] = []
        self._builder = PieceBuilder(storage.piece_pages, storage.region_pages, take_encoder)
        self._object: ObjectId | None = None
        self._header = memoryview(bytearray(Layout.LONG.value))
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))

    def pieces(self) -> Iterator[Piece]:
        """Yield what is to be encoded and stored, in order, until the client has closed.

        Raises:
            ProtocolError: the client breaks the protocol, or is gone.
            ImageError, ResourceError: from what is written.
        """
        receiver = self.receiver
        filled = 0
        while not receiver.closed:
            wanted = receiver.header_left
            if not filled:
                filled = self._connection.fill([self._header[:wanted]])
            header, filled = self._header[:filled], 0
            if not header:
                receiver.finish()
            for event in receiver.receive(header):
                if isinstance(event, Pages):
                    filled = yield from self._pages(event)
                else:
                    yield from self._other(event)
        yield from self._builder.end()

    def _take(self) -> Iterator[Piece]:
        piece = self._builder.take()
        if piece is not None:
            yield piece

    def _other(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, Opened):
            yield from self._begin(event.object)
            if event.asks:
                self._connection.send(HAS_PARENT.pack(self._parents.have(event.object)))
        elif isinstance(event, AsksParent):
            self._connection.send(STATUS.pack(self._parents.have(event.object)))
        elif isinstance(event, Get):
            raise MalformedRequest(
                "the client asks for pages, but this server receives them; --lazy-pages serves"
            )
        else:
            assert isinstance(event, Closed)

    def _begin(self, target: ObjectId) -> Iterator[Piece]:
        """Begin an object; the last of the one before is yielded."""
        yield from self._builder.end()
        storage, name = self._storage, name_of(target)
        memory = self._images.memory(
            name,
            storage.schema,
            # CRIU's own have none.
            checksum=storage.compresses,
            old_counts=self.receiver.layout is Layout.SHORT,
        )
        self.names.append(name)
        self._object = target
        self._builder.begin(memory, encodes=storage.encodes(target.kind))

    def _pages(self, event: Pages) -> Generator[Piece, None, int]:
        """Receive a run of pages; return how many bytes of the next header came along."""
        target = self.receiver.object
        assert target is not None
        if target != self._object:
            yield from self._begin(target)
        if not event.flags & PRESENT:
            if event.flags & PARENT:
                end = event.vaddr + (event.nr_pages << PAGE_SHIFT)
                self._parents.check(target, event.vaddr, end)
            if self._builder.is_full:
                yield from self._take()
            self._builder.add_absent(event.vaddr, event.nr_pages, event.flags)
            return 0
        if event.compressed:
            yield from self._stored_pages(event)
            return 0
        return (yield from self._plain_pages(event))

    def _plain_pages(self, event: Pages) -> Generator[Piece, None, int]:
        """Receive pages into the buffer that they are encoded from, and the header behind them."""
        builder, receiver = self._builder, self.receiver
        vaddr, left = event.vaddr, event.nr_pages
        filled = 0
        while left:
            nr_pages = builder.room(left)
            if not nr_pages:
                yield from self._take()
                continue
            views = [builder.view(nr_pages)]
            n_bytes = nr_pages << PAGE_SHIFT
            left -= nr_pages
            if not left:
                views.append(self._header[: receiver.header_left])
            filled = self._connection.fill(views) - n_bytes
            if filled < 0:
                receiver.finish()
            receiver.payload_received(n_bytes)
            builder.add(vaddr, nr_pages, event.flags, goes_on=left > 0)
            vaddr += n_bytes
        if not filled:
            # It ends where a header should be.
            receiver.finish()
        return filled

    def _stored_pages(self, event: Pages) -> Iterator[Piece]:
        """Receive compressed pages, to be stored as they come, or to be encoded again."""
        builder = self._builder
        as_they_come = builder.piece.encodes and not self._storage.region_pages
        blocks = self._blocks()
        vaddr, left = event.vaddr, event.nr_pages
        while left:
            nr_pages = builder.room(left, stored=as_they_come)
            if not nr_pages:
                yield from self._take()
                continue
            left -= nr_pages
            view = memoryview(b"") if as_they_come else builder.view(nr_pages)
            for page in range(nr_pages):
                block = next(blocks)
                # Decoded in any case: what cannot be would be found out when it is too late.
                content = decode_block(block, PAGE_SIZE)
                if as_they_come:
                    builder.add_stored(block)
                else:
                    view[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] = content
            builder.add(vaddr, nr_pages, event.flags, goes_on=left > 0)
            vaddr += nr_pages << PAGE_SHIFT

    def _blocks(self) -> Iterator[memoryview]:
        """Yield the compressed pages of a message one by one."""
        receiver = self.receiver
        while receiver.stored_wanted:
            view = self._scratch[: receiver.stored_wanted]
            got = self._connection.fill([view])
            for event in receiver.receive(view[:got]):
                assert isinstance(event, StoredPages)
                at, payload = 0, memoryview(event.payload)
                for size in event.sizes:
                    yield payload[at : at + size]
                    at += size
            if got < len(view):
                receiver.finish()
