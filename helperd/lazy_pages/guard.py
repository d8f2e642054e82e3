"""The process that a restore talks to, and that outlives the worker.

It takes the userfaultfds from the restore, keeps a copy of each, and passes them on. Closing the
last copy would turn all that is still missing into zeros, without a word. So when the worker ends
before its time the guard kills the processes before it closes anything; and if the guard is killed
the worker goes on to the end by itself.
"""

from __future__ import annotations

import _signal as signal
import _socket
import contextlib
import os
import select
import struct
from array import array

from helperd.errors import (
    EXIT_OK,
    EXIT_TARGET,
    HelperdError,
    ProtocolError,
    TargetError,
    from_errno,
    shell_status,
)
from helperd.kernel import sockets
from helperd.lazy_pages import link
from helperd.lazy_pages.victims import Watched, kill
from helperd.wire.lazy import DeadTask, Finished, Handshake, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from helperd.lazy_pages.link import Link
    from helperd.reports.log import Log

_CREDENTIALS = struct.Struct("iII")
_MOST_FDS = 4
_BACKLOG = 16


class Connection:
    """A restore that is telling of its tasks."""

    def __init__(self, ident: int, end: _socket.socket) -> None:
        self.ident = ident
        self.end = end
        self.handshake = Handshake()


class Guard:
    """Attends to restores, to the worker, and to a command that it has started.

    Args:
        listener: where restores connect.
        worker: the worker's end of the link is the other one.
        worker_pid: of the worker, a child of this process.
        log: for all that happens.
        pids: the tasks there are images of.
        many: whether to go on after the first restore.
        close_listener: closes the listener, and removes its name.

    Attributes:
        report: on the last restore, as JSON; empty until there is one.
        on_command_end: called with the exit code when the command has ended.
        on_progress: called with the pages that are there, and all.
    """

    def __init__(
        self,
        listener: _socket.socket,
        worker: Link,
        worker_pid: int,
        log: Log,
        pids: frozenset[int],
        *,
        many: bool = False,
        close_listener: Callable[[], None],
    ) -> None:
        self._listener: _socket.socket | None = listener
        self._stop_listening = close_listener
        self._worker = worker
        self._worker_pid = worker_pid
        self._log = log
        self._pids = pids
        self._many = many
        self._next_restore = 1
        self._watched: dict[int, Watched] = {}
        self._actions: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._command_pid = 0
        self._code = EXIT_OK
        self._begun = False
        self._stopping = False
        self.report = ""
        self.on_command_end: Callable[[int], None] = lambda _code: None
        self.on_progress: Callable[[int, int], None] = lambda _pages, _all: None
        self._add(listener.fileno(), self._accept)
        self._add(worker.fd, self._hear)
        self._worker_pidfd = os.pidfd_open(worker_pid)
        self._add(self._worker_pidfd, self._worker_ended)
        self._over = False

    def command(self, pid: int) -> None:
        """Attend to a command that restores."""
        self._command_pid = pid
        pidfd = os.pidfd_open(pid)
        self._add(pidfd, lambda: self._command_ended(pidfd))

    def run(self) -> int:
        """Attend until the worker has ended and the command, too; return the exit code."""
        while not self._over or self._command_pid:
            for fd, _ in self._poll.poll():
                action = self._actions.get(fd)
                if action is not None:
                    action()
        return self._code

    def stop(self) -> None:
        """Take no restore any more; have everything brought at once, and end then.

        Asked again, give up: kill what still lacks pages.
        """
        if self._stopping:
            # Asked twice: it hangs, or nobody wants to wait. What lacks pages ends with it.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._worker_pidfd, signal.SIGKILL)
            return
        self._stopping = True
        self._log.debug("to end: missing pages are brought at once", event="stopping")
        self._no_more()
        self._worker.send(link.HURRY, 0, 0)

    def _add(self, fd: int, action: Callable[[], None]) -> None:
        self._actions[fd] = action
        self._poll.register(fd, select.POLLIN)

    def _remove(self, fd: int) -> None:
        if self._actions.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        connection = Connection(self._next_restore, _socket.socket(fileno=fd))
        self._next_restore += 1
        self._begun = True
        self._add(fd, lambda: self._receive(connection))
        self._log.debug(f"restore {connection.ident} has connected", event="connected")
        if not self._many:
            self._close_listener()

    def _receive(self, connection: Connection) -> None:
        handshake = connection.handshake
        room = _socket.CMSG_SPACE(_MOST_FDS * 4) + _socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            data, ancillary, _, _ = connection.end.recvmsg(
                handshake.wanted, room, _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._abort(connection, ProtocolError(f"the restore's socket: {error.strerror}"))
            return
        fds, sender = _rights(ancillary)
        try:
            found = handshake.receive(data, fds)
            if isinstance(found, Task) and found.pid not in self._pids:
                raise ProtocolError(f"task {found.pid} of the restore is in no image here")
            if isinstance(found, Task):
                self._check_new(connection.ident, found.pid)
                pidfd = _hold(found.pid, sender)
        except HelperdError as error:
            for fd in fds:
                os.close(fd)
            self._abort(connection, error)
            return
        if isinstance(found, Task):
            space = link.space_of(connection.ident, found.pid)
            self._watched[space] = Watched(connection.ident, found.fd, sender, pidfd)
            self._worker.send(link.TASK, connection.ident, found.pid, found.fd)
        elif isinstance(found, DeadTask):
            self._log.debug(f"task {found.pid} was a zombie", event="zombie", pid=found.pid)
        elif isinstance(found, Finished):
            self._worker.send(link.FINISHED, connection.ident, 0)
        elif not data:
            self._hang_up(connection)

    def _check_new(self, restore: int, pid: int) -> None:
        if link.space_of(restore, pid) in self._watched:
            raise ProtocolError(f"task {pid} comes twice in one restore")

    def _abort(self, connection: Connection, error: HelperdError) -> None:
        self._log.error(f"restore {connection.ident}: {error}", event="failed", errno=error.errno)
        self._code = error.exit_code
        self._worker.send(link.ABORTED, connection.ident, 0)
        self._hang_up(connection)

    def _hang_up(self, connection: Connection) -> None:
        self._remove(connection.end.fileno())
        connection.end.close()
        if not self._many:
            self._no_more()

    def _no_more(self) -> None:
        self._close_listener()
        self._worker.send(link.NO_MORE, 0, 0)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._remove(self._listener.fileno())
            self._stop_listening()
            self._listener = None

    def _hear(self) -> None:
        message = self._worker.receive()
        if message is None:
            self._remove(self._worker.fd)
            return
        kind, restore, value, fd = message
        if kind == link.CHILD and fd >= 0:
            # Of a number that is known, or a task's, the worker has nothing to say.
            if link.is_childs(value) and value not in self._watched:
                self._watched[value] = Watched(restore, fd, 0, -1)
            else:
                os.close(fd)
        elif kind == link.DONE:
            watched = self._watched.pop(value, None)
            if watched is not None:
                watched.close()
        elif kind == link.KILL:
            watched = self._watched.get(value)
            if watched is not None:
                kill([watched], self._log)
        elif kind == link.REPORT:
            self.report = self._worker.text
        elif kind == link.PROGRESS:
            self.on_progress(value >> 32, value & 0xFFFFFFFF)

    def _worker_ended(self) -> None:
        """See how the worker ended; what it has left undone must not be taken for zeros."""
        while self._worker.fd in self._actions:
            self._hear()
        self._remove(self._worker_pidfd)
        _, status = os.waitpid(self._worker_pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            self._log.error(
                f"the worker was killed by signal {-code}, {signal.strsignal(-code)}",
                event="killed",
                signal=-code,
            )
            code = shell_status(code)
        if self._watched:
            left = list(self._watched.values())
            kill(left, self._log)
            self._log.error(
                f"{len(left)} address spaces lack pages: their processes were killed, for they"
                " would have read zeros",
                event="lost",
            )
            code = code or EXIT_TARGET
            for watched in left:
                watched.close()
            self._watched.clear()
        self._code = self._code or code
        self._close_listener()
        self._over = True

    def _command_ended(self, pidfd: int) -> None:
        self._remove(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self._command_pid, 0)
        self._command_pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code:
            code = shell_status(code)
            self._log.error(f"the command exited with {code}", event="command", code=code)
            self._code = code
        if not self._begun and not self._many:
            if not code:
                self._log.error(
                    "the command has ended and no restore has connected: was it given"
                    " --lazy-pages, and the same work directory (-W)?",
                    event="command",
                )
                self._code = self._code or EXIT_TARGET
            self._no_more()
        self.on_command_end(self._code)


def listen(path: str) -> tuple[_socket.socket, os.stat_result]:
    """Return a socket that restores can connect to, and what identifies its name.

    Raises:
        UsageError: there is something else at ``path``, or it cannot be made.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        bound = sockets.bind(listener, path, 0o600)
        # The kernel then says who sent each message: the task itself, as we know it here. What is
        # accepted has it from the listener: set there, it would come too late for some messages.
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener, bound


def _hold(task: int, sender: int) -> int:
    """Return a pidfd of the process that is a task; who cannot be held cannot be kept from zeros.

    Raises:
        HelperdError: it cannot be seen from here, has gone, or there is no descriptor left.
    """
    if not sender:
        raise TargetError(
            f"task {task} is a process that cannot be seen from here: run helperd in the pid"
            " namespace of the restore, or in one above it"
        )
    try:
        return os.pidfd_open(sender)
    except OSError as error:
        what = f"cannot hold process {sender}, task {task} of the restore"
        raise from_errno(error.errno or 0, what) from error


def _rights(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """Return the descriptors that came with a message, and who sent it (0 = not to be seen)."""
    fds = array("i")
    sender = 0
    for _, kind, data in ancillary:
        if kind == _socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        elif kind == _socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            sender = _CREDENTIALS.unpack_from(data)[0]
    return fds.tolist(), sender
