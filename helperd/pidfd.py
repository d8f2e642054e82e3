"""A hold on one process that survives the reuse of its number."""

from __future__ import annotations

import errno
import os
import select

from helperd.errors import TargetGone, from_errno


class Pidfd:
    """A pidfd; closed when it is forgotten.

    Raises:
        TargetGone: there is no process ``pid``, or it is a thread of one.
    """

    def __init__(self, pid: int) -> None:
        try:
            self.fd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
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
        if hasattr(self, "fd"):
            os.close(self.fd)
