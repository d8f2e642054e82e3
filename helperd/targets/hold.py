"""What a worker needs of a process it writes to: open descriptors, which can be handed in."""

from __future__ import annotations

import posix as os

from helperd.kernel import procfs
from helperd.kernel.pidfd import Pidfd


class Hold:
    """A process pinned by its pidfd, with those files of /proc that tell of its memory.

    Args:
        pid: of the process.
        pidfd: of the process.
        memory_fds: its pagemap, maps and smaps; none when /proc does not show them. They stay
            bound to the memory that the process had when they were opened.
    """

    def __init__(self, pid: int, pidfd: Pidfd, memory_fds: tuple[int, ...]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._memory_fds = memory_fds

    @classmethod
    def open(cls, pid: int) -> Hold:
        """Pin process ``pid``.

        The caller must see that the process is alive afterwards: then its files in /proc were
        its own.

        Raises:
            TargetGone: there is no such process.
            NotPermitted: the kernel does not let us see it.
        """
        pidfd = Pidfd.open(pid)
        return cls(pid, pidfd, procfs.open_memory_files(pidfd))

    @classmethod
    def from_fds(cls, pid: int, fds: list[int]) -> Hold:
        """Take over descriptors in the order of :attr:`fds`."""
        return cls(pid, Pidfd(fds[0]), tuple(fds[1:]))

    @property
    def fds(self) -> list[int]:
        """The pidfd and the files of /proc; they stay ours."""
        return [self.pidfd.fd, *self._memory_fds]

    @property
    def pagemap(self) -> int | None:
        """Open ``/proc/PID/pagemap``."""
        return self._memory_fds[0] if self._memory_fds else None

    @property
    def maps(self) -> int | None:
        """Open ``/proc/PID/maps``."""
        return self._memory_fds[1] if self._memory_fds else None

    @property
    def smaps(self) -> int | None:
        """Open ``/proc/PID/smaps``."""
        return self._memory_fds[2] if self._memory_fds else None

    def __del__(self) -> None:
        for fd in self._memory_fds:
            os.close(fd)
