"""What a spawner may hand down to a helper: command lines to run the helper's own with."""

from __future__ import annotations

import errno
import struct
import sys

_RUN = "\nos.execvp(sys.argv[1], sys.argv[1:])"


def after(statements: str) -> tuple[str, ...]:
    """Return a command line that executes the rest of it after some Python statements."""
    return (sys.executable, "-c", f"import os, resource, signal, sys\n{statements}{_RUN}")


SIGCHLD_IGNORED = after("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
SIGNALS_BLOCKED = after("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
HANGUP_IGNORED = after("signal.signal(signal.SIGHUP, signal.SIG_IGN)")

#: A descriptor above the limit that the helper gets.
HIGH_FD = 700
A_HIGH_DESCRIPTOR = after(
    f"os.dup2(os.open('/etc/passwd', os.O_RDONLY), {HIGH_FD}, inheritable=True)\n"
    "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))"
)

_IN_A_NAMESPACE = ("unshare", "--mount", "sh", "-c")


def in_mounts(script: str) -> tuple[str, ...]:
    """Return a command line that executes the rest of it in mounts that a script has changed."""
    return (*_IN_A_NAMESPACE, f'mount --make-rprivate / && {script} && exec "$@"', "sh")


NO_DEV_NULL = in_mounts("mount -t tmpfs none /dev")
A_FILE_AS_DEV_NULL = in_mounts("mount -t tmpfs none /dev && touch /dev/null && chmod 666 /dev/null")
NO_PROC = in_mounts("umount -l /proc")

# linux/seccomp.h, linux/bpf_common.h.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def refused(*numbers: int) -> tuple[str, ...]:
    """Return a command line that executes the rest of it with some system calls forbidden.

    As a container's policy does it that does not know them.
    """
    instructions = [struct.pack("<HBBI", _LOAD, 0, 0, 0)]
    for number in numbers:
        instructions.append(struct.pack("<HBBI", _JUMP_IF_EQUAL, 0, 1, number))
        instructions.append(struct.pack("<HBBI", _RETURN, 0, 0, _REFUSE))
    instructions.append(struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW))
    program = b"".join(instructions)
    return after(
        "import ctypes, struct\n"
        f"program = ctypes.create_string_buffer({program!r})\n"
        f"head = struct.pack('<HxxxxxxQ', {len(instructions)}, ctypes.addressof(program))\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.syscall(317, 1, 0, head) == 0"
    )


#: fadvise64, madvise, process_madvise, utimensat, close_range, and prctl's names cannot be told.
HINTS_REFUSED = refused(221, 28, 440, 280, 436)
