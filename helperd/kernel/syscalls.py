"""The system calls that Python's os module lacks, with Python's conventions.

Every function retries EINTR, finishes short transfers and raises OSError. Scatter tables are
``array('Q')`` of address, length, address, length, ... - the layout of ``struct iovec`` on the
64-bit machines that CRIU runs on. The arrays are kept referenced for as long as a call runs.
"""

from __future__ import annotations

import errno
import mmap
import posix as os
from array import array

from helperd.kernel import native
from helperd.kernel.native import libc, libc_holding_gil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The kernel's UIO_MAXIOV: ranges in one call, on each side.
IOV_MAX = os.sysconf("SC_IOV_MAX")
HUGE_PAGE_SIZE = 2 << 20


def _bind(name: str, *argtypes: Any) -> Any:
    function = getattr(libc, name)
    function.argtypes = argtypes
    function.restype = native.c_ssize_t
    return function


_pwritev = _bind("pwritev", native.c_int, native.c_void_p, native.c_int, native.c_int64)
_preadv = _bind("preadv", native.c_int, native.c_void_p, native.c_int, native.c_int64)
_writev = _bind("writev", native.c_int, native.c_void_p, native.c_int)
_vmsplice = _bind("vmsplice", native.c_int, native.c_void_p, native.c_ulong, native.c_uint)
_VM_ARGS = (
    native.c_int,
    native.c_void_p,
    native.c_ulong,
    native.c_void_p,
    native.c_ulong,
    native.c_ulong,
)
_process_vm_readv = _bind("process_vm_readv", *_VM_ARGS)
_process_vm_writev = _bind("process_vm_writev", *_VM_ARGS)


_syscall = _bind("syscall", native.c_long, *(native.c_long,) * 5)
_fallocate = _bind("fallocate", native.c_int, native.c_int, native.c_int64, native.c_int64)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_fallocate.restype = native.c_int
_SYS_PROCESS_MADVISE = 440
_SYS_CLOSE_RANGE = 436
_MADV_COLLAPSE = 25


#: linux/resource.h: two numbers, and of ``struct rusage`` the one at this place of 18 words.
_RLIMIT_NOFILE, _PEAK_RSS, _RUSAGE_WORDS = 7, 4, 18
_RUSAGE_SELF = 0
_F_GETFL, _F_SETFL = 3, 4
_WORD_BITS = 64

# Without argtypes: to convert four arguments would take as long as the rest of the call.
_quick_pread = libc_holding_gil.pread
_quick_pread.restype = native.c_ssize_t
_memcmp = libc_holding_gil.memcmp
_memcmp.argtypes = (native.c_void_p, native.c_void_p, native.c_size_t)
_WORD_BYTES = 8
_word = (native.c_char * _WORD_BYTES)()
_FIRST_WORD = (native.byref(_word), native.c_size_t(_WORD_BYTES), native.c_int64(0))
_zero_word = bytes(_WORD_BYTES)


