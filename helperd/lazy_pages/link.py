"""What the guard and the worker say to each other, over a socket pair that keeps messages whole.

Each message is a kind, two numbers, and perhaps a descriptor or a text. The guard passes the
userfaultfds of tasks and keeps a copy of each; the worker passes those of forked children.
"""

from __future__ import annotations

# Not the socket module: it imports selectors and enum, which take longer than all of ours.
import _socket
import struct
from array import array

#: From the guard: a task (restore, pid, descriptor), all tasks of a restore run, a restore has
#: failed, bring everything at once, no further restore will come.
TASK, FINISHED, ABORTED, HURRY, NO_MORE = b"T", b"F", b"A", b"H", b"N"
#: From the worker: a child (restore, address space, descriptor), an address space needs nothing
#: more, it must be killed, the report on a restore, how much is there.
CHILD, DONE, KILL, REPORT, PROGRESS = b"C", b"D", b"K", b"R", b"P"

_HEAD = struct.Struct("<cIQ")
_MOST_BYTES = 1 << 17
_FD_BYTES = 4


def space_of(restore: int, pid: int) -> int:
    """Return the number of the address space of a task; children have small numbers instead."""
    return restore << 32 | 1 << 31 | pid


def is_childs(space: int) -> bool:
    """Return whether a number can be that of a child's address space."""
    return space < 1 << 31


class Link:
    """One end.

    Attributes:
        fd: to be polled.
    """

    def __init__(self, end: _socket.socket) -> None:
        self._end = end
        self.fd = end.fileno()
        self.text = ""

    def send(self, kind: bytes, first: int, second: int, fd: int = -1) -> bool:
        """Send a message, with a descriptor if there is one; return False if nobody listens."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [fd]))] if fd >= 0 else []
        try:
            self._end.sendmsg([_HEAD.pack(kind, first, second)], rights)
        except OSError:
            return False
        return True

    def send_text(self, kind: bytes, first: int, text: str) -> bool:
        """Send a message with a text."""
        try:
            self._end.sendmsg([_HEAD.pack(kind, first, 0) + text.encode()])
        except OSError:
            return False
        return True

    def receive(self) -> tuple[bytes, int, int, int] | None:
        """Return the next message (kind, two numbers, descriptor or -1), None at the end.

        A message's text is left in :attr:`text`.
        """
        try:
            data, ancillary, _, _ = self._end.recvmsg(
                _MOST_BYTES, _socket.CMSG_SPACE(_FD_BYTES), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
        if len(data) < _HEAD.size:
            return None
        fds = array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        kind, first, second = _HEAD.unpack_from(data)
        # A worker that was taken over must not bring the guard down.
        self.text = data[_HEAD.size :].decode("utf-8", "replace")
        return kind, first, second, fds[0] if fds else -1

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def link_pair() -> tuple[Link, Link]:
    """Return the guard's end and the worker's."""
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    return Link(one), Link(other)
