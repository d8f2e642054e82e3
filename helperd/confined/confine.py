"""Takes from a worker what it does not need, before it reads the first byte of a stranger.

The worker parses requests and decodes blocks that may be hostile. It needs its pipes, the pages
image and the targets that are handed in, all of them open; nothing else.

Landlock is none of a worker's means, for it forbids the very job: a process with any domain may
only write to processes inside that domain (source: the kernel's landlock.rst, "Ptrace
restrictions"), and targets never are. The seccomp filter keeps the worker from the file system,
the network and other programs instead. See SECURITY.md.
"""

from __future__ import annotations

import errno
import posix as os

from helperd.confined import seccomp
from helperd.errors import ResourceError
from helperd.kernel import privileges
from helperd.kernel.privileges import Unverified
from helperd.modes import OFF, STRICT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.reports.log import Log

#: Writing to processes of other users, and collapsing their huge pages.
WORKER_CAPABILITIES = (privileges.CAP_SYS_PTRACE, privileges.CAP_SYS_NICE)


def confine(mode: str, writable_pids: Sequence[int], log: Log) -> None:
    """Confine this process, which must have one thread only, and say so in the log.

    Args:
        mode: one of SANDBOX_MODES.
        writable_pids: with STRICT the only processes that can be written to from now on.
        log: for one line on what is in force.

    Raises:
        ResourceError: with STRICT, something could not be put in force.
    """
    pids = writable_pids if mode == STRICT else None
    take_away(mode, WORKER_CAPABILITIES, lambda: seccomp.load(os.getpid(), pids), log)


def take_away(
    mode: str,
    capabilities: Sequence[int],
    load_filter: Callable[[], None] | None,
    log: Log,
    *,
    stay_in: Callable[[], None] | None = None,
) -> None:
    """Confine this process, which must have one thread only, and say so in the log.

    Args:
        mode: one of SANDBOX_MODES.
        capabilities: that it keeps, if it has them.
        load_filter: loads its filter of system calls; None if it has none.
        log: for one line on what is in force.
        stay_in: keeps it in its directories; None if it opens nothing.

    Raises:
        ResourceError: with STRICT, something could not be put in force.
    """
    if mode == OFF:
        log.info("not confined: --sandbox off", event="unconfined")
        return
    steps = (
        ("no new privileges", privileges.set_no_new_privileges),
        ("reduced capabilities", lambda: privileges.limit_capabilities(capabilities)),
        ("not dumpable", privileges.set_not_dumpable),
        *(() if stay_in is None else (("its own directories", stay_in),)),
        *(() if load_filter is None else (("seccomp filter", load_filter),)),
    )
    in_force: list[str] = []
    refused: list[str] = []
    unknown: list[str] = []
    for name, step in steps:
        try:
            step()
            in_force.append(name)
        except Unverified as error:
            unknown.append(f"{name} ({error})")
        except OSError as error:
            refused.append(f"{name} ({error.strerror})")
    shortfall = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("the kernel refuses", refused),
            ("the kernel does not say whether it has accepted", unknown),
        )
        if names
    ]
    if shortfall and mode == STRICT:
        raise ResourceError(f"--sandbox strict: {'; '.join(shortfall)}", errno=errno.EPERM)
    if shortfall:
        log.warning(f"not fully confined: {'; '.join(shortfall)}", event="unconfined")
    log.info(f"confined: {', '.join(in_force)}", event="confined")
