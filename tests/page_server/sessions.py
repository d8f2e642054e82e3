"""Sessions of the page server over a real socket, and checkpoints made of what they leave."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from helperd.errors import HelperdError
from helperd.images import arrivals
from helperd.offline.complete import complete_directory
from helperd.page_server.connection import Connection
from helperd.page_server.session import Received, receive
from helperd.page_server.storage import Storage
from helperd.reports.log import Log
from tests.images.checkpoints import clone

SILENT = Log(0, None)


@dataclass
class Outcome:
    """How a session went: what was received or what went wrong, and what the client was told."""

    received: Received | None
    failure: HelperdError | None
    answers: bytes = b""


@dataclass
class Client:
    """Sends bytes, then ends its side, and reads all answers."""

    connection: socket.socket
    stream: bytes
    answers: bytearray = field(default_factory=bytearray)

    def run(self) -> None:
        try:
            self.connection.sendall(self.stream)
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has hung up
        try:
            while answer := self.connection.recv(1 << 12):
                self.answers += answer
        except OSError:
            pass


def hold(stream: bytes, storage: Storage) -> Outcome:
    """Hold a session with a client that sends ``stream``."""
    ours, theirs = socket.socketpair()
    client = Client(theirs, stream)
    thread = threading.Thread(target=client.run)
    thread.start()
    received, failure = None, None
    connection = Connection(ours)
    try:
        received = receive(connection, storage, SILENT)
    except HelperdError as error:
        failure = error
    finally:
        connection.close()
        thread.join()
        theirs.close()
    return Outcome(received, failure, bytes(client.answers))


def leftovers(path: Path) -> list[str]:
    """Return what is hidden in a directory, after the next start has cleaned up."""
    arrivals.recover(str(path))
    return [it.name for it in path.iterdir() if it.name.startswith(".")]


def make_whole(received: Path, dump: Path, target: Path) -> Path:
    """Put the pages and the other images of a dump together, and complete them."""
    clone(dump, target)
    for file in received.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    complete_directory(str(target))
    return target
