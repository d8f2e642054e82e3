"""A client of the server that speaks the pipe protocol itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helperd.options import Options
from helperd.server.attach import Session
from tests.support.requests import ANSWER, RawRequest
from tests.support.server import ServerProcess


class Client:
    """A restorer that has its memory filled through the server."""

    def __init__(self, server: ServerProcess, pages: Path, options: Options | None = None) -> None:
        pages_fd = os.open(pages, os.O_RDONLY)
        request_read, self.request_fd = os.pipe()
        self.reply_fd, reply_write = os.pipe()
        passed = [pages_fd, request_read, reply_write]
        try:
            self.session = Session(str(server.path), passed, options or Options())
        finally:
            for fd in passed:
                os.close(fd)

    def ask(self, request: RawRequest) -> int:
        """Send a request, return the answer."""
        os.write(self.request_fd, request.encode())
        return self.receive()

    def receive(self) -> int:
        """Return the next answer."""
        data = os.read(self.reply_fd, ANSWER.size)
        assert data, self.session.wait()
        value: int = ANSWER.unpack(data)[0]
        return value

    def finish(self) -> int:
        """Close the request pipe and return the exit code."""
        if self.request_fd >= 0:
            os.close(self.request_fd)
            self.request_fd = -1
        return self.session.wait()[0]

    def close(self) -> None:
        """Close what is open."""
        for fd in (self.reply_fd, self.session.worker_pidfd, self.request_fd):
            if fd >= 0:
                os.close(fd)
        self.session.close()


@contextmanager
def connected(
    server: ServerProcess, pages: Path, options: Options | None = None
) -> Iterator[Client]:
    """Give a client, and close it."""
    client = Client(server, pages, options)
    try:
        yield client
    finally:
        client.close()
