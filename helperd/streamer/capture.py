"""Taking in what ``criu dump --stream`` sends, all pipes side by side."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable

from helperd.errors import PeerGone
from helperd.images.inventory import INVENTORY_NAME
from helperd.streamer.encoding import PagesReceiver
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
        # Pages that threads of their own take, which wake us at the end.
        self._pages: list[PagesReceiver] = []
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._complete = False

    def add(self, name: str, pipe: int) -> None:
        """Take a file from a pipe."""
        enlarge(pipe, PIPE_BYTES)
        os.set_blocking(pipe, False)
        receiver = self._packer.receive(name)
        if isinstance(receiver, PagesReceiver):
            self._pages.append(receiver)
            receiver.drain(pipe, self._wake)
        else:
            self._files[pipe] = (name, receiver)

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
        poll.register(self._wake_r, select.POLLIN)
        for pipe in self._files:
            poll.register(pipe, select.POLLIN)
        while (
            self._files
            or self._pages
            or not (self._connection.ended or (self._held and self._complete))
        ):
            for fd, _ in poll.poll():
                if fd in self._files:
                    self._take(fd, poll)
                elif fd == self._wake_r:
                    self._reap()
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
        self._packer.stop()
        for script in self._held:
            script.close()
        while self._files:
            os.close(self._files.popitem()[0])
        self._connection.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

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
                if not self._has(pipe):
                    os.close(pipe)
                raise
            if pipe in self._files:
                poll.register(pipe, select.POLLIN)

    def _has(self, pipe: int) -> bool:
        return pipe in self._files or any(receiver.pipe == pipe for receiver in self._pages)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"x")

    def _reap(self) -> None:
        """Take leave of pages that have come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        for receiver in self._pages:
            receiver.check()
        self.n_bytes += sum(receiver.n_bytes for receiver in self._pages if receiver.ended)
        self._pages = [receiver for receiver in self._pages if not receiver.ended]

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
