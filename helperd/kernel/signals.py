"""Signals that a process which only waits for another one passes on to it."""

from __future__ import annotations

# Not the signal module: it imports enum, which takes longer than all of ours.
import _signal as signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: What a service manager, a terminal or an operator sends.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def forward_signals(pidfd: int) -> None:
    """From now on pass the signals of FORWARDED on to the process of ``pidfd``."""

    def forward(number: int, _frame: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return  # It has ended, and is about to be noticed.

    for number in FORWARDED:
        signal.signal(number, forward)
