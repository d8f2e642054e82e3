"""What is read from /proc, with care for the case that it is absent or another namespace's."""

from __future__ import annotations

import posix as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from helperd.kernel.pidfd import Pidfd

#: Inode of the initial pid namespace, fixed in the kernel (PROC_PID_INIT_INO).
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
_READ_SIZE = 1 << 16
#: In smaps, among the flags of a mapping with MADV_HUGEPAGE.
_ADVISED = b" hg"


def pid_in_proc(pidfd: Pidfd) -> int | None:
    """Return the number under which /proc knows the process of ``pidfd``.

    It differs from the pid in our namespace when /proc belongs to another one.

    Returns:
        None when there is no /proc, the process is not visible in it, or it is gone.
    """
    try:
        fd = os.open(f"/proc/self/fdinfo/{pidfd.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    for line in read_lines(fd):
        name, _, value = line.partition(":")
        if name == "Pid":
            os.close(fd)
            return int(value) if int(value) > 0 else None
    os.close(fd)
    return None


def open_memory_files(pidfd: Pidfd) -> tuple[int, ...]:
    """Open the pagemap, maps and smaps of the process of ``pidfd``; () if that is impossible.

    They stay bound to the memory that the process has now. The caller must see that the process
    is alive afterwards: then the number in /proc was its own all the time.
    """
    number = pid_in_proc(pidfd)
    if number is None:
        return ()
    fds: list[int] = []
    try:
        for name in ("pagemap", "maps", "smaps"):
            fds.append(os.open(f"/proc/{number}/{name}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        for fd in fds:
            os.close(fd)
        return ()
    return tuple(fds)


def advised_ranges(smaps: int) -> list[tuple[int, int]]:
    """Return the (start, end) of the mappings with MADV_HUGEPAGE in an open /proc/PID/smaps.

    Neighbours are merged. Empty if the process is gone.
    """
    try:
        data = b"".join(_read_parts(smaps))
    except ProcessLookupError:
        return []
    ranges: list[tuple[int, int]] = []
    if _ADVISED not in data:
        return ranges  # As mostly, and there are two dozen lines for each mapping.
    start = end = 0
    for line in data.split(b"\n"):
        head, *flags = line.split() or [b":"]
        if not head.endswith(b":"):
            start, end = (int(part, 16) for part in head.split(b"-"))
        elif head == b"VmFlags:" and _ADVISED.strip() in flags:
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
    return ranges


def parent_in_proc(number: int) -> int | None:
    """Return the parent of process ``number``, both as /proc numbers them; None if it is gone."""
    try:
        fd = os.open(f"/proc/{number}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        stat = file.read()
    # "pid (name) state ppid ...", and the name may hold anything, brackets included.
    return int(stat[stat.rindex(b")") + 2 :].split()[1]) or None


def in_initial_pid_namespace() -> bool:
    """Return whether pid 1 is the machine's init, and not that of a container."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def effective_capabilities(number: int) -> int:
    """Return the effective capabilities of process ``number`` as a set of bits.

    Raises:
        OSError: there is no such process.
    """
    fd = os.open(f"/proc/{number}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        value = next(line for line in read_lines(fd) if line.startswith("CapEff"))
    finally:
        os.close(fd)
    return int(value.split()[1], 16)


def namespace(number: int, name: str) -> int:
    """Return what identifies the namespace of a kind that process ``number`` is in.

    Raises:
        OSError: it cannot be seen.
    """
    return os.stat(f"/proc/{number}/ns/{name}").st_ino


def read_lines(fd: int) -> Iterator[str]:
    """Yield the lines of a file from its start, whatever was read from it before."""
    rest = b""
    for data in _read_parts(fd):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "surrogateescape")
    if rest:
        yield rest.decode("utf-8", "surrogateescape")


def _read_parts(fd: int) -> Iterator[bytes]:
    offset = 0
    while data := os.pread(fd, _READ_SIZE, offset):
        offset += len(data)
        yield data
