"""Where clients connect: a socket of the file system, made and removed, and nobody else's file."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Self

from helperd.errors import UsageError, describe_errno

_BACKLOG = 128


class Endpoint:
    """A listening socket, AF_UNIX and SOCK_SEQPACKET.

    Args:
        listener: the socket.
        path: the name in the file system that is removed with it; None if that is somebody
            else's, systemd's say.

    Attributes:
        listener: the socket.
    """

    def __init__(self, listener: socket.socket, path: str | None = None) -> None:
        self.listener = listener
        self._path = path
        self._made = None if path is None else os.lstat(path)

    @classmethod
    def listen(cls, path: str, mode: int) -> Self:
        """Return one at ``path``, in the place of a socket that nobody listens at any more.

        Raises:
            UsageError: something else is there, or it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _remove_stale(path)
            before = os.umask(0o777 & ~mode)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            listener.listen(_BACKLOG)
            return cls(listener, path)
        except OSError as error:
            listener.close()
            why = describe_errno(error.errno) if error.errno else str(error)
            raise UsageError(f"cannot listen at {path}: {why}") from error

    def close(self) -> None:
        """Take no further client; can be called again.

        The name goes first, and only if it is ours still: as long as the socket is open no other
        one can look like it. A successor may have taken the place.
        """
        if self.listener.fileno() >= 0 and self._path is not None and self._made is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(self._path), self._made):
                    os.unlink(self._path)
        self.listener.close()


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens at; nothing else.

    Raises:
        UsageError: something else has that name.
        OSError: from the system calls.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    # connect(2) says that nobody listens at any file that is no socket.
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"cannot listen at {path}: what is there is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                raise UsageError(
                    f"cannot listen at {path}: a socket of another kind is there; move it away"
                ) from error
            raise
    raise UsageError(f"cannot listen at {path}: another server listens there")
