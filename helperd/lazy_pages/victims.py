"""Killing processes that lack pages which nobody can bring any more.

Until their userfaultfd is closed they wait where they touch such a page; after it is closed they
would read zeros. So they are killed while it is open.
"""

from __future__ import annotations

import _signal as signal
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.reports.log import Log

#: No killed process takes longer to go, unless it sleeps in the kernel.
_WAIT_SECONDS = 10
#: In VmFlags of /proc/PID/smaps: the mapping is watched for missing pages.
_WATCHED_FLAG = "um"


class Watched:
    """An address space: a copy of its userfaultfd, and a hold on its process if that is known."""

    def __init__(self, restore: int, fd: int, pid: int, pidfd: int) -> None:
        self.restore = restore
        self.fd = fd
        self.pid = pid
        self.pidfd = pidfd

    def close(self) -> None:
        """Close both."""
        os.close(self.fd)
        if self.pidfd >= 0:
            os.close(self.pidfd)


def kill(left: list[Watched], log: Log) -> None:
    """Kill the processes of address spaces, and wait until their memory is gone.

    A child that was forked meanwhile is known by its parent only: it is looked for among the
    descendants of those that are known, and is one if memory of it is still watched.
    """
    pidfds = [watched.pidfd for watched in left if watched.pidfd >= 0]
    children = []
    if len(pidfds) < len(left):
        children = _watched_among(descendants({watched.pid for watched in left if watched.pid}))
    for fd in pidfds + children:
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except OSError as error:
            log.error(f"cannot kill a process: {error.strerror}", event="kill")
    for fd in pidfds + children:
        select.select([fd], [], [], _WAIT_SECONDS)
    for fd in children:
        os.close(fd)


def _watched_among(pids: set[int]) -> list[int]:
    """Return pidfds of those processes that have watched memory."""
    found = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        # Looked at once its number is pinned, so that it is the one that is killed.
        if is_watched(pid):
            found.append(fd)
        else:
            os.close(fd)
    return found


def descendants(pids: set[int]) -> set[int]:
    """Return all that descend from some processes, as far as /proc tells."""
    found: set[int] = set()
    pending = list(pids)
    while pending:
        pid = pending.pop()
        for child in _children(pid):
            if child not in found and child not in pids:
                found.add(child)
                pending.append(child)
    return found


def is_watched(pid: int) -> bool:
    """Return whether some memory of a process is watched by a userfaultfd."""
    try:
        with open(f"/proc/{pid}/smaps") as lines:
            return any(
                line.startswith("VmFlags:") and _WATCHED_FLAG in line.split() for line in lines
            )
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children += map(int, file.read().split())
    except OSError:
        pass
    return children
