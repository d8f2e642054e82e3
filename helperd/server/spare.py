"""A session process that is forked before there is a client for it: no client waits for a fork.

It has nothing of the server's but a channel, over which its client's connection comes, and ends
when that ends.
"""

from __future__ import annotations

import _signal as signal
import os
import socket

from helperd.kernel import privileges
from helperd.kernel.descriptors import as_rights, from_rights, room_for_rights
from helperd.kernel.hints import name_process

#: By which it can be told from sessions.
NAME = "helperd-spare"
_GO = b"C"


class Spare:
    """A spare session as the server sees it.

    Args:
        pid: of the process.
        channel: the server's end.
        report_fd: where it leaves its numbers as a session.
    """

    def __init__(self, pid: int, channel: socket.socket, report_fd: int) -> None:
        self.pid = pid
        self.report_fd = report_fd
        self._channel = channel

    def hand_over(self, connection: socket.socket) -> bool:
        """Make it the session of a client; return whether there is still somebody to do so."""
        with self._channel:
            try:
                # What it has forked may have the channel for a moment longer than itself.
                if self._has_ended():
                    raise BrokenPipeError
                rights = as_rights([connection.fileno()])
                self._channel.sendmsg([_GO], rights, socket.MSG_DONTWAIT)
            except OSError:
                os.close(self.report_fd)
                return False
        return True

    def _has_ended(self) -> bool:
        try:
            how = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False  # It is none of ours: this is a rehearsal.
        return how is not None

    def dismiss(self) -> None:
        """Let it end without ever having been a session."""
        self._channel.close()
        os.close(self.report_fd)


def wait_for_client(channel: socket.socket) -> socket.socket | None:
    """Return the connection of the client that this process is to be a session of, if any."""
    name_process(NAME)
    privileges.die_with_parent(signal.SIGKILL)
    with channel:
        try:
            _, ancillary, _, _ = channel.recvmsg(
                len(_GO), room_for_rights(1), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
    fds = from_rights(ancillary)
    if not fds:
        return None
    return socket.socket(fileno=fds[0])
