"""Reading and writing pipes to the last byte, blocking or not."""

from __future__ import annotations

import os
import select
import time

from helperd.errors import PeerGone, ProtocolError, describe_errno


def read_some(fd: int, n_bytes: int) -> bytes:
    """Return 1 to ``n_bytes`` bytes, or none at the end; waits for them.

    Raises:
        ProtocolError: the descriptor cannot be read.
    """
    while True:
        try:
            return os.read(fd, n_bytes)
        except BlockingIOError:
            _wait(fd, select.POLLIN)
        except OSError as error:
            raise ProtocolError(
                f"reading descriptor {fd} failed: {describe_errno(error.errno or 0)}"
            ) from error


def write_all(fd: int, data: bytes) -> None:
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
            _wait(fd, select.POLLOUT)
        except BrokenPipeError as error:
            raise PeerGone(f"descriptor {fd} was closed by the other side") from error
        except OSError as error:
            raise ProtocolError(
                f"writing descriptor {fd} failed: {describe_errno(error.errno or 0)}"
            ) from error


def drain(fd: int, idle_seconds: float, seconds: float) -> None:
    """Read and forget what comes until the end, a pause, or the time is up."""
    end = time.monotonic() + seconds
    try:
        while wait_readable(fd, idle_seconds) and os.read(fd, 1 << 16) and time.monotonic() < end:
            pass
    except OSError:
        return


def wait_readable(fd: int, seconds: float) -> bool:
    """Return whether something, or the end, came within ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
