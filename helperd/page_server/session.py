"""One client: what it sends is stored, and its CLOSE is answered when all of it is safe."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helperd.blocks import pages_to_bytes
from helperd.errors import ImageError, MalformedRequest, ProtocolError
from helperd.images.allowance import Allowance
from helperd.images.directory import PARENT_NAME
from helperd.images.writer import ImageWriter
from helperd.offline.parallel import ordered
from helperd.page_server.intake import Intake
from helperd.page_server.parents import Parents
from helperd.page_server.store import Encoders, Store, encode
from helperd.wire.page_messages import STATUS

if TYPE_CHECKING:
    from helperd.page_server.connection import Connection
    from helperd.page_server.storage import Storage
    from helperd.reports.log import Log

#: Pieces for each thread that wait beside those that are worked on.
_AHEAD = 1
_FAILED = -5


@dataclass(frozen=True)
class Received:
    """What a session has left.

    Attributes:
        names: of the pagemaps.
        n_pages: that were stored.
        payload_bytes: that they take.
    """

    names: tuple[str, ...]
    n_pages: int
    payload_bytes: int

    def numbers(self) -> dict[str, int | float]:
        """Return what is counted."""
        return {
            "objects": len(self.names),
            "pages": self.n_pages,
            "bytes_in": pages_to_bytes(self.n_pages),
            "payload_bytes": self.payload_bytes,
            "freed_bytes": 0,
        }


def receive(connection: Connection, storage: Storage, log: Log) -> Received:
    """Receive a session, up to the end of the connection.

    Raises:
        ProtocolError: the client breaks the protocol, or is gone; nothing has been changed, unless
            it broke it after its CLOSE.
        ImageError, ResourceError: the images cannot be written, or the parent's cannot be read;
            nothing has been changed, and a client that waits for its status has got another than 0.
    """
    allowance = None
    if storage.max_bytes is not None or storage.keep_free:
        allowance = Allowance(storage.path, storage.max_bytes, storage.keep_free)
    with ImageWriter(storage.path, replace=storage.replace, allowance=allowance) as images:
        encoders, store = Encoders(storage), Store(storage)
        parents = Parents(_parent(storage, images))
        intake = Intake(connection, images, parents, storage, encoders.take)
        pieces = ordered(encode, intake.pieces(), storage.n_threads, ahead=_AHEAD)
        try:
            for encoded in pieces:
                store.put(encoded)
                encoders.give_back(encoded.piece)
            images.finish()
        except Exception:
            if intake.receiver.closed:
                with contextlib.suppress(ProtocolError):
                    connection.send(STATUS.pack(_FAILED))
            raise
    received = Received(tuple(intake.names), store.n_pages, store.payload_bytes)
    connection.send(STATUS.pack(0))
    log.info(
        f"received {received.n_pages} pages of {len(received.names)} objects in"
        f" {received.payload_bytes} bytes",
        event="received",
    )
    if connection.some(memoryview(bytearray(1))):
        raise MalformedRequest("bytes after the CLOSE")
    return received


def _parent(storage: Storage, images: ImageWriter) -> str | None:
    """Return the directory of the dump before; the link to it comes with the images."""
    link = os.path.join(storage.path, PARENT_NAME)
    if os.path.lexists(link):
        path = link
    elif storage.parent is not None:
        path = os.path.join(storage.path, storage.parent)
        images.link_parent(storage.parent)
    else:
        return None
    if not os.path.isdir(path):
        raise ImageError(f"{path}: the parent is not there")
    return os.path.realpath(path)
