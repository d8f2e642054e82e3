"""What `criu restore --lazy-pages` says on lazy-pages.socket, without I/O.

For each task of the tree a signed 32-bit number: positive, and the userfaultfd of that task follows
as a descriptor with one byte of its own; negative, and the task is dead already and has none. When
all of them run: 0x52535446, then nothing more. The daemon never answers.
"""

from __future__ import annotations

import struct

from helperd.errors import ProtocolError

#: Sent once when the restore is over and every mapping is where it belongs.
RESTORE_FINISHED = 0x52535446
#: The name of the socket in the working directory of the restore.
SOCKET_NAME = "lazy-pages.socket"

_NUMBER = struct.Struct("<i")
#: Linux's own limit of process numbers.
_MAX_PID = 1 << 22


class Task:
    """A task of the tree with its userfaultfd ``fd``; ``pid`` is the one in the images."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd


class DeadTask:
    """A task that was a zombie when it was dumped: there is nothing to bring for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


class Finished:
    """The restore is over, the tasks run."""


class Handshake:
    """Takes apart what comes on the socket.

    Ask :attr:`wanted` how many bytes to receive next, never more: the byte that carries a
    descriptor must be received by itself, or the descriptor would be lost.

    Attributes:
        wanted: bytes to be received next, 4 or 1; after the end of a restore none may come.
        finished: whether the restore has said that it is over.
    """

    def __init__(self) -> None:
        self.wanted = _NUMBER.size
        self.finished = False
        self._head = b""
        self._pid = 0

    def receive(self, data: bytes, fds: list[int]) -> Task | DeadTask | Finished | None:
        """Take the next bytes and the descriptors that came with them; return what they mean.

        Args:
            data: at most :attr:`wanted` bytes; none at the end of the stream.
            fds: received with them. They are the caller's to close if this raises.

        Raises:
            ProtocolError: this is not what a restore says, or it ended before all was said.
        """
        if not data:
            if not self.finished:
                raise ProtocolError(
                    "the restore ended before it was over: it failed, and its log says why"
                )
            return None
        if self.finished:
            raise ProtocolError("the restore says more after it was over")
        if len(data) > self.wanted:
            raise ProtocolError(f"{len(data)} bytes from the restore where {self.wanted} are due")
        if self._pid:
            if len(fds) != 1:
                raise ProtocolError(
                    f"{len(fds)} descriptors from the restore for task {self._pid}, not one"
                )
            task = Task(self._pid, fds[0])
            self._pid, self.wanted = 0, _NUMBER.size
            return task
        if fds:
            raise ProtocolError("a descriptor from the restore before the number of its task")
        self._head += data
        self.wanted = _NUMBER.size - len(self._head)
        if self.wanted:
            return None
        (number,) = _NUMBER.unpack(self._head)
        self._head, self.wanted = b"", _NUMBER.size
        return self._number(number)

    def _number(self, number: int) -> DeadTask | Finished | None:
        if number == RESTORE_FINISHED:
            self.finished, self.wanted = True, 1
            return Finished()
        if not 0 < abs(number) <= _MAX_PID:
            raise ProtocolError(f"{number} from the restore is no process number")
        if number < 0:
            return DeadTask(-number)
        self._pid, self.wanted = number, 1
        return None
