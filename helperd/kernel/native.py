"""As much of ctypes as calling C functions takes.

Importing ctypes takes longer than all else that a worker needs of it, and a restore waits for that.
These are the same classes, of the extension module that ctypes consists of but for its convenience;
libraries and functions behave like ctypes' own.
"""

from __future__ import annotations

import posix as os
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    Structure,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    get_errno,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _Simple = _SimpleCData[Any]
else:
    _Simple = _SimpleCData

__all__ = ["Library", "Structure", "addressof", "byref", "get_errno", "libc", "libc_holding_gil"]


class c_char(_Simple):  # noqa: N801 - C's name for it, as all of these
    _type_ = "c"


class c_int(_Simple):  # noqa: N801
    _type_ = "i"


class c_long(_Simple):  # noqa: N801
    _type_ = "l"


class c_ushort(_Simple):  # noqa: N801
    _type_ = "H"


class c_uint(_Simple):  # noqa: N801
    _type_ = "I"


class c_ulong(_Simple):  # noqa: N801
    _type_ = "L"


class c_char_p(_Simple):  # noqa: N801
    _type_ = "z"


class c_void_p(_Simple):  # noqa: N801
    _type_ = "P"


# As they are on the 64-bit machines that CRIU runs on.
c_int64 = c_ssize_t = c_long
c_size_t = c_ulong
WORD_BYTES = 8


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = c_int


class _FunctionHoldingGil(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI
    _restype_ = c_int


# None, for this very process, is not in the library's types.
_load: Any = dlopen


class Library:
    """A shared library; its functions are its attributes, and keep the errno.

    Args:
        name: a path, a name for the dynamic linker to look up, or None for this very process.
        holding_gil: for calls so short that letting another thread run meanwhile would cost more
            than they do.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, name: str | None, *, holding_gil: bool = False) -> None:
        self.name = name
        self._handle = _load(name, os.RTLD_NOW)
        self._kind: Any = _FunctionHoldingGil if holding_gil else _Function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        function = self._kind((name, self))
        setattr(self, name, function)
        return function


libc = Library(None)
libc_holding_gil = Library(None, holding_gil=True)
