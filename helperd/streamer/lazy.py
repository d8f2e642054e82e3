"""A lazy-pages daemon beside a streamed restore: the process runs at once, with nothing copied.

CRIU excludes neither option by the other. It takes what is left to the daemon out of the stream's
pagemaps, and never reads it; so the stream carries only the rest, and the daemon brings the memory
from the same images.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from helperd.errors import EXIT_RESOURCES, HelperdError, ResourceError, shell_status
from helperd.lazy_pages import service
from helperd.lazy_pages.settings import Settings
from helperd.lazy_pages.standin import leave_parents_pages, open_images
from helperd.reports.openlog import open_log


def left_to_daemon(path: str) -> dict[int, bytearray]:
    """Return what the daemon brings of an image directory, for :class:`FlatImage`.

    Raises:
        ImageError: the directory is not whole.
    """
    images = open_images(path)
    with contextlib.closing(images):
        leave_parents_pages(images)
        return images.lazy


class Daemon:
    """A running lazy-pages daemon.

    Attributes:
        pid: of its process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = self._pid = pid

    def wait(self) -> None:
        """Wait until all memory is there.

        Raises:
            HelperdError: with the daemon's exit status, of which it has told the reason.
        """
        pid, self._pid = self._pid, 0
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            error = HelperdError("the memory of the restored process could not be brought")
            error.exit_code = shell_status(code)
            raise error

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)


@contextlib.contextmanager
def daemon(source: str, directory: str, threads: int) -> Iterator[Daemon]:
    """Start a daemon; when the block is left early, it ends.

    Args:
        source: the image directory.
        directory: where its socket is to be.
        threads: of the fill.

    Raises:
        HelperdError: it could not be started.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    ready, status_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = EXIT_RESOURCES
        try:
            os.close(ready)
            code = _serve(source, directory, threads, status_fd)
        finally:
            os._exit(code)
    os.close(status_fd)
    running = Daemon(pid)
    try:
        if not os.read(ready, 1):
            running.wait()
            raise ResourceError("the lazy-pages daemon has ended at once")
        yield running
    finally:
        os.close(ready)
        running.stop()


def _serve(source: str, directory: str, threads: int, status_fd: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = open_log(1, None)
    request = service.Request(
        source,
        work=directory,
        streamed=True,
        status_fd=status_fd,
        settings=Settings(threads=threads),
    )
    try:
        return service.run(request, log)
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        return error.exit_code
