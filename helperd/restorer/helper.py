"""One helper, spawned and driven over pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from helperd.blocks import pages_to_bytes
from helperd.errors import EXIT_OK, HelperFailed, ImageError, ProtocolError, describe_errno
from helperd.helper.descriptors import open_image
from helperd.kernel import pipes
from helperd.kernel.descriptors import open_inert
from helperd.wire.pipe import ANSWER, unpack_answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from helperd.wire.pipe import Request


def _command() -> tuple[str, ...]:
    """Return the command line of a helper of this very helperd, which starts as ours does.

    Isolated, for an image directory is the usual working directory, and nothing in it is a module;
    and without site, which may take as long as a restore. So it is told where to look.
    """
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    packages = [folder for folder in sys.path if os.path.isdir(f"{os.path.abspath(folder)}/lz4")]
    folders = list(dict.fromkeys([own, *map(os.path.abspath, packages)]))
    code = (
        "import sys\nfrom _frozen_importlib_external import SourceFileLoader\n"
        f"sys.path += {folders}\nFOLDER = {own!r}\nname = 'helperd.quick'\n"
        "exec(SourceFileLoader(name, FOLDER + '/helperd/quick.py').get_code(name))"
    )
    return sys.executable, "-I", "-S", "-c", code


COMMAND = _command()


class Helper:
    """A running helper for one pages image; a context manager.

    Leaving the context closes the pipes, waits for the helper and raises HelperFailed if it did
    not end well - unless an exception is on its way already.

    Args:
        pages: path of the pages image, or an open descriptor of it (not taken over).
        target: a process to allow besides this process and its descendants.
        auto_dedup: let the helper destroy the image behind what it has restored; an open
            descriptor must be writable for that.
        options: further options for the helper, ``("-v4",)`` say.
        command: what to run, for helpers installed elsewhere.

    Attributes:
        log: what the helper has written to stderr; known after :meth:`close`.

    Raises:
        ImageError: the pages image cannot be opened.
        HelperFailed: the helper cannot be started.
    """

    def __init__(
        self,
        pages: str | os.PathLike[str] | int,
        *,
        target: int | None = None,
        auto_dedup: bool = False,
        options: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.log = ""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            raise HelperFailed(
                "this process ignores SIGCHLD, so the kernel would not tell how a helper ended:"
                " set it to SIG_DFL"
            )
        # A file, not a pipe: nobody has to read it for the helper to go on.
        self._log_fd = os.memfd_create("helperd-log")
        request_read, self._request_fd = os.pipe()
        self._reply_fd, reply_write = os.pipe()
        inert = open_inert()
        passed = [request_read, reply_write, inert]
        try:
            pages_fd = pages if isinstance(pages, int) else open_pages(pages, writable=auto_dedup)
            if not isinstance(pages, int):
                passed.append(pages_fd)
            self._process = subprocess.Popen(
                [
                    *command,
                    *("--pages-fd", str(pages_fd)),
                    *("--request-fd", str(request_read)),
                    *("--reply-fd", str(reply_write)),
                    *(() if target is None else ("--target", str(target))),
                    *(("--auto-dedup",) if auto_dedup else ()),
                    *options,
                ],
                pass_fds=(pages_fd, request_read, reply_write),
                stdin=inert,
                stdout=inert,
                stderr=self._log_fd,
            )
        except BaseException as error:
            for fd in (self._request_fd, self._reply_fd, self._log_fd):
                os.close(fd)
            if isinstance(error, OSError):
                raise HelperFailed(
                    f"cannot start {command[0]}: {describe_errno(error.errno or 0)}"
                ) from error
            raise
        finally:
            for fd in passed:
                os.close(fd)

    @property
    def pid(self) -> int:
        """The helper's pid; its worker is the only child."""
        return self._process.pid

    def request(self, request: Request) -> int:
        """Send a request and return the answer: the bytes of its pages that are not all zero.

        Raises:
            HelperFailed: the answer is negative, impossible or missing.
        """
        # The helper may leave early; its answer, if it gave one, says why.
        with contextlib.suppress(ProtocolError):
            pipes.write_all(self._request_fd, request.to_bytes())
        answer = b""
        while len(answer) < ANSWER.size:
            data = pipes.read_some(self._reply_fd, ANSWER.size - len(answer))
            if not data:
                raise self._failed("the helper ended without an answer", None)
            answer += data
        value = unpack_answer(answer)
        if value < 0:
            raise self._failed(f"the helper answered {describe_errno(-value)}", -value)
        if value > pages_to_bytes(request.n_pages):
            raise self._failed(f"the helper answered {value}, more than was asked for", None)
        return value

    def peak_rss_kib(self) -> int:
        """Return the largest peak of resident memory of the helper's processes, so far."""
        return max((_status_kib(pid, "VmHWM") for pid in self._pids()), default=0)

    def rss_kib(self) -> int:
        """Return the resident memory of the helper's processes together, now."""
        return sum(_status_kib(pid, "VmRSS") for pid in self._pids())

    def _pids(self) -> list[int]:
        """The helper's process and its children."""
        try:
            with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
                return [self.pid, *map(int, file.read().split())]
        except OSError:
            return []

    def close(self) -> int:
        """Close the pipes, wait for the helper, and return its exit status (see errors)."""
        if self._request_fd >= 0:
            os.close(self._request_fd)
            os.close(self._reply_fd)
            self._request_fd = self._reply_fd = -1
            self._process.wait()
            size = os.fstat(self._log_fd).st_size
            self.log = os.pread(self._log_fd, size, 0).decode("utf-8", "replace")
            os.close(self._log_fd)
        return self._process.wait()

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = self.close()
        if status != EXIT_OK and error is None:
            raise self._failed(f"the helper exited with status {status}", None)

    def _failed(self, message: str, answer_errno: int | None) -> HelperFailed:
        status = self.close()
        # A helper that did not even start may have said why, without any form.
        lines = [line for line in self.log.splitlines() if line.strip()]
        told = [line.partition("Error: ")[2] for line in lines if "Error: " in line] or lines
        if told:
            message += f": {told[-1].removeprefix('helperd: ')}"
        return HelperFailed(message, answer_errno=answer_errno, status=status)


def open_pages(path: str | os.PathLike[str], *, writable: bool) -> int:
    """Open a pages image; for writing only if that is wanted and allowed.

    Raises:
        ImageError: it cannot be opened.
    """
    try:
        return open_image(os.fspath(path), writable=writable)
    except OSError as error:
        raise ImageError(
            f"cannot open the pages image {os.fspath(path)}: {describe_errno(error.errno or 0)}",
            errno=error.errno,
        ) from error


def _status_kib(pid: int, field: str) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(field)), 0)
    except OSError:
        return 0
