"""userfaultfd: what a handler is told, and how it puts pages into another process.

Facts: the kernel's userfaultfd.rst, ioctl_userfaultfd(2) and linux/userfaultfd.h. A copy must lie
within one mapping that is registered, else ENOENT; it stops at a page that is there already with
EEXIST; while an event waits to be read it fails with EAGAIN; and once the process is gone with
ESRCH. All of them say how many bytes were done before.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array

from helperd.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PAGEFAULT = 0x12
FORK = 0x13
REMAP = 0x14
REMOVE = 0x15
UNMAP = 0x16

#: Bits of a fault's flags.
FAULT_WRITE = 1

FEATURE_EVENT_FORK = 1 << 1
FEATURE_EVENT_REMAP = 1 << 2
FEATURE_EVENT_REMOVE = 1 << 3
FEATURE_EVENT_UNMAP = 1 << 6
#: Linux 6.6: pages can be marked as lost.
FEATURE_POISON = 1 << 14
#: What CRIU asks for as far as the kernel has it.
EVENT_FEATURES = (
    FEATURE_EVENT_FORK | FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP
)

_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_ZEROPAGE = 0xC020AA04
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFDIO_POISON = 0xC020AA08
_REGISTER_MISSING = 1
#: Of a copy and of zero pages: leave who waits for them asleep, for :meth:`Userfaultfd.wake`.
_DONT_WAKE = 1
_SOME_ADDRESS, _SOME_BYTES = 1 << 20, 1 << 16
_SYS_USERFAULTFD = 323

#: struct uffd_msg: u8 event, 7 bytes of padding, three u64 that mean what the event says.
_MESSAGE = struct.Struct("<B7xQQQ")
MESSAGE_BYTES = _MESSAGE.size
_MESSAGES_AT_ONCE = 16

_libc = native.Library(None)
_ioctl: Any = _libc.ioctl
_ioctl.argtypes = (native.c_int, native.c_ulong, native.c_void_p)
#: For calls of a few pages, which are over before another thread could have taken its turn.
_short_ioctl: Any = native.Library(None, holding_gil=True).ioctl
_short_ioctl.argtypes = _ioctl.argtypes
_SHORT_BYTES = 32 << 10
#: struct uffdio_copy: to, source, length, mode, result. And the others: to, length, mode, result.
_COPY, _COPY_RESULT = struct.Struct("<5q"), 4
_ZERO, _ZERO_RESULT = struct.Struct("<4q"), 3


class Message:
    """One message of a userfaultfd.

    Attributes:
        event: PAGEFAULT, FORK, REMAP, REMOVE or UNMAP; others may come from newer kernels.
        start: the address of the fault, the first address of the range, or where it moved from.
        end: the address after the range (REMOVE, UNMAP), or where the range moved to (REMAP).
        length: bytes of the range that moved (REMAP).
        flags: of a fault, FAULT_WRITE and others.
        fd: the child's userfaultfd (FORK), which is the reader's to close.
    """

    __slots__ = ("end", "event", "fd", "flags", "length", "start")

    def __init__(
        self,
        event: int,
        start: int = 0,
        end: int = 0,
        length: int = 0,
        flags: int = 0,
        fd: int = -1,
    ) -> None:
        self.event = event
        self.start = start
        self.end = end
        self.length = length
        self.flags = flags
        self.fd = fd


def parse_messages(data: bytes) -> Iterator[Message]:
    """Yield the messages in what was read from a userfaultfd; a part of one at the end is left."""
    for event, first, second, third in _MESSAGE.iter_unpack(
        data[: len(data) - len(data) % MESSAGE_BYTES]
    ):
        if event == PAGEFAULT:
            yield Message(event, start=second, flags=first)
        elif event == FORK:
            yield Message(event, fd=first & 0xFFFFFFFF)
        elif event == REMAP:
            yield Message(event, start=first, end=second, length=third)
        else:
            yield Message(event, start=first, end=second)


class Userfaultfd:
    """An open userfaultfd; closed by :meth:`close` only.

    Any thread may use it; who closes it sees to it that no other does.

    Closing the last descriptor of it ends the watch: what is missing then reads as zeros.

    Attributes:
        fd: the descriptor; -1 once it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # What calls are told, and where that lies: making it anew would cost as much as a call. As
        # many as threads have been calling at once.
        self._words: list[tuple[array[int], int]] = []

    @classmethod
    def open(cls, features: int = EVENT_FEATURES) -> Userfaultfd:
        """Return a new userfaultfd of the calling process.

        Raises:
            OSError: the kernel has none, refuses it, or lacks a feature (EINVAL).
        """
        fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise _last_error("userfaultfd")
        words = array("Q", (_API, features, 0))
        if _ioctl(fd, _UFFDIO_API, words.buffer_info()[0]):
            error = _last_error("UFFDIO_API")
            os.close(fd)
            raise error
        return cls(fd)

    def register(self, start: int, n_bytes: int) -> None:
        """Watch a range of mapped memory for missing pages.

        Raises:
            OSError: it is not memory that can be watched.
        """
        words = array("Q", (start, n_bytes, _REGISTER_MISSING, 0))
        if _ioctl(self.fd, _UFFDIO_REGISTER, words.buffer_info()[0]):
            raise _last_error("UFFDIO_REGISTER")

    def read(self) -> list[Message]:
        """Return the messages that wait, at most 16; none if there are none.

        Raises:
            OSError: reading failed.
        """
        try:
            data = os.read(self.fd, _MESSAGES_AT_ONCE * MESSAGE_BYTES)
        except BlockingIOError:
            return []
        return list(parse_messages(data))

    def copy(self, to: int, source: int, n_bytes: int, *, wake: bool = True) -> tuple[int, int]:
        """Copy pages of this process to missing ones at ``to``, and wake who waits for them.

        Args:
            to: address in the watched process.
            source: address in this process, of any alignment.
            n_bytes: whole pages.
            wake: False to leave who waits asleep until :meth:`wake`.

        Returns:
            The bytes that are there now, and 0 or the errno of what stopped it.
        """
        words, address = self._take()
        _COPY.pack_into(words, 0, to, source, n_bytes, 0 if wake else _DONT_WAKE, 0)
        call = _ioctl if n_bytes > _SHORT_BYTES else _short_ioctl
        number = native.get_errno() if call(self.fd, _UFFDIO_COPY, address) else 0
        done = words[_COPY_RESULT]
        self._words.append((words, address))
        return (n_bytes, 0) if not number else _stopped(done, number)

    def zero(self, to: int, n_bytes: int, *, wake: bool = True) -> tuple[int, int]:
        """Make missing pages at ``to`` zero pages; returns what :meth:`copy` does."""
        return self._simply(_UFFDIO_ZEROPAGE, to, n_bytes, 0 if wake else _DONT_WAKE)

    def poison(self, to: int, n_bytes: int) -> tuple[int, int]:
        """Mark missing pages as lost: whoever touches them gets SIGBUS (Linux 6.6).

        Returns what :meth:`copy` does; EINVAL is the errno of a kernel that cannot do it.
        """
        return self._simply(_UFFDIO_POISON, to, n_bytes, 0)

    def wake(self, start: int, n_bytes: int) -> None:
        """Wake who waits for pages of a range; who still misses one faults again."""
        words = array("Q", (start, n_bytes, 0, 0))
        _short_ioctl(self.fd, _UFFDIO_WAKE, words.buffer_info()[0])

    def is_alive(self) -> bool:
        """Return whether the watched memory still belongs to a process."""
        # Lifting a write protection that was never asked for does nothing, but to a process.
        words = array("Q", (_SOME_ADDRESS, _SOME_BYTES, 0))
        return not _short_ioctl(self.fd, _UFFDIO_WRITEPROTECT, words.buffer_info()[0]) or (
            native.get_errno() != errno.ESRCH
        )

    def close(self) -> None:
        """End the watch, unless another descriptor of it is open somewhere."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _take(self) -> tuple[array[int], int]:
        """Take words for a call, to be put back to the others."""
        try:
            return self._words.pop()
        except IndexError:
            words = array("q", bytes(_COPY.size))
            return words, words.buffer_info()[0]

    def _simply(self, request: int, to: int, n_bytes: int, mode: int) -> tuple[int, int]:
        words, address = self._take()
        _ZERO.pack_into(words, 0, to, n_bytes, mode, 0)
        call = _ioctl if n_bytes > _SHORT_BYTES else _short_ioctl
        number = native.get_errno() if call(self.fd, request, address) else 0
        done = words[_ZERO_RESULT]
        self._words.append((words, address))
        return (n_bytes, 0) if not number else _stopped(done, number)


def _stopped(done: int, number: int) -> tuple[int, int]:
    # Stopped behind some pages: why, only another call there can tell.
    return (done, errno.EAGAIN) if done > 0 else (0, number)


def features() -> int:
    """Return the features that the kernel's userfaultfd has; 0 where there is none or no right."""
    fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return 0
    words = array("Q", (_API, 0, 0))
    ok = _ioctl(fd, _UFFDIO_API, words.buffer_info()[0]) == 0
    os.close(fd)
    return words[1] if ok else 0


def _last_error(call: str) -> OSError:
    number = native.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
