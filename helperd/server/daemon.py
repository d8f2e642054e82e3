"""What a daemon does as CRIU's own do it: go to the background, leave its pid, say it is ready."""

from __future__ import annotations

import contextlib
import os

from helperd.errors import EXIT_RESOURCES, UsageError, describe_errno
from helperd.kernel.descriptors import open_inert


def detach() -> bool:
    """Go to the background with all that is open; return False in the process that is left.

    The session is a new one, and standard input, output and error lead nowhere.
    """
    if os.fork():
        return False
    os.setsid()
    null = open_inert()
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    return True


def split() -> tuple[int | None, int]:
    """Go to the background, while the process that is left waits for an answer.

    Returns:
        In the background None and the descriptor for :func:`answer`; in the process that is left
        the code to exit with, once it is known.
    """
    answered, answer_fd = os.pipe2(os.O_CLOEXEC)
    if detach():
        os.close(answered)
        return None, answer_fd
    os.close(answer_fd)
    with open(answered, "rb") as stream:
        code = stream.read(1)
    return code[0] if code else EXIT_RESOURCES, -1


def answer(fd: int, code: int) -> None:
    """Let the process that waits in :func:`split` exit with ``code``; -1 for none that waits."""
    if fd >= 0:
        os.write(fd, bytes((code & 0xFF,)))
        os.close(fd)


def write_pidfile(path: str) -> None:
    """Write the pid of this process to a new file.

    Raises:
        UsageError: it exists already, or cannot be made.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise UsageError(
            f"cannot write the pid file {path}: {describe_errno(error.errno or 0)}"
        ) from error


def say_ready(fd: int | None) -> None:
    """Write CRIU's one zero byte to ``fd`` and close it: whoever waits may connect."""
    if fd is None:
        return
    # Who does not want to know any more need not be told.
    with contextlib.suppress(OSError):
        os.write(fd, b"\0")
    with contextlib.suppress(OSError):
        os.close(fd)
