"""Loads seccomp filters: what a worker may ask of the kernel, and of which processes.

The filters are BPF programs, evaluated by the kernel before each system call; of several loaded
ones the strictest verdict counts. Source: the kernel's seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import posix as os
from _struct import Struct

from helperd.confined.worker_filter import PROGRAM
from helperd.kernel.native import Library, Structure, byref, c_char_p, c_ushort, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# System call numbers on x86-64, and linux/seccomp.h, linux/bpf_common.h.
_SYS_SECCOMP = 317
_SYS_KILL = 62
_SYS_PROCESS_VM_READV = 310
_SYS_PROCESS_VM_WRITEV = 311
_SET_MODE_FILTER = 1
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_LOAD, _JUMP, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x05, 0x15, 0x06
#: Offsets in ``struct seccomp_data``: the call's number, and the first argument's low half.
_NUMBER, _ARGUMENT = 0, 16

_INSTRUCTION = Struct("<HBBI")


# Bound while nobody waits: a session's worker loads its filters when a restore does.
_syscall = Library(None).syscall


class _Program(Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", c_ushort), ("instructions", c_char_p))


def load(own_pid: int, writable_pids: Sequence[int] | None) -> None:
    """Confine the calling thread, and all that it starts, for good. Takes no new privileges.

    Args:
        own_pid: of this process: no other may be read from.
        writable_pids: the only processes that may be written to; None for any that the kernel's
            other rules permit.

    Raises:
        OSError: the kernel has no seccomp filters, or does not permit them here.
    """
    rules = _only(_SYS_PROCESS_VM_READV, [own_pid])
    if writable_pids is not None:
        rules += _only(_SYS_PROCESS_VM_WRITEV, writable_pids)
    # The second program shuts the door to seccomp itself, so it comes last.
    _load_program(rules + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW))
    _load_program(PROGRAM)


def load_lazy(own_pid: int) -> None:
    """Confine the calling thread as the worker of a restore on demand; raises as :func:`load`."""
    from helperd.confined.lazy_filter import PROGRAM as LAZY_PROGRAM

    rules = _only(_SYS_PROCESS_VM_READV, [own_pid])
    _load_program(rules + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW))
    _load_program(LAZY_PROGRAM)


def load_door(own_pid: int) -> None:
    """Confine the calling thread as a session of the page server; raises as :func:`load`."""
    from helperd.confined.door_filter import PROGRAM as DOOR_PROGRAM

    rules = _only(_SYS_PROCESS_VM_READV, [own_pid])
    _load_program(rules + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW))
    _load_program(DOOR_PROGRAM)


def load_stream(own_pid: int, pids: Sequence[int]) -> None:
    """Confine the calling thread as a stream's end; raises as :func:`load`.

    Args:
        own_pid: of this process.
        pids: the only processes that may be signalled.
    """
    from helperd.confined.stream_filter import PROGRAM as STREAM_PROGRAM

    rules = _only(_SYS_PROCESS_VM_READV, [own_pid]) + _only(_SYS_KILL, pids)
    _load_program(rules + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW))
    _load_program(STREAM_PROGRAM)


def _only(number: int, pids: Sequence[int]) -> bytes:
    """Return instructions that refuse the call ``number`` unless its first argument is a pid."""
    verdicts = [
        _INSTRUCTION.pack(_LOAD, 0, 0, _ARGUMENT),
        *(
            _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, 1, pid) + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)
            for pid in pids
        ),
        _INSTRUCTION.pack(_RETURN, 0, 0, _REFUSE),
    ]
    body = b"".join(verdicts)
    return (
        _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER)
        + _INSTRUCTION.pack(_JUMP_IF_EQUAL, 1, 0, number)
        + _INSTRUCTION.pack(_JUMP, 0, 0, len(body) // _INSTRUCTION.size)
        + body
    )


def _load_program(instructions: bytes) -> None:
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    if _syscall(_SYS_SECCOMP, _SET_MODE_FILTER, 0, byref(program)) != 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
