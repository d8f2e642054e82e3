"""A connection to a page server, made before the worker is confined; plain or TLS."""

from __future__ import annotations

import os
import socket
import ssl

from helperd.errors import PeerGone, describe_errno


class Channel:
    """A connected socket.

    Attributes:
        fd: to be polled.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.fd = connection.fileno()

    @property
    def pending(self) -> bool:
        """Whether bytes have come that polling does not show."""
        return isinstance(self._connection, ssl.SSLSocket) and self._connection.pending() > 0

    # Reading and writing files, not sockets: the calls that the worker's filter knows.

    def read(self, n_bytes: int) -> bytes:
        """Return what has come, at most ``n_bytes``; nothing at the end."""
        buffer = bytearray(n_bytes)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def read_into(self, view: memoryview) -> int:
        """Fill as much of a buffer as has come; return the bytes, 0 at the end."""
        if isinstance(self._connection, ssl.SSLSocket):
            return self._connection.recv_into(view)
        return os.readv(self.fd, [view])

    def write(self, data: bytes) -> None:
        """Write all of it."""
        if isinstance(self._connection, ssl.SSLSocket):
            self._connection.sendall(data)
            return
        while data:
            data = data[os.write(self.fd, data) :]


def connect(address: str, port: int, tls: ssl.SSLContext | None) -> Channel:
    """Connect to a page server.

    Raises:
        PeerGone: it is not there, or not who it should be.
    """
    connection = None
    try:
        connection = socket.create_connection((address, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_hostname=address)
    except OSError as error:
        if connection is not None:
            connection.close()
        what = describe_errno(error.errno) if error.errno else str(error)
        raise PeerGone(
            f"no connection to the page server at {address} port {port}: {what}"
        ) from error
    return Channel(connection)
