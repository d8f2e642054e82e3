"""A client, from its connection to an exit code: TLS, the session, and what is said of it."""

from __future__ import annotations

import resource
import signal
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helperd.errors import (
    EXIT_OK,
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    HelperdError,
    ProtocolError,
    describe_bug,
)
from helperd.modes import OFF
from helperd.page_server.confinement import confine_session
from helperd.page_server.connection import Connection
from helperd.page_server.fetched import give
from helperd.page_server.session import receive

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from helperd.page_server.session import Received
    from helperd.page_server.storage import Storage
    from helperd.reports.log import Log

Numbers = dict[str, int | float]

#: All that is counted, with what it is.
COUNTERS = {
    "objects": "pagemaps that were received",
    "pages": "pages that were received",
    "bytes_in": "bytes of those pages",
    "payload_bytes": "bytes that they take in the images",
    "freed_bytes": "bytes freed in the images of parents",
    "pages_given": "pages that were fetched",
}


@dataclass(frozen=True)
class Door:
    """What every client of a server gets.

    Attributes:
        storage: what becomes of its pages.
        tls: None for none.
        idle_seconds: after which a silent client is given up; 0 = never.
        log: of the server.
        lazy_pages: it fetches pages instead of sending them.
        sandbox: how this process is confined before it reads anything of a client's.
        first_seconds: after which a client is given up that is silent from the start; 0 = as the
            others.
    """

    storage: Storage
    tls: ssl.SSLContext | None
    idle_seconds: int
    log: Log
    lazy_pages: bool = False
    sandbox: str = OFF
    first_seconds: int = 0

    def serve(self, client: socket.socket) -> tuple[int, Numbers]:
        """Serve a client; return the exit code, and what was done."""
        code, received, numbers = self.attend(client)
        if received is not None:
            self.free_superseded(received, numbers)
        return code, numbers

    def free_superseded(self, received: Received, numbers: Numbers) -> None:
        """Free what the dump that was received supersedes, if that is wanted; count it."""
        if self.storage.dedup and received.names:
            # Nobody else needs it.
            from helperd.page_server.dedup import free_superseded

            freed = free_superseded(self.storage.path, received.names, self.log)
            numbers["freed_bytes"] = freed

    def attend(self, client: socket.socket) -> tuple[int, Received | None, Numbers]:
        """Serve a client; return also what it has left."""
        before = signal.signal(signal.SIGTERM, _stop)
        start = time.monotonic()
        received = None
        given = 0
        code = EXIT_OK
        try:
            if self.sandbox != OFF:
                confine_session(self.sandbox, self.storage, self.log, writes=not self.lazy_pages)
            connection = self._connect(client)
            try:
                if self.lazy_pages:
                    given = give(connection, self.storage, self.log)
                else:
                    received = receive(connection, self.storage, self.log)
            finally:
                connection.close()
        except HelperdError as error:
            self.log.error(str(error), event="session-failed", errno=error.errno)
            code = error.exit_code
        except _Stopped:
            self.log.error("stopped by a signal; the dump fails", event="session-failed")
            code = EXIT_SIGNAL_BASE + signal.SIGTERM
        except Exception as error:
            self.log.error(describe_bug(error), event="session-failed")
            code = EXIT_RESOURCES
        finally:
            signal.signal(signal.SIGTERM, before)
        numbers: Numbers = received.numbers() if received else dict.fromkeys(COUNTERS, 0)
        numbers["pages_given"] = given
        numbers["serving_seconds"] = round(time.monotonic() - start, 6)
        numbers["peak_rss_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return code, received, numbers

    def _connect(self, client: socket.socket) -> Connection:
        first = min(filter(None, (self.idle_seconds, self.first_seconds)), default=0)
        if self.tls is not None:
            client.settimeout(first or None)
            try:
                client = self.tls.wrap_socket(client, server_side=True)
            except OSError as error:
                raise ProtocolError(f"TLS with the client has failed: {error}") from error
        return Connection(client, self.idle_seconds, first)


class _Stopped(BaseException):
    """A signal asks for the end."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped
