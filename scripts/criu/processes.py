"""The processes that are dumped: started so that CRIU can, waited for, ended."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from criu.errors import WorkloadError

#: Nothing here takes this long, be it in an emulated machine; it turns a hang into a failure.
DEADLINE_SECONDS = 120

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.002


def adopt_orphans() -> None:
    """Become the parent of the processes that CRIU leaves behind, to reap them without delay."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot adopt orphans")


def start(command: Sequence[str]) -> int:
    """Start what is to be dumped, in a session of its own and without descriptors; return its pid.

    It is a child of this process.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        umask=0o022,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
    )
    # It may be killed, restored and reaped: the object would know less than the kernel.
    process.returncode = 0
    return process.pid


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        WorkloadError: it never does.
    """
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise WorkloadError(f"waited {DEADLINE_SECONDS} s in vain for {what}")
        time.sleep(_POLL_SECONDS)


def is_gone(pid: int) -> bool:
    """Say whether a pid is free; reap it if it is a dead child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not Path(f"/proc/{pid}").exists()


def wait_until_gone(*pids: int) -> None:
    """Wait until pids are free, so that a restore can take them.

    Raises:
        WorkloadError: one never is.
    """
    for pid in pids:
        wait_for(functools.partial(is_gone, pid), f"process {pid} to be gone")


def descendants(pid: int) -> list[int]:
    """Return a process and everything below it, parents first."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text()
                found += [int(word) for word in children.split()]
    return found


def kill(pids: Iterable[int]) -> None:
    """End processes, those below them too, and wait until their pids are free."""
    everybody = [each for pid in pids if Path(f"/proc/{pid}").exists() for each in descendants(pid)]
    for pid in everybody:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(*everybody)
