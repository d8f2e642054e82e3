"""The two things that systemd says and wants to hear, as sd_listen_fds(3) and sd_notify(3) have it.

Both are a few lines; libsystemd's binding would be the largest thing in the server.
"""

from __future__ import annotations

import os
import socket

#: Where systemd puts the first descriptor (SD_LISTEN_FDS_START).
_LISTEN_FDS_START = 3


def listening_socket(*, stream: bool = False) -> socket.socket | None:
    """Return the socket that systemd has passed, None if it has not passed any.

    The variables are removed: they are not meant for our children.

    Args:
        stream: it is to take connections over TCP or a Unix socket, not messages of a Unix socket.

    Raises:
        ValueError: it has passed several, or something that does not take our connections.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        return None
    if int(count) > 1:
        raise ValueError(f"systemd has passed {count} sockets, one is expected")
    passed = socket.socket(fileno=_LISTEN_FDS_START)
    passed.set_inheritable(False)
    if stream:
        if passed.type != socket.SOCK_STREAM:
            raise ValueError("the socket from systemd must be a ListenStream= one")
    elif (passed.family, passed.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ValueError("the socket from systemd must be a ListenSequentialPacket= one")
    return passed


def notify(*assignments: str) -> None:
    """Tell systemd, if it wants to know: ``READY=1``, ``STOPPING=1``, ``STATUS=...``."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.connect(path.replace("@", "\0", 1) if path[0] == "@" else path)
            connection.sendall("\n".join(assignments).encode())
        except OSError:
            return
