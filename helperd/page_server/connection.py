"""Bytes from a client, straight to where they belong."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from typing import TYPE_CHECKING

from helperd.errors import PeerGone, ProtocolError, describe_errno

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEVAL = struct.Struct("@ll")


class Connection:
    """A connected stream socket.

    Args:
        connection: blocking; closed with this object.
        idle_seconds: without a byte, after which the client is given up; 0 = never.
        first_seconds: the same, until its first message has come.
    """

    def __init__(
        self, connection: socket.socket, idle_seconds: int = 0, first_seconds: int = 0
    ) -> None:
        self._socket = connection
        self._idle_seconds = idle_seconds
        self._waits = first_seconds
        self._scatters = not isinstance(connection, ssl.SSLSocket)
        connection.setblocking(True)
        self._limit(first_seconds)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            # The client waits for each answer.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _limit(self, seconds: int) -> None:
        """Give the client up when nothing comes, or goes, for so long."""
        self._waits = seconds
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(seconds, 0))

    def fill(self, views: Sequence[memoryview]) -> int:
        """Receive until all views are full; return how many bytes came before the end.

        Raises:
            PeerGone: the connection is broken.
            ProtocolError: nothing came for too long.
        """
        wanted = sum(map(len, views))
        done = self._receive(views)
        while done < wanted:
            got = self._receive(_rest(views, done))
            if not got:
                break
            done += got
        if self._waits != self._idle_seconds:
            self._limit(self._idle_seconds)
        return done

    def some(self, view: memoryview) -> int:
        """Receive what is there, at least a byte; return how many, 0 at the end.

        Raises:
            PeerGone, ProtocolError: as :meth:`fill` says.
        """
        try:
            return self._socket.recv_into(view)
        except OSError as error:
            raise self._failure(error) from error

    def _receive(self, views: Sequence[memoryview]) -> int:
        try:
            if self._scatters:
                return self._socket.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
            return self._socket.recv_into(next(filter(len, views)))
        except OSError as error:
            raise self._failure(error) from error

    def send(self, content: bytes | memoryview) -> None:
        """Send all of it.

        Raises:
            PeerGone, ProtocolError: as :meth:`fill` says.
        """
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> ProtocolError:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) and self._waits:
            return ProtocolError(f"nothing came from the client for {self._waits} seconds")
        what = describe_errno(error.errno) if error.errno else str(error)
        return PeerGone(f"the connection to the client is broken: {what}")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    rest = []
    for view in views:
        if done < len(view):
            rest.append(view[done:])
        done = max(done - len(view), 0)
    return rest
