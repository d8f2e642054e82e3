"""Names of Unix sockets in the file system: taken only where nobody else's file is lost."""

from __future__ import annotations

# Not the socket module: it imports selectors and enum, which take longer than all of ours.
import _socket
import errno
import os
import stat

from helperd.errors import UsageError, describe_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket


def bind(listener: socket | _socket.socket, path: str, mode: int) -> os.stat_result:
    """Bind a socket to ``path``, in the place of one that nobody listens at any more.

    Args:
        listener: the socket.
        path: for it.
        mode: who may connect.

    Returns:
        What identifies the name, for :func:`unbind`.

    Raises:
        UsageError: something else is there, or it cannot be made.
    """
    try:
        _remove_stale(path)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        return os.lstat(path)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = describe_errno(number) if number else str(error)
        raise UsageError(f"cannot listen at {path}: {why}") from error


def unbind(listener: socket | _socket.socket, path: str, bound: os.stat_result) -> None:
    """Close a socket that was bound to ``path``, and remove the name if it is its own still.

    The name goes first: as long as the socket is open, no other one's can look like it. A
    successor may have taken the place. Can be called again.
    """
    if listener.fileno() >= 0:
        try:
            if os.path.samestat(os.lstat(path), bound):
                os.unlink(path)
        except OSError:
            pass  # Whoever has moved it away will know.
    listener.close()


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
    # Of a kind that no server of ours is: one that lives is not disturbed, it only tells its kind.
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        probe.connect(path)
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            os.unlink(path)
            return
        if error.errno != errno.EPROTOTYPE:
            raise
    finally:
        probe.close()
    raise UsageError(f"cannot listen at {path}: another server listens there")
