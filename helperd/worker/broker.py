"""Between a worker, which can open nothing, and its parent, which opens for it what it may have.

They share a socket pair of type SEQPACKET: a message is a message. The worker asks for a hold on a
process (``P`` and the pid) and gets descriptors (``+``) or the reason why not (``-``, the errno,
the name of the error's class, its message). At its end it leaves its last words (``E``).
"""

from __future__ import annotations

# Not the socket module: it imports selectors and enum, which take longer than our whole start.
import _socket
import errno
import os
import struct
from array import array

from helperd import errors
from helperd.errors import HelperdError, InternalError, ResourceError, describe_errno, from_errno
from helperd.targets.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.targets.targets import Permissions

_PIN, _LAST_WORDS = b"P", b"E"
_GRANTED, _REFUSED = b"+", b"-"
_NUMBER = struct.Struct("<i")
_MAX_MESSAGE = 1 << 14
_MAX_FDS = 4


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """Return the two ends: of the parent, of the worker.

    Raises:
        HelperdError: out of descriptors or memory.
    """
    try:
        return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    except OSError as error:
        raise from_errno(error.errno or 0, "cannot make a socket pair") from error


class Broker:
    """The parent's side. It trusts no message: the worker may have been taken over.

    Attributes:
        fd: to be polled for input.
        last_words: what the worker has left; empty until then.
    """

    def __init__(self, end: _socket.socket, permissions: Permissions) -> None:
        self._end = end
        self._permissions = permissions
        self.fd = end.fileno()
        self.last_words = ""

    def answer(self) -> bool:
        """Receive one message and act on it; return False when none will come any more."""
        try:
            message = self._end.recv(_MAX_MESSAGE, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        kind, rest = message[:1], message[1:]
        if kind == _LAST_WORDS:
            self.last_words = rest.decode("utf-8", "replace")
            return True
        if kind != _PIN or len(rest) != _NUMBER.size:
            return False
        return self._pin(_NUMBER.unpack(rest)[0])

    def close(self) -> None:
        """Close the parent's end: a worker that waits for an answer gets none."""
        self._end.close()

    def _pin(self, pid: int) -> bool:
        fds: list[int] = []
        try:
            hold = self._permissions.pin(pid)
            fds, reply = hold.fds, _GRANTED
        except HelperdError as error:
            name = type(error).__name__
            reply = _REFUSED + _NUMBER.pack(error.errno) + f"{name} {error}".encode()
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            # A worker that does not read its answers is none.
            self._end.sendmsg([reply], rights, _socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


class BrokerClient:
    """The worker's side."""

    def __init__(self, end: _socket.socket) -> None:
        self._end = end

    def pin(self, pid: int) -> Hold:
        """Return a hold on process ``pid``.

        Raises:
            NotPermitted, TargetGone: see :meth:`helperd.targets.targets.Permissions.pin`.
                ResourceError: there is no room for its descriptors.
            InternalError: the parent is gone.
        """
        try:
            self._end.send(_PIN + _NUMBER.pack(pid))
            reply, ancillary, flags, _ = self._end.recvmsg(
                _MAX_MESSAGE, _socket.CMSG_SPACE(_MAX_FDS * _NUMBER.size), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise InternalError(
                f"cannot ask the parent for process {pid}: {describe_errno(error.errno or 0)}"
            ) from error
        fds = array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        if flags & _socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ResourceError(
                f"no descriptors left for process {pid}: raise RLIMIT_NOFILE", errno=errno.EMFILE
            )
        if reply[:1] == _GRANTED and fds:
            return Hold.from_fds(pid, fds.tolist())
        if reply[:1] != _REFUSED:
            raise InternalError(f"the parent does not answer for process {pid}")
        (number,) = _NUMBER.unpack_from(reply, 1)
        name, _, message = reply[1 + _NUMBER.size :].decode().partition(" ")
        raise getattr(errors, name)(message, errno=number)

    def leave(self, last_words: str) -> None:
        """Leave the last words, which a parent that is gone does not need."""
        try:
            self._end.send(_LAST_WORDS + last_words.encode("utf-8", "replace"))
        except OSError:
            return
