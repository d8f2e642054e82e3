"""The sockets that CRIU connects to, and the pipes that come over them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections import deque
from typing import Self

from helperd.errors import (
    MalformedStream,
    PeerGone,
    ProtocolError,
    UsageError,
    describe_errno,
)
from helperd.kernel import sockets
from helperd.wire.stream import Pipe, Request, RequestReader

#: What CRIU connects to in the images directory, on a dump and on a restore.
CAPTURE_SOCKET = "streamer-capture.sock"
SERVE_SOCKET = "streamer-serve.sock"
#: What a post-dump script connects to, to wait until the images are on disk.
HOLD_SOCKET = "helperd-hold.sock"

_RECEIVE_BYTES = 4096
#: More descriptors in one message are an error; these are taken in to be closed.
_MAX_FDS = 8
_BACKLOG = 16


class Listener:
    """A listening socket in an images directory; a context manager that removes it.

    Attributes:
        path: of the socket.

    Args:
        directory: that CRIU is told of with -D; made if there is none.
        name: CAPTURE_SOCKET or SERVE_SOCKET.

    Raises:
        UsageError: the socket cannot be made there.
    """

    def __init__(self, directory: str, name: str) -> None:
        self.path = os.path.join(directory, name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._bound = sockets.bind(self._socket, self.path, 0o600)
            self._socket.listen(_BACKLOG)
        except UsageError:
            self._socket.close()
            raise
        except (OSError, ValueError) as error:
            self._socket.close()
            number = getattr(error, "errno", None)
            reason = describe_errno(number) if number else str(error)
            raise UsageError(f"cannot listen on {self.path}: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, to wait for a client with."""
        return self._socket.fileno()

    def accept(self, *, replies: bool) -> Connection:
        """Wait for a client.

        Args:
            replies: as for :class:`helperd.wire.stream.RequestReader`.
        """
        connection, _ = self._socket.accept()
        return Connection(connection, replies=replies)

    def accept_plain(self) -> socket.socket:
        """Take a client that is not CRIU."""
        return self._socket.accept()[0]

    def close(self) -> None:
        """Stop listening and remove the socket."""
        sockets.unbind(self._socket, self.path, self._bound)


class Connection:
    """CRIU's connection: its requests, and the pipes that it sends."""

    def __init__(self, connection: socket.socket, *, replies: bool) -> None:
        self._socket = connection
        self._reader = RequestReader(replies=replies)
        self._fds: deque[int] = deque()
        # On a restore we write to the pipes.
        self._mode = os.O_WRONLY if replies else os.O_RDONLY
        self.ended = False

    def fileno(self) -> int:
        """Return the descriptor, to wait for requests with."""
        return self._socket.fileno()

    def receive(self) -> None:
        """Take what has come; ``ended`` says afterwards whether anything more may come.

        Raises:
            ProtocolError: the connection breaks, or CRIU leaves inside a request.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._socket,
                _RECEIVE_BYTES,
                _MAX_FDS,
                socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return
        except OSError as error:
            raise _broken(error) from error
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _MAX_FDS:
            raise MalformedStream("CRIU has sent more descriptors than files")
        if data:
            self._reader.feed(data)
        else:
            self.ended = True
            self._reader.end()

    def next_request(self) -> Request | tuple[str, int] | None:
        """Return a request, a file's name and its pipe, or None when nothing is complete.

        Raises:
            MalformedStream: what came is neither, or the pipe is none.
        """
        event = self._reader.next_event()
        if not isinstance(event, Pipe):
            return event
        if not self._fds:
            raise MalformedStream(f"CRIU has sent no pipe for {event.name}")
        fd = self._fds.popleft()
        try:
            _check_pipe(fd, self._mode, event.name)
        except ProtocolError:
            os.close(fd)
            raise
        return event.name, fd

    def reply(self, *, exists: bool) -> None:
        """Answer the last request.

        Raises:
            PeerGone: CRIU has left.
        """
        try:
            self._socket.sendall(self._reader.reply(exists=exists))
        except OSError as error:
            raise _broken(error) from error

    def close(self) -> None:
        """Close the connection, and the pipes that nobody has taken."""
        self._socket.close()
        while self._fds:
            os.close(self._fds.popleft())


def connect(directory: str, name: str) -> socket.socket:
    """Connect to a socket in an images directory.

    Raises:
        PeerGone: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    path = os.path.join(directory, name)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        reason = describe_errno(error.errno or 0)
        raise PeerGone(f"cannot connect to {path}: {reason}") from error
    return connection


def _check_pipe(fd: int, mode: int, name: str) -> None:
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        raise MalformedStream(f"what CRIU has sent for {name} is no pipe")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != mode:
        raise MalformedStream(f"CRIU has sent the wrong end of the pipe for {name}")


def _broken(error: OSError) -> ProtocolError:
    return PeerGone(f"the connection to CRIU broke: {describe_errno(error.errno or 0)}")


def enlarge(pipe: int, n_bytes: int) -> int:
    """Make a pipe hold ``n_bytes``, or as much of that as the system lets us.

    Without CAP_SYS_RESOURCE of the initial user namespace, which containers do not have, more than
    fs.pipe-max-size is refused: half as much is then tried, until it is what the pipe holds.

    Returns:
        What it holds; 0 if it is no pipe.
    """
    try:
        held = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        while n_bytes > held:
            with contextlib.suppress(PermissionError):
                return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, n_bytes)
            n_bytes //= 2
    except OSError:
        return 0
    return held
