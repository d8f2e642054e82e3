"""Look at processes through /proc."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

#: Of a server that is left in peace.
N_SPARES = 2
#: No correct helper needs this long; it turns a hang into a failure.
DEADLINE_SECONDS = 60


def parent_of(pid: int) -> int | None:
    """Return the parent's pid, None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[1])  # the name may hold spaces and brackets


def children_of(pid: int) -> set[int]:
    """Return the pids of a process's children, zombies included."""
    pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    return {child for child in pids if parent_of(child) == pid}


def sessions_of(server: int) -> set[int]:
    """Return the pids of a server's session processes, zombies included; no spare one."""
    return {pid for pid in children_of(server) if _name_of(pid) == "helperd-session"}


def spares_of(server: int) -> set[int]:
    """Return the pids of a server's spare sessions; waits until all are there."""
    found: set[int] = set()

    def look() -> bool:
        found.clear()
        found.update(pid for pid in children_of(server) if _name_of(pid) == "helperd-spare")
        return len(found) == N_SPARES

    assert eventually(look), f"the server has {len(found)} spare sessions"
    return found


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def exists(pid: int) -> bool:
    """Say whether the pid is taken, be it by a zombie."""
    return Path(f"/proc/{pid}").exists()


def peak_rss_bytes(pid: int) -> int:
    """Return the most memory that was ever resident in a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmHWM")


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False when it never does."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        os.sched_yield()
    return True


def ends(pidfd: int) -> bool:
    """Wait for the end of the process that a pidfd pins; False when it goes on and on."""
    return bool(select.select([pidfd], [], [], DEADLINE_SECONDS)[0])
