"""What is asked of the kernel but can be done without: it may refuse, or a seccomp policy may."""

from __future__ import annotations

import posix as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def advise_file(fd: int, offset: int, n_bytes: int, advice: int) -> None:
    """Say how a range of a file is used, one of POSIX_FADV_*; 0 bytes are all to the end."""
    try:
        os.posix_fadvise(fd, offset, n_bytes, advice)
    except OSError:
        return


def name_process(name: str) -> None:
    """Name this process, in at most 15 bytes."""
    from helperd.kernel import privileges  # Not needed by a client of a server.

    try:
        privileges.set_name(name)
    except OSError:
        return


def stay_on(cpus: Iterable[int]) -> None:
    """Let the calling thread run on these CPUs only.

    Kernels that pack threads onto few CPUs, to let the others sleep, see too late that several of
    one process are busy: what takes less than some 50 ms is over by then.
    """
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return


def cpu_for_each(threads: int) -> list[int]:
    """Return a CPU for each of all threads, to stay on; none if there are more CPUs, or fewer.

    With one for each nobody is kept from a CPU that is idle.
    """
    cpus = sorted(os.sched_getaffinity(0))
    return cpus if len(cpus) == threads else []


def stand_back(niceness: int) -> None:
    """Let the calling thread give way to others, the more the higher: from 1 to 19."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    except OSError:
        return


def set_times(file: int | str, atime_ns: int, mtime_ns: int) -> None:
    """Set the times of a file, by its descriptor or its path; a link's own times.

    Only its owner may: whoever may just write to it can leave them.
    """
    try:
        if isinstance(file, int):
            os.utime(file, ns=(atime_ns, mtime_ns))
        else:
            os.utime(file, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    except OSError:
        return


def empty_file(fd: int) -> None:
    """Empty a file that is open for writing; pipes and the like have no content."""
    try:
        os.ftruncate(fd, 0)
    except OSError:
        return
