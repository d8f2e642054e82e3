"""Where clients of the server connect."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

from helperd.kernel import sockets

if TYPE_CHECKING:
    import os

_BACKLOG = 128


class Endpoint:
    """A listening socket, AF_UNIX and SOCK_SEQPACKET.

    Args:
        listener: the socket.
        path: the name in the file system that goes with it; None if that is somebody else's,
            systemd's say.
        bound: what identifies that name.

    Attributes:
        listener: the socket.
    """

    def __init__(
        self,
        listener: socket.socket,
        path: str | None = None,
        bound: os.stat_result | None = None,
    ) -> None:
        self.listener = listener
        self._path = path
        self._bound = bound

    @classmethod
    def listen(cls, path: str, mode: int) -> Self:
        """Return one at ``path``, in the place of a socket that nobody listens at any more.

        Raises:
            UsageError: something else is there, or it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            bound = sockets.bind(listener, path, mode)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return cls(listener, path, bound)

    def close(self) -> None:
        """Take no further client; can be called again."""
        if self._path is None or self._bound is None:
            self.listener.close()
        else:
            sockets.unbind(self.listener, self._path, self._bound)
