"""Keeps a process in certain directories, whatever it opens: Landlock.

For processes that write files of their own and touch no other process; source: the kernel's
landlock.rst. What is open stays open.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from helperd.kernel.native import Library, c_long, get_errno

if TYPE_CHECKING:
    from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1

# linux/landlock.h; each version of the kernel's interface knows more of them.
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(1, 6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_FILES_NOW = (1 << 16) - 1
_ALL_NETWORK = 0b11
_ALL_SCOPES = 0b11
_SIGNALS = 0b10
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_FILE | _REMOVE_DIR
_WRITE |= _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
#: Before version 2 nothing could be renamed from one directory to another.
_LEAST_VERSION, _NETWORK_VERSION, _SCOPES_VERSION = 2, 4, 6

_RULE = struct.Struct("=Qi")

_syscall = Library(None).syscall


def restrict(
    writable: Sequence[str],
    readable: Sequence[str],
    *,
    emptied: Sequence[str] = (),
    signals: bool = False,
) -> None:
    """Confine the calling thread, and all that it starts, for good; takes no new privileges.

    No other file can be opened, no TCP port bound or connected to, no other process signalled.

    Args:
        writable: directories below which everything but devices and programs is allowed.
        readable: directories below which files can be read.
        emptied: directories below which empty directories can be removed.
        signals: other processes can be signalled all the same.

    Raises:
        OSError: the kernel has no Landlock, or too old a one.
    """
    version = _call(_CREATE_RULESET, 0, 0, _VERSION_FLAG)
    if version < _LEAST_VERSION:
        raise OSError(errno.EOPNOTSUPP, "an old Landlock")
    files = _ALL_FILES.get(version, _ALL_FILES_NOW)
    network = _ALL_NETWORK if version >= _NETWORK_VERSION else 0
    scopes = _ALL_SCOPES if version >= _SCOPES_VERSION else 0
    if signals:
        scopes &= ~_SIGNALS
    attributes = struct.pack("=QQQ", files, network, scopes)
    n_bytes = 24 if scopes else 16 if network else 8
    ruleset = _call(_CREATE_RULESET, attributes, n_bytes, 0)
    try:
        for paths, access in ((readable, _READ), (writable, _WRITE), (emptied, _REMOVE_DIR)):
            for path in paths:
                _allow(ruleset, path, access & files)
        _call(_RESTRICT_SELF, ruleset, 0, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(access, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes) -> int:
    words = (it if isinstance(it, bytes) else c_long(it) for it in arguments)
    result: int = _syscall(c_long(number), *words)
    if result < 0:
        code = get_errno()
        raise OSError(code, os.strerror(code))
    return result