class HugeBuffer:
    """Anonymous memory that asks for huge pages; its address never changes.

    Args:
        n_bytes: of it.
        huge: or else ordinary pages do: to fault in a huge one takes a while.

    Attributes:
        address: of the first byte, aligned to a page of its kind.
        view: writable memoryview of ``n_bytes`` bytes, rounded up to whole pages.
    """

    def __init__(self, n_bytes: int, *, huge: bool = True) -> None:
        page = HUGE_PAGE_SIZE if huge else mmap.PAGESIZE
        n_bytes = -(-n_bytes // page) * page
        # Python's default is shared memory, which gets no huge pages on most systems.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, n_bytes + page, flags=flags)
        start = native.addressof(native.c_char.from_buffer(self._map))
        offset = -start % page
        if huge:
            self._advise()
        self.address = start + offset
        self.view = memoryview(self._map)[offset : offset + n_bytes]

    def _advise(self) -> None:
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return  # No transparent huge pages, or a policy against them: slower, not wrong.


def preadv_all(fd: int, iovecs: array[int], n_bytes: int, offset: int) -> int:
    """Fill ``iovecs`` (``n_bytes`` in all) from ``offset`` of a file; consumes ``iovecs``.

    Returns:
        The bytes read: less than ``n_bytes`` only at the end of the file.
    """
    done = 0
    while done < n_bytes:
        count = min(len(iovecs) // 2, IOV_MAX)
        got: int = _preadv(fd, iovecs.buffer_info()[0], count, offset + done)
        if got < 0:
            if native.get_errno() == errno.EINTR:
                continue
            raise _last_error("preadv")
        if got == 0:
            break
        done += got
        if done < n_bytes:
            advance(iovecs, got)
    return done


def pwritev_all(fd: int, iovecs: array[int], n_bytes: int, offset: int) -> None:
    """Write ``iovecs`` (``n_bytes`` in all) to a file from ``offset`` on; consumes ``iovecs``."""
    done = 0
    while done < n_bytes:
        count = min(len(iovecs) // 2, IOV_MAX)
        got: int = _pwritev(fd, iovecs.buffer_info()[0], count, offset + done)
        if got < 0:
            if native.get_errno() == errno.EINTR:
                continue
            raise _last_error("pwritev")
        done += got
        if done < n_bytes:
            advance(iovecs, got)


def writev(fd: int, iovecs: array[int]) -> int:
    """Write as much of ``iovecs`` as goes in one call; return the bytes."""
    return _put(_writev, "writev", fd, iovecs)


def vmsplice(fd: int, iovecs: array[int]) -> int:
    """Let a pipe refer to as much of ``iovecs`` as goes in one call; return the bytes.

    Nothing is copied: the memory must stay as it is until the pipe's reader has read it.
    """
    return _put(_vmsplice, "vmsplice", fd, iovecs, 0)


def _put(function: Any, name: str, fd: int, iovecs: array[int], *flags: int) -> int:
    while True:
        count = min(len(iovecs) // 2, IOV_MAX)
        done: int = function(fd, iovecs.buffer_info()[0], count, *flags)
        if done >= 0:
            return done
        if native.get_errno() != errno.EINTR:
            raise _last_error(name)


def has_first_word(fd: int) -> bool:
    """Return whether 8 bytes can be read at the start of a file, in the shortest time."""
    got: int = _quick_pread(fd, *_FIRST_WORD)
    return got == _WORD_BYTES


def is_zero(address: int, n_bytes: int) -> bool:
    """Return whether all of a range of this process is zero, in one call; it has a word at least.

    A range that begins with a zero word and equals itself, a word further on, is zero.
    """
    rest: int = _memcmp(address, address + _WORD_BYTES, n_bytes - _WORD_BYTES)
    return rest == 0 and _memcmp(address, _zero_word, _WORD_BYTES) == 0


def scatter(source: array[int], n_bytes: int, iovecs: array[int]) -> None:
    """Copy ``n_bytes`` from one place of this process to many, in one call.

    The kernel does the scattering (process_vm_readv on the process itself), which is much
    cheaper than a Python-level step for each place.
    """
    pid = os.getpid()
    done = 0
    while done < n_bytes:
        remote = array("Q", (source.buffer_info()[0] + done, n_bytes - done))
        count = min(len(iovecs) // 2, IOV_MAX)
        got: int = _process_vm_readv(
            pid, iovecs.buffer_info()[0], count, remote.buffer_info()[0], 1, 0
        )
        if got < 0:
            raise _last_error("process_vm_readv")
        done += got
        if done < n_bytes:
            advance(iovecs, got)


def gather(iovecs: array[int], n_bytes: int, destination: int) -> None:
    """Copy ``n_bytes`` from many places of this process to one, in one call; consumes ``iovecs``.

    The reverse of :func:`scatter`, for the same reason.
    """
    pid = os.getpid()
    done = 0
    while done < n_bytes:
        local = array("Q", (destination + done, n_bytes - done))
        count = min(len(iovecs) // 2, IOV_MAX)
        got: int = _process_vm_readv(
            pid, local.buffer_info()[0], 1, iovecs.buffer_info()[0], count, 0
        )
        if got < 0:
            raise _last_error("process_vm_readv")
        done += got
        if done < n_bytes:
            advance(iovecs, got)


def joined(iovecs: array[int], n_bytes: int) -> bytearray:
    """Return the bytes of many places of this process, ``n_bytes`` in all; consumes ``iovecs``."""
    content = bytearray(n_bytes)
    if n_bytes:
        gather(iovecs, n_bytes, native.addressof(native.c_char.from_buffer(content)))
    return content


def writev_all(fd: int, iovecs: array[int]) -> None:
    """Write all of ``iovecs`` to a descriptor that waits; consumes ``iovecs``."""
    while iovecs:
        advance(iovecs, writev(fd, iovecs))


def process_vm_writev_all(pid: int, local: array[int], remote: array[int], n_bytes: int) -> int:
    """Copy ``n_bytes`` from ``local`` ranges into ``remote`` ranges of process ``pid``.

    Both tables must name ``n_bytes`` bytes; they are consumed. A call takes IOV_MAX ranges on
    each side and stops short at a page that cannot be written, so it is repeated until
    everything is copied or not one byte more goes.

    Raises:
        PartialWrite: an OSError whose ``done`` says how many bytes had been copied.
    """
    done = 0
    while done < n_bytes:
        (at, n_local), (to, n_remote) = local.buffer_info(), remote.buffer_info()
        got: int = _process_vm_writev(
            pid, at, min(n_local // 2, IOV_MAX), to, min(n_remote // 2, IOV_MAX), 0
        )
        if got <= 0:
            number = native.get_errno() if got < 0 else errno.EFAULT
            if number == errno.EINTR:
                continue
            raise PartialWrite(number, done, remote[0])
        done += got
        if done < n_bytes:
            advance(local, got)
            advance(remote, got)
    return done


def punch_hole(fd: int, offset: int, n_bytes: int) -> int:
    """Free a range of a file, which then reads as zeros; the size stays. Return 0 or the errno."""
    while True:
        if _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, n_bytes) == 0:
            return 0
        number = native.get_errno()
        if number != errno.EINTR:
            return number


def close_range(first: int, last: int) -> int:
    """Close the descriptors ``first`` to ``last`` (Linux 5.9); return 0 or the errno."""
    done: int = _syscall(_SYS_CLOSE_RANGE, first, last, 0, 0, 0)
    return 0 if done >= 0 else native.get_errno()


def file_flags(fd: int) -> int:
    """Return the flags that a file is open with, O_RDONLY and the like; the fcntl module's task."""
    flags: int = libc.fcntl(fd, _F_GETFL, 0)
    if flags < 0:
        raise _last_error("fcntl")
    return flags


def set_file_flags(fd: int, flags: int) -> None:
    """Set those flags of an open file that can be changed."""
    if libc.fcntl(fd, _F_SETFL, flags) < 0:
        raise _last_error("fcntl")


def current_cpu() -> int:
    """Return the CPU that the calling thread runs on; negative if that cannot be told."""
    cpu: int = libc.sched_getcpu()
    return cpu


def move_to(cpu: int) -> None:
    """Let the calling thread run on one CPU only, if the system permits that.

    As :func:`helperd.kernel.hints.stay_on`, but others can run Python while this thread waits for
    that CPU.
    """
    word, bit = divmod(cpu, _WORD_BITS)
    mask = array("Q", bytes(8 * word) + (1 << bit).to_bytes(8, "little"))
    libc.sched_setaffinity(
        0, native.c_size_t(8 * len(mask)), native.c_void_p(mask.buffer_info()[0])
    )


def raise_limit() -> None:
    """Let this process have as many descriptors as it may; the usual limit is for select(2)."""
    limits = array("Q", (0, 0))
    address = native.c_void_p(limits.buffer_info()[0])
    if libc.getrlimit(_RLIMIT_NOFILE, address) == 0 and limits[0] != limits[1]:
        limits[0] = limits[1]
        libc.setrlimit(_RLIMIT_NOFILE, address)  # Whoever runs out of them can say so.


def peak_rss_kib() -> int:
    """Return the most memory that this process has had, in KiB; the resource module's task."""
    usage = array("Q", bytes(8 * _RUSAGE_WORDS))
    libc.getrusage(_RUSAGE_SELF, native.c_void_p(usage.buffer_info()[0]))
    return usage[_PEAK_RSS]


def wait_for(pid: int) -> tuple[int, int]:
    """Wait for the end of a child; return its status and the most memory that it has had, in KiB.

    Python's wait4 imports the resource module.

    Raises:
        OSError: there is no such child.
    """
    status, usage = native.c_int(), array("Q", bytes(8 * _RUSAGE_WORDS))
    place = native.c_void_p(usage.buffer_info()[0])
    while libc.wait4(pid, native.byref(status), 0, place) != pid:
        if native.get_errno() != errno.EINTR:
            raise _last_error("wait4")
    return status.value, usage[_PEAK_RSS]


def process_madvise_collapse(pidfd: int, ranges: array[int]) -> int:
    """Ask for huge pages in ``ranges`` of another process (Linux 6.1); return 0 or the errno."""
    count = len(ranges) // 2
    address = ranges.buffer_info()[0]
    done: int = _syscall(_SYS_PROCESS_MADVISE, pidfd, address, count, _MADV_COLLAPSE, 0)
    return 0 if done >= 0 else native.get_errno()


class PartialWrite(OSError):
    """process_vm_writev stopped: ``done`` bytes were copied, ``address`` could not be written."""

    def __init__(self, number: int, done: int, address: int) -> None:
        super().__init__(number, os.strerror(number))
        self.done = done
        self.address = address


def advance(iovecs: array[int], n_bytes: int) -> None:
    """Remove the first ``n_bytes`` bytes from a table of ranges, in place."""
    index = 0
    while index < len(iovecs) and n_bytes >= iovecs[index + 1]:
        n_bytes -= iovecs[index + 1]
        index += 2
    del iovecs[:index]
    if n_bytes:
        iovecs[0] += n_bytes
        iovecs[1] -= n_bytes


def _last_error(call: str) -> OSError:
    number = native.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
