"""Accepts clients and forks a session for each; reads no byte of theirs."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

from helperd.errors import EXIT_OK, EXIT_RESOURCES, describe_errno
from helperd.server import systemd

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from helperd.reports.log import Log
    from helperd.server.metrics import Metrics

    #: Serves a client; returns the exit code, and what was done.
    Serve = Callable[[socket.socket], tuple[int, dict[str, int | float]]]

_PAUSE_SECONDS = 0.1
_MAX_REPORT = 1 << 12
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Listener:
    """Serves until it is told to stop, each client in a process of its own.

    Args:
        listener: the listening socket.
        serve: what is done with a client.
        max_sessions: at once.
        metrics: counts sessions.
        ended: is told of each session's exit code and numbers.
        log: one line for each session.
    """

    def __init__(
        self,
        listener: socket.socket,
        serve: Serve,
        *,
        max_sessions: int,
        metrics: Metrics,
        ended: Callable[[int, dict[str, int | float]], None],
        log: Log,
    ) -> None:
        self._listener = listener
        self._serve = serve
        self._max_sessions = max_sessions
        self._metrics = metrics
        self._ended = ended
        self._log = log
        # The pid of each session, with the pipe on which it leaves its numbers.
        self._sessions: dict[int, int] = {}
        self._stops = 0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, let the sessions that run then end, and return.

        A second signal ends them: their dumps fail, and the dumped processes live on.
        """
        self._listener.setblocking(False)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, self._note)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        systemd.notify("READY=1")
        while self._sessions or not self._stops:
            ready = {fd for fd, _ in poll.poll()}
            if wake_read in ready:
                for byte in os.read(wake_read, 1 << 12):
                    self._handle(byte)
                if self._stops and self._listener.fileno() >= 0:
                    poll.unregister(self._listener)
                    self._listener.close()
            elif self._listener.fileno() in ready:
                self._accept()
        return EXIT_OK

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        """Do nothing: the number is in the wakeup pipe."""

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
            return
        self._stops += 1
        systemd.notify("STOPPING=1")
        self._log.info(f"signal {number}: {len(self._sessions)} sessions left", event="stopping")
        if self._stops > 1:
            for pid in self._sessions:
                os.kill(pid, signal.SIGTERM)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError as error:
            # The client may have gone again, or the whole machine is out of something.
            if not isinstance(error, BlockingIOError | ConnectionAbortedError):
                self._log.warning(f"cannot accept: {describe_errno(error.errno or 0)}")
                time.sleep(_PAUSE_SECONDS)
            return
        with connection:
            if len(self._sessions) >= self._max_sessions:
                self._metrics.refused()
                self._log.warning(
                    f"a client is refused: {self._max_sessions} sessions run already"
                    " (--max-sessions)",
                    event="refused",
                )
                return
            try:
                self._start(connection, address)
            except OSError as error:
                self._log.error(f"cannot start a session: {describe_errno(error.errno or 0)}")

    def _start(self, connection: socket.socket, address: object) -> None:
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        # A signal to the child must not end up in the wakeup pipe that it shares for a moment.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_session(connection, report_write)
        except OSError:
            os.close(report_read)
            raise
        finally:
            os.close(report_write)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self._sessions[pid] = report_read
        self._metrics.started()
        self._log.info(f"session {pid} of {address}", event="session-start", session=pid)

    def _be_session(self, connection: socket.socket, report_fd: int) -> None:
        code = EXIT_RESOURCES
        try:
            signal.set_wakeup_fd(-1)
            for number in _HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            self._listener.close()
            code, numbers = self._serve(connection)
            os.write(report_fd, json.dumps(numbers).encode())
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._sessions:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            report_fd = self._sessions.pop(pid, None)
            if report_fd is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            numbers = _report(report_fd)
            self._metrics.ended(code, numbers)
            self._ended(code, numbers)
            os.close(report_fd)
            self._log.info(
                f"session {pid} has ended with {code}",
                event="session-end",
                session=pid,
                exit_code=code,
            )


def _report(fd: int) -> dict[str, int | float]:
    """Return the numbers that a session has left; it may have been taken over by its client."""
    try:
        report = json.loads(os.read(fd, _MAX_REPORT) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(report, dict):
        return {}
    return {name: n for name, n in report.items() if isinstance(n, int | float)}
