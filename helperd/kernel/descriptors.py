"""Descriptors: let go, passed along with messages; what takes the place of standard ones."""

from __future__ import annotations

import _socket
import _stat as stat
import posix as os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FIRST_FD_TO_CLOSE = 3
#: Bytes of a descriptor in a message.
_INT_BYTES = 4
_NULL_PATH, _NULL_DEVICE = "/dev/null", os.makedev(1, 3)
_LAST_FD = (1 << 31) - 1
#: Where they cannot be listed, and not be closed at once: as many as a system mostly allows.
_MOST_FDS = 1 << 20

#: Those standard descriptors that were closed when this process began, see :func:`fill_standard`.
_filled: set[int] = set()


def fill_standard() -> None:
    """Put something harmless where a standard descriptor is missing.

    Whatever is opened next would take its place, and be written to as stdout or stderr. Reading
    it gives the end, writing to it fails, as before.
    """
    for fd in range(_FIRST_FD_TO_CLOSE):
        try:
            os.fstat(fd)
        except OSError:
            _filled.add(fd)
            _put(_dead_end(), fd)


def is_open(fd: int) -> bool:
    """Return whether a descriptor is open, and was handed down if it is a standard one."""
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        return False
    return fd not in _filled


def open_null(flags: int) -> int:
    """Open /dev/null.

    Raises:
        OSError: there is none, or what has its name is something else.
    """
    fd = os.open(_NULL_PATH, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _NULL_DEVICE:
        os.close(fd)
        raise OSError(f"{_NULL_PATH} is not the null device")
    return fd


def open_inert() -> int:
    """Return a descriptor that nothing comes from, and whose writers are told nothing.

    Where there is no /dev/null, as in a container's bare root, writing to it fails.
    """
    try:
        return open_null(os.O_RDWR)
    except OSError:
        return _dead_end()


def let_go(fd: int) -> None:
    """Close a descriptor; a standard one becomes inert, so nothing takes its place."""
    if fd >= _FIRST_FD_TO_CLOSE:
        os.close(fd)
    else:
        _put(open_inert(), fd)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but the standard ones and ``kept``.

    Those above a limit that was lowered when they were open are closed as well.
    """
    spared = set(kept)
    # Importing it is more than a client of a server has to do besides.
    closed = "helperd.kernel.syscalls" in sys.modules and _close_between(spared, at_once=True)
    if closed:
        return
    numbers = _open_fds()
    if numbers is None:
        _close_between(spared, at_once=False)
        return
    for fd in numbers:
        if fd >= _FIRST_FD_TO_CLOSE and fd not in spared:
            _close_quietly(fd)


def as_rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return what sendmsg takes to pass descriptors along."""
    if not fds:
        return []
    data = b"".join(fd.to_bytes(_INT_BYTES, sys.byteorder) for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]


def from_rights(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that recvmsg got along with a message; they are the caller's."""
    return [
        int.from_bytes(data[at : at + _INT_BYTES], sys.byteorder)
        for level, kind, data in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(data) - _INT_BYTES + 1, _INT_BYTES)
    ]


def room_for_rights(count: int) -> int:
    """Return the room that recvmsg needs for ``count`` descriptors."""
    return _socket.CMSG_SPACE(count * _INT_BYTES)


def _open_fds() -> list[int] | None:
    """Return the open descriptors; None where /proc cannot tell."""
    try:
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except OSError:
        return None
    finally:
        os.close(folder)
    # Or else that was no /proc.
    return [fd for fd in numbers if fd != folder] if folder in numbers else None


def _close_between(spared: set[int], *, at_once: bool) -> bool:
    """Close all descriptors but the standard ones and ``spared``; return whether that was done.

    Args:
        spared: to be left open.
        at_once: only if the kernel knows close_range, from Linux 5.9 on, and no policy forbids it.
    """
    from helperd.kernel.syscalls import close_range

    first = _FIRST_FD_TO_CLOSE
    for fd in (*sorted(spared), _LAST_FD + 1):
        if fd > first and close_range(first, fd - 1):
            if at_once:
                return False
            os.closerange(first, min(fd - 1, _MOST_FDS))
        first = max(first, fd + 1)
    return True


def _close_quietly(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return


def _dead_end() -> int:
    """Return the reading end of a pipe that nobody writes to: reading ends, writing fails."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def _put(source: int, fd: int) -> None:
    """Move a descriptor to another number."""
    if source != fd:
        os.dup2(source, fd, inheritable=True)
        os.close(source)
    else:
        os.set_inheritable(fd, True)
