"""The CRIU that helperd starts itself, and what becomes of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess

from helperd.errors import (
    HelperdError,
    PeerGone,
    UsageError,
    describe_errno,
    shell_status,
)
from helperd.streamer.endpoint import Connection, Listener

#: How long a CRIU whose pipes were closed may take to clean up.
_PATIENCE_SECONDS = 20


class Program:
    """A program that was started, a context manager: it does not outlive the block on an error.

    Args:
        words: it, with its arguments.

    Raises:
        UsageError: it cannot be started.
    """

    def __init__(self, words: list[str]) -> None:
        try:
            self._process = subprocess.Popen(words)
            self._pidfd = os.pidfd_open(self._process.pid)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            reason = describe_errno(number) if number else str(error)
            raise UsageError(f"cannot start {words[0]}: {reason}") from error
        self._name = words[0]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None and self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_SECONDS)
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._process.poll() is None:
                    self._process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(_PATIENCE_SECONDS)
        os.close(self._pidfd)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def fileno(self) -> int:
        """Return a descriptor that is readable when it has ended."""
        return self._pidfd

    def accept(self, listener: Listener, *, replies: bool) -> Connection:
        """Wait for it to connect.

        Raises:
            PeerGone: it has ended instead; its exit code is that of the error.
        """
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self, select.POLLIN)
        if not any(fd == listener.fileno() for fd, _ in poll.poll()):
            error = PeerGone(f"{self._name} ended without connecting to {listener.path}")
            error.exit_code = self.wait() or error.exit_code
            raise error
        return listener.accept(replies=replies)

    def wait(self) -> int:
        """Wait for its end; return its exit status, 128 + N for a signal N."""
        return shell_status(self._process.wait())


def check_status(status: int) -> None:
    """Raise the error for a program that has failed.

    Raises:
        HelperdError: with its exit status.
    """
    if status:
        error = HelperdError(f"the program has failed with status {status}")
        error.exit_code = status
        raise error
