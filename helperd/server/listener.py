"""The server process: accepts clients, forks a session for each, reaps, and stops cleanly.

It reads no byte from any client: that is done by the session, which has become the client.
"""

from __future__ import annotations

# Not the signal module: a session that has just been forked waits longer for its enums than for all
# that it does with them.
import _signal as signal
import contextlib
import errno
import gc
import json
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from helperd.codec import frames
from helperd.errors import (
    EXIT_OK,
    EXIT_RESOURCES,
    HelperdError,
    PeerGone,
    ResourceError,
    describe_errno,
    printable,
)
from helperd.helper.waiting import WaitingWorker, wait
from helperd.kernel import privileges
from helperd.kernel.descriptors import close_all_but
from helperd.reports.failures import as_helperd_error
from helperd.server import systemd
from helperd.server.pb.session_pb2 import SessionReply
from helperd.server.peer import Peer, take_identity
from helperd.server.rehearsal import rehearse_becoming, rehearse_server, rehearse_session
from helperd.server.session import Session
from helperd.server.spare import Spare, wait_for_client

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from helperd.confined.broker import BrokerClient
    from helperd.reports.log import Log
    from helperd.server.endpoint import Endpoint
    from helperd.server.limits import Limits
    from helperd.server.metrics import Metrics

_PAUSE_SECONDS = 0.1
#: So many spare sessions there are when nobody comes: who restores restores one after the other.
_SPARES = 2
#: So long everybody is left alone before a spare one is made for the next.
_SPARE_MILLISECONDS = 30
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)
_MAX_REPORT = 1 << 12


class _Running:
    """A session as the server sees it.

    Attributes:
        peer: whom it serves.
        connection: closed when the session has been reaped; so its end tells the client that
            nothing of the session is left.
        report_fd: where the session leaves its numbers.
    """

    def __init__(self, peer: Peer, connection: socket.socket, report_fd: int) -> None:
        self.peer = peer
        self.connection = connection
        self.report_fd = report_fd

    def numbers(self) -> dict[str, int | float]:
        """Return what the session has left; what makes no sense is left out."""
        try:
            report = json.loads(os.read(self.report_fd, _MAX_REPORT) or b"{}")
        except (OSError, ValueError):
            return {}
        if not isinstance(report, dict):
            return {}
        return {name: n for name, n in report.items() if isinstance(n, int | float)}

    def close(self) -> None:
        """Close all of it, which tells the client that nothing of the session is left."""
        os.close(self.report_fd)
        hang_up(self.connection)


