"""Taking in what ``criu dump --stream`` sends, all pipes side by side."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable

from helperd.errors import PeerGone
from helperd.images.inventory import INVENTORY_NAME
from helperd.streamer.endpoint import Connection, Listener, enlarge
from helperd.streamer.packer import Packer, Receiver
from helperd.streamer.sinks import MOVED_BYTES
from helperd.wire.stream import Request

#: Bytes that CRIU's pipes are made to hold, if the system allows it; with more CRIU has trouble.
PIPE_BYTES = 4 << 20
#: Sent before the processes are frozen.
_BEFORE_START = "cpuinfo.img"


class Capture:
    """One dump: everything that comes over one connection.

    Args:
        packer: where the files go.
        connection: to CRIU.
        hold: what CRIU's post-dump script connects to, to hold the processes until the images are
            on disk; None if there is no such script.
        started: called when the first file comes that says that the dump has begun.

    Attributes:
        held: whether a script is waiting.
        n_bytes: that have come.
    """

    def __init__(
        self,
        packer: Packer,
        connection: Connection,
        hold: Listener | None = None,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self._packer = packer
        self._connection = connection
        self._hold = hold
        self._held: list[socket.socket] = []
        self.n_bytes = 0
        self._started: Callable[[], None] | None = started
        self._files: dict[int, tuple[str, Receiver]] = {}
        self._complete = False

    def add(self, name: str, pipe: int) -> None:
        """Take a file from a pipe."""
        enlarge(pipe, PIPE_BYTES)
        os.set_blocking(pipe, False)
        self._files[pipe] = (name, self._packer.receive(name))

    @property
    def held(self) -> bool:
        """Whether a script of CRIU's is waiting for us."""
        return bool(self._held)

    def run(self) -> None:
        """Take everything, until CRIU has closed all pipes and the connection, or waits for us.

        Raises:
            ProtocolError: CRIU leaves early, or sends what it never does.
            HelperdError: what comes cannot be stored.
        """
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if self._hold is not None:
            poll.register(self._hold, select.POLLIN)
        for pipe in self._files:
            poll.register(pipe, select.POLLIN)
        while self._files or not (self._connection.ended or (self._held and self._complete)):
            for fd, _ in poll.poll():
                if fd in self._files:
                    self._take(fd, poll)
                elif self._hold is not None and fd == self._hold.fileno():
                    self._held.append(self._hold.accept_plain())
                else:
                    self._connection.receive()
                    if self._connection.ended:
                        poll.unregister(fd)
                    self._requests(poll)
        if not self._complete:
            raise PeerGone(f"CRIU has left before it sent {INVENTORY_NAME}: the dump has failed")

    def finish(self) -> None:
        """Complete the image, and let the processes go that were held for it.

        Raises:
            HelperdError: it could not be stored; CRIU is told, and the processes live on.
        """
        self._packer.finish()
        for script in self._held:
            with contextlib.suppress(OSError):
                script.sendall(b"\0")

    def close(self) -> None:
        """Close everything, so that CRIU fails if it is not done."""
        for script in self._held:
            script.close()
        while self._files:
            os.close(self._files.popitem()[0])
        self._connection.close()

    def _requests(self, poll: select.poll) -> None:
        while (event := self._connection.next_request()) is not None:
            if isinstance(event, Request):
                if event.name != _BEFORE_START and self._started is not None:
                    self._started()
                    self._started = None
                continue
            name, pipe = event
            try:
                self.add(name, pipe)
            except BaseException:
                os.close(pipe)
                raise
            poll.register(pipe, select.POLLIN)

    def _take(self, pipe: int, poll: select.poll) -> None:
        name, receiver = self._files[pipe]
        try:
            moved = receiver.move(pipe, MOVED_BYTES)
            self.n_bytes += moved
            if moved:
                return
        except BlockingIOError:
            return
        poll.unregister(pipe)
        del self._files[pipe]
        os.close(pipe)
        receiver.close()
        self._complete |= name == INVENTORY_NAME
