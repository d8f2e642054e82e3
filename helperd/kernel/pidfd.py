"""A hold on one process that survives the reuse of its number."""

from __future__ import annotations

import errno
import posix as os
import select

from helperd.errors import TargetGone, from_errno


class Pidfd:
    """An open pidfd ``fd``; closed when it is forgotten."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, pid: int) -> Pidfd:
        """Return a pidfd of process ``pid``.

        Raises:
            TargetGone: there is no process ``pid``, or it is a thread of one.
        """
        try:
            return cls(os.pidfd_open(pid))
        except OSError as error:
            # A thread of a process: EINVAL, since Linux 6.9 ENOENT.
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise TargetGone(
                    f"target {pid} is not a process: it is gone or never was"
                ) from error
            raise from_errno(error.errno or errno.EIO, f"pidfd_open of process {pid}") from error

    def is_alive(self) -> bool:
        """Return whether the process has not exited (a zombie has)."""
        # A poll object of one's own: they cannot be shared between threads.
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def __del__(self) -> None:
        os.close(self.fd)
