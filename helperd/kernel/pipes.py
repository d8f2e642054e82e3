"""Reading and writing pipes to the last byte, blocking or not."""

from __future__ import annotations

import _stat as stat
import posix as os
import time

from helperd.errors import PeerGone, ProtocolError, describe_errno

#: poll(2).
_POLLIN, _POLLOUT = 1, 4


def read_some(fd: int, n_bytes: int) -> bytes:
    """Return 1 to ``n_bytes`` bytes, or none at the end; waits for them.

    Raises:
        ProtocolError: the descriptor cannot be read.
    """
    while True:
        try:
            return os.read(fd, n_bytes)
        except BlockingIOError:
            wait_readable(fd)
        except OSError as error:
            raise ProtocolError(
                f"reading descriptor {fd} failed: {describe_errno(error.errno or 0)}"
            ) from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``.

    Raises:
        PeerGone: nobody reads the pipe any more.
        ProtocolError: the descriptor cannot be written.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            wait_writable(fd)
        except BrokenPipeError as error:
            raise PeerGone(f"descriptor {fd} was closed by the other side") from error
        except OSError as error:
            raise ProtocolError(
                f"writing descriptor {fd} failed: {describe_errno(error.errno or 0)}"
            ) from error


def write_soon(fd: int, data: bytes, seconds: float = 0) -> int:
    """Write what can be written without waiting for a reader longer than ``seconds``.

    Returns:
        The bytes written: 0 when there was no room. Up to PIPE_BUF bytes are written all at once.

    Raises:
        OSError: it cannot be written at all.
    """
    if not wait_writable(fd, seconds):
        return 0
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def never_blocking(fd: int) -> int:
    """Return another descriptor of a pipe or a terminal, whose writers never wait.

    It is ``fd`` itself if that is something else, or cannot be opened again. To set O_NONBLOCK on
    ``fd`` would set it for all who have that pipe from the same spawner.
    """
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))):
            return fd
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return fd


def drain(fd: int, idle_seconds: float, seconds: float) -> None:
    """Read and forget what comes until the end, a pause, or the time is up."""
    end = time.monotonic() + seconds
    try:
        while wait_readable(fd, idle_seconds) and os.read(fd, 1 << 16) and time.monotonic() < end:
            pass
    except OSError:
        return


def wait_readable(fd: int, seconds: float | None = None) -> bool:
    """Return whether something, or the end, came within ``seconds``; None waits for it."""
    return _wait(fd, _POLLIN, seconds)


def wait_writable(fd: int, seconds: float | None = None) -> bool:
    """Return whether there was room to write, or nobody to read, within ``seconds``."""
    return _wait(fd, _POLLOUT, seconds)


def _wait(fd: int, event: int, seconds: float | None) -> bool:
    from select import poll  # Most who start write into pipes that have room.

    waiting = poll()
    waiting.register(fd, event)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))
