"""Signals: what a spawner may have left of them, and how they are passed on to a child."""

from __future__ import annotations

# Not the signal module: it imports enum, which takes longer than all of ours.
import _signal as signal
import posix as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: What a service manager, a terminal or an operator sends.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
#: Those of them that ask for the end.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: What nohup, and a shell for its background jobs, want to be ignored.
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)

#: The exit code of a process that ended because it was asked to.
EXIT_STOPPED = 128 + signal.SIGTERM

#: How long a child may take to die when it was killed: one that the kernel holds never does.
_LAST_SECONDS = 1


def start_afresh() -> None:
    """Undo what survives an exec and would hide the end of children, or signals to us."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Forwarding:
    """From now on passes the signals of FORWARDED on to the process of ``pidfd``.

    The first one that asks for the end leaves it to that process; a second one kills it, and when
    even that does not help, since the kernel holds it, this process ends alone.

    Args:
        pidfd: of the process.
        complain: takes the last word of a process that ends alone.

    Attributes:
        insisted: whether the second one came.
    """

    def __init__(self, pidfd: int, complain: Callable[[str], None]) -> None:
        self._pidfd = pidfd
        self._complain = complain
        self._asked = False
        self.insisted = False
        for number in FORWARDED:
            if number in _MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._forward)

    def end(self) -> None:
        """Say that the process has ended: it need not be killed any more."""
        if self.insisted:
            signal.alarm(0)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING and self._asked:
            self.insisted = True
            signal.signal(signal.SIGALRM, self._leave)
            signal.alarm(_LAST_SECONDS)
            number = signal.SIGKILL
        self._asked = self._asked or number in _ENDING
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return  # It has ended, and is about to be noticed.

    def _leave(self, _number: int, _frame: FrameType | None) -> None:
        self._complain("stopped by a second signal: the kernel holds the worker, which was killed")
        os._exit(EXIT_STOPPED)
