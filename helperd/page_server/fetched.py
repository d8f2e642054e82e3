"""A client that fetches pages: ``criu lazy-pages --page-server``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helperd.errors import MalformedRequest
from helperd.page_server.source import PageSource
from helperd.wire.page_messages import STATUS, Closed, Get, Layout, pages_header
from helperd.wire.page_server import Receiver

if TYPE_CHECKING:
    from helperd.page_server.connection import Connection
    from helperd.page_server.storage import Storage
    from helperd.reports.log import Log


def give(connection: Connection, storage: Storage, log: Log) -> int:
    """Answer a client's requests until it closes; return how many pages it was given.

    Nothing is used up: the same pages can be asked for again, by this client and by others.

    Raises:
        ProtocolError: the client breaks the protocol, or is gone.
        ImageError: it asks for what the images do not have, or they are broken.
    """
    receiver = Receiver(storage.layout)
    source = PageSource(storage.path)
    header = memoryview(bytearray(Layout.LONG.value))
    given = 0
    try:
        while not receiver.closed:
            view = header[: receiver.header_left]
            got = connection.fill([view])
            for event in receiver.receive(view[:got]):
                if isinstance(event, Get):
                    # A Get tells the layout, if nothing else has.
                    assert receiver.layout is not None
                    nr_pages, contents = source.pages(event)
                    connection.send(pages_header(receiver.layout, event, nr_pages))
                    for content in contents:
                        connection.send(content)
                    given += nr_pages
                elif not isinstance(event, Closed):
                    raise MalformedRequest("the client sends pages; --lazy-pages only serves them")
            if got < len(view):
                receiver.finish()
    finally:
        source.close()
    connection.send(STATUS.pack(0))
    log.info(f"gave {given} pages", event="given", pages=given)
    return given
