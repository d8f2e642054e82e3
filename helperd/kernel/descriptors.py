"""Descriptors that are let go, one or all of them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_FD_TO_CLOSE = 3


def let_go(fd: int) -> None:
    """Close a descriptor; a standard one is pointed at /dev/null, so nothing takes its place."""
    if fd >= _FIRST_FD_TO_CLOSE:
        os.close(fd)
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but the standard ones and ``kept``."""
    first = _FIRST_FD_TO_CLOSE
    for fd in sorted(kept):
        if fd > first:
            os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
