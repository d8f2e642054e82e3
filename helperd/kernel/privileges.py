"""What a process may take from itself, and its name: prctl(2), capget(2) and capset(2).

python-prctl does the same, and more; it takes longer to import than a worker is confined in.
"""

from __future__ import annotations

import posix as os

from helperd.kernel.native import (
    Structure,
    byref,
    c_char_p,
    c_int,
    c_uint,
    c_ulong,
    c_void_p,
    get_errno,
    libc,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/prctl.h and linux/capability.h.
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NAME, _SET_NO_NEW_PRIVS = 1, 4, 15, 38
_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
CAP_SYS_PTRACE, CAP_SYS_NICE, CAP_SYS_RESOURCE = 19, 23, 24

_prctl = libc.prctl
_prctl.argtypes = (c_int, *(c_ulong,) * 4)


class _Header(Structure):
    """``struct __user_cap_header_struct``."""

    _fields_ = (("version", c_uint), ("pid", c_int))


class _Sets(Structure):
    """Two of ``struct __user_cap_data_struct``: the low 32 capabilities, then the others."""

    _fields_ = tuple(
        (f"{name}_{half}", c_uint)
        for half in ("low", "high")
        for name in ("effective", "permitted", "inheritable")
    )


class Unverified(OSError):
    """Something was asked of the kernel and not refused; whether it is in force cannot be told."""

    def __str__(self) -> str:
        return str(self.strerror)


def set_name(name: str) -> None:
    """Name this thread, and so a process of one thread, as ps shows it: at most 15 bytes."""
    text = c_char_p(name.encode())
    address = c_void_p.from_buffer(text).value
    assert address is not None
    _call(_SET_NAME, address)


def die_with_parent(signal: int) -> None:
    """Have this process sent ``signal`` when its parent dies."""
    _call(_SET_PDEATHSIG, signal)


def set_no_new_privileges() -> None:
    """See to it that nothing this process executes has more privileges than itself."""
    _call(_SET_NO_NEW_PRIVS, 1)


def set_not_dumpable() -> None:
    """Keep others of the same user from tracing this process."""
    _call(_SET_DUMPABLE, 0)


def limit_capabilities(kept: Iterable[int]) -> None:
    """Give up all capabilities of this thread but ``kept``, and those only if it has them.

    Raises:
        Unverified: the kernel did not refuse, and does not say what is left.
        OSError: the kernel refuses.
    """
    mask = sum(1 << capability for capability in kept)
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), _Sets()
    _check(libc.capget(byref(header), byref(sets)))
    for name, *_ in _Sets._fields_:
        part = mask >> 32 if name.endswith("high") else mask & 0xFFFFFFFF
        setattr(sets, name, getattr(sets, name) & part)
    _check(libc.capset(byref(header), byref(sets)))
    try:
        _check(libc.capget(byref(header), byref(sets)))
    except OSError as error:
        raise Unverified(error.errno, f"capget: {os.strerror(error.errno or 0)}") from error
    left = (sets.permitted_low | sets.permitted_high << 32) & ~mask
    if left:
        raise OSError(0, f"capabilities {left:#x} are left")


def _call(option: int, value: int) -> None:
    _check(_prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
