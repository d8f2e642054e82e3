"""Takes from a worker what it does not need, before it reads the first byte of a stranger.

The worker parses requests and decodes blocks that may be hostile. It needs its pipes, the pages
image and the targets that are handed in, all of them open; nothing else.

Landlock is not among the means, for it forbids the very job: a process with any Landlock domain may
only write to processes inside that domain (source: the kernel's landlock.rst, "Ptrace
restrictions"), and targets never are. The seccomp filter keeps the worker from the file system,
the network and other programs instead. See SECURITY.md.
"""

from __future__ import annotations

import errno
import os

import prctl

from helperd.confined import seccomp
from helperd.errors import ResourceError
from helperd.kernel.syscalls import permitted_capabilities
from helperd.modes import OFF, STRICT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.reports.log import Log

#: Writing to processes of other users, and collapsing their huge pages.
WORKER_CAPABILITIES = (prctl.CAP_SYS_PTRACE, prctl.CAP_SYS_NICE)

_CAPABILITY_SETS = (prctl.CAP_EFFECTIVE, prctl.CAP_PERMITTED, prctl.CAP_INHERITABLE)


class Unverified(OSError):
    """Something was asked of the kernel and not refused; whether it is in force cannot be told."""

    def __str__(self) -> str:
        return str(self.strerror)


def confine(mode: str, writable_pids: Sequence[int], log: Log) -> None:
    """Confine this process, which must have one thread only, and say so in the log.

    Args:
        mode: one of SANDBOX_MODES.
        writable_pids: with STRICT the only processes that can be written to from now on.
        log: for one line on what is in force.

    Raises:
        ResourceError: with STRICT, something could not be put in force.
    """
    if mode == OFF:
        log.info("not confined: --sandbox off", event="unconfined")
        return
    steps = (
        ("no new privileges", lambda: prctl.set_no_new_privs(1)),
        ("reduced capabilities", lambda: limit_capabilities(WORKER_CAPABILITIES)),
        ("not dumpable", lambda: prctl.set_dumpable(0)),
        (
            "seccomp filter",
            lambda: seccomp.load(os.getpid(), writable_pids if mode == STRICT else None),
        ),
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


def limit_capabilities(kept: Sequence[int]) -> None:
    """Give up all capabilities of this process but ``kept``, and those only if it has them.

    Raises:
        Unverified: the kernel did not refuse, and does not say what is left.
        OSError: the kernel refuses, or knows capabilities that could not be named.
    """
    given_up = [capability for capability in prctl.ALL_CAPS if capability not in kept]
    prctl.set_caps((given_up, _CAPABILITY_SETS, False))
    try:
        left = permitted_capabilities() & ~sum(1 << capability for capability in kept)
    except OSError as error:
        raise Unverified(error.errno, f"capget: {os.strerror(error.errno or 0)}") from error
    if left:
        raise OSError(0, f"capabilities {left:#x} are left")
