"""Work in a child of this process, confined while this one has still to start a program."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from helperd.errors import EXIT_OK, EXIT_RESOURCES, HelperdError, InternalError, shell_status
from helperd.images.records import os_failure
from helperd.kernel import privileges


def in_child(work: Callable[[], None], what: str) -> None:
    """Do some work in a child, which dies with this process; to be called before any thread.

    Args:
        work: to be done.
        what: it is, for messages.

    Raises:
        HelperdError: what ``work`` has raised, or the child was killed.
    """
    parent = os.getpid()
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = EXIT_RESOURCES
        try:
            os.close(told)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            privileges.die_with_parent(signal.SIGKILL)
            if os.getppid() == parent:
                code = _carry_out(work, what, tell)
        finally:
            os._exit(code)
    os.close(tell)
    try:
        with open(told, errors="replace") as stream:
            message = stream.read()
        _, status = os.waitpid(pid, 0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code:
        error = HelperdError(message or f"cannot {what}: the process for it was killed")
        error.exit_code = shell_status(code)
        raise error


def _carry_out(work: Callable[[], None], what: str, tell: int) -> int:
    error: HelperdError
    try:
        work()
        return EXIT_OK
    except HelperdError as failure:
        error = failure
    except OSError as failure:
        error = os_failure(failure, f"cannot {what}")
    except Exception as failure:
        error = InternalError(f"cannot {what}: {type(failure).__name__}: {failure}")
    os.write(tell, str(error).encode("utf-8", "replace"))
    return error.exit_code