class Server:
    """Serves until it is told to stop.

    Args:
        endpoint: where clients connect.
        limits: for the sessions.
        metrics: counts them.
        log: of the server.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits, metrics: Metrics, log: Log) -> None:
        self._endpoint = endpoint
        self._listener = endpoint.listener
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._sessions: dict[int, _Running] = {}
        self._stopping = False
        self._spares: list[Spare] = []
        self._can_spare = True

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, let the requests that run then end, and return."""
        self._listener.setblocking(False)
        # A byte for each signal: what comes between two looks is not lost.
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, self._note)
        # What is there now is there in every session: no reason to look through it again.
        frames.usable()
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        for _ in range(_SPARES):
            self._make_spare()
        systemd.notify("READY=1")
        self._log.info("serving", event="serving")
        while self._sessions or not self._stopping:
            wants = self._can_spare and not self._stopping and len(self._spares) < _SPARES
            ready = {fd for fd, _ in poll.poll(_SPARE_MILLISECONDS if wants else None)}
            if not ready:
                self._make_spare()
            elif wake_read in ready:
                for byte in os.read(wake_read, 1 << 12):
                    self._handle(byte)
                if self._stopping and self._listener.fileno() >= 0:
                    poll.unregister(self._listener)
                    self._endpoint.close()
            elif self._listener.fileno() in ready:
                self._accept()
        self._log.info("stopped", event="stopped")
        return EXIT_OK

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        """Do nothing: the number is in the wakeup pipe."""

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGUSR1:
            self._log.answer(
                f"{len(self._sessions)} sessions; "
                + " ".join(
                    line for line in self._metrics.to_text().splitlines() if line[:1] != "#"
                ),
                event="statistics",
            )
        else:
            self._log.info(
                f"signal {number}, {signal.strsignal(number)}: letting requests end",
                event="stopping",
            )
            systemd.notify("STOPPING=1")
            self._stopping = True
            for spare in self._spares:
                spare.dismiss()
                os.waitpid(spare.pid, 0)
            self._spares.clear()
            for pid in self._sessions:
                os.kill(pid, signal.SIGTERM)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            # The client may have gone again.
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self._log.warning(
                    f"cannot accept: {describe_errno(error.errno or 0)}", event="cannot-accept"
                )
                # The whole machine is out of something, and the client still waits.
                time.sleep(_PAUSE_SECONDS)
            return
        try:
            if len(self._sessions) >= self._limits.sessions:
                raise ResourceError(
                    f"{self._limits.sessions} sessions run already (--max-sessions)",
                    errno=errno.EAGAIN,
                )
            self._start_session(connection)
        except (HelperdError, OSError) as error:
            self._refuse(connection, as_helperd_error(error, self._log))

    def _start_session(self, connection: socket.socket) -> None:
        peer = Peer(connection)
        while self._spares:
            spare = self._spares.pop(0)
            if spare.hand_over(connection):
                pid, report_fd = spare.pid, spare.report_fd
                break
        else:
            pid, report_fd = self._fork(lambda fd: self._be_session(connection, peer, fd))
        self._sessions[pid] = _Running(peer, connection, report_fd)
        self._metrics.started()
        self._log.info(f"{peer}: session {pid}", event="session-start", peer=peer.pid, session=pid)

    def _make_spare(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid, report_fd = self._fork(lambda fd: self._be_spare(theirs, fd))
            except OSError:
                ours.close()
                self._can_spare = False  # Clients will be told why, if it goes on like that.
                return
        self._spares.append(Spare(pid, ours, report_fd))
        with contextlib.suppress(OSError, HelperdError):
            rehearse_server()

    def _fork(self, be: Callable[[int], int]) -> tuple[int, int]:
        """Return the pid of a child that does ``be``, and the descriptor of what it reports."""
        report_read, report_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A signal to the child must not be noted in the pipe that it shares with us for a moment:
        # it lets them in when it has let go of the pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            os.close(report_read)
            os.close(report_write)
            raise
        if pid == 0:
            code = EXIT_RESOURCES
            try:
                signal.set_wakeup_fd(-1)
                # What is sent to the server's process group is the server's to pass on.
                os.setsid()
                for number in _HANDLED:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
                code = be(report_write)
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.close(report_write)
        return pid, report_read

    def _be_spare(self, channel: socket.socket, report_fd: int) -> int:
        close_all_but((channel.fileno(), report_fd, *self._log.fds))
        try:
            waiting = WaitingWorker(self._wait_for_session, self._log)
        except ResourceError:
            waiting = None  # The client's session will fork one, or say why not.
        rehearse_session(self._limits, os.getppid())
        connection = wait_for_client(channel)
        if connection is None:
            if waiting is not None:
                waiting.dismiss()
            return EXIT_OK
        session = Session(connection, Peer(connection), self._limits, self._log, waiting)
        return session.run(report_fd)

    def _wait_for_session(self, client: BrokerClient) -> int:
        """Be a worker that waits."""
        rehearse_becoming(self._limits)
        return wait(client, self._become_worker, self._log)

    def _become_worker(self, identity: list[int]) -> None:
        """Make this process, a worker that has waited, one for the client of ``identity``."""
        parent = os.getppid()
        take_identity(identity)
        # A change of identity takes the death signal away.
        privileges.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            raise PeerGone("the server is gone")
        self._limits.restrain()

    def _be_session(self, connection: socket.socket, peer: Peer, report_fd: int) -> int:
        return Session(connection, peer, self._limits, self._log).run(report_fd)

    def _refuse(self, connection: socket.socket, failure: HelperdError) -> None:
        self._log.warning(f"client refused: {failure}", event="refused")
        self._metrics.refused()
        reply = SessionReply()
        reply.ended.exit_code = failure.exit_code
        reply.ended.errno = failure.errno
        reply.ended.reason = printable(str(failure))
        with contextlib.suppress(OSError):
            connection.send(reply.SerializeToString(), socket.MSG_DONTWAIT)
        hang_up(connection)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for spare in [spare for spare in self._spares if spare.pid == pid]:
                spare.dismiss()
                self._spares.remove(spare)
                self._can_spare = False  # It has died of something that the next one would.
            running = self._sessions.pop(pid, None)
            if running is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._metrics.ended(code, running.numbers())
            self._log.info(
                f"session {pid} has ended with {code}",
                event="session-end",
                session=pid,
                exit_code=code,
            )
            running.close()


def hang_up(connection: socket.socket) -> None:
    """Close a connection so that the client can read what was sent to it.

    A socket that is closed with something unread in it takes that from its peer.
    """
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
        while connection.recv(1, socket.MSG_DONTWAIT):
            pass
