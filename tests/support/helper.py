"""The helper as its callers meet it: a process, two pipes, an exit status."""

from __future__ import annotations

import enum
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from helperd.restorer.helper import COMMAND
from tests.support.processes import DEADLINE_SECONDS, children_of
from tests.support.requests import ANSWER, RawRequest


class FrontEnd(enum.Enum):
    """The two ways to hand a helper its pipes and its image."""

    STDIN_PIPES = "--stdin-pipes"
    FDS = "--pages-fd"


@dataclass(frozen=True)
class Outcome:
    """How a helper ended: its exit status (negative: a signal) and what it said."""

    status: int
    stderr: str
    #: What it wrote to a stdout that is not the answer pipe.
    stdout: bytes = b""

    @property
    def error_line(self) -> str:
        """The one line that says what went wrong; fails when it is not exactly one."""
        assert "Traceback" not in self.stderr
        (line,) = self.stderr.splitlines()
        return line


class HelperProcess:
    """A helper that a test speaks to byte by byte; a context manager that leaves none behind.

    Args:
        pages: the pages image.
        options: further command line options.
        front_end: how the helper gets its pipes and its image.
        wrapper: a command line to run the helper's command line with.
        command: the helper's command line up to its options.
    """

    def __init__(
        self,
        pages: Path,
        *options: str,
        front_end: FrontEnd = FrontEnd.STDIN_PIPES,
        wrapper: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        request_end, self._request_fd = os.pipe()
        self._answer_fd: int
        self._answer_fd, answer_end = os.pipe()
        os.set_blocking(self._request_fd, False)
        command = [*wrapper, *command]
        if front_end is FrontEnd.STDIN_PIPES:
            command += ["--stdin-pipes", "--pages", str(pages), *options]
            with closing_fds(request_end, answer_end):
                self._process = subprocess.Popen(
                    command, stdin=request_end, stdout=answer_end, stderr=self._stderr
                )
        else:
            pages_fd = os.open(pages, os.O_RDONLY)
            command += [f"--pages-fd={pages_fd}", f"--request-fd={request_end}"]
            command += [f"--reply-fd={answer_end}", *options]
            with closing_fds(request_end, answer_end, pages_fd):
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._stdout,
                    stderr=self._stderr,
                    pass_fds=(request_end, answer_end, pages_fd),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self.close_request_pipe()
        self.close_answer_pipe()
        self._stderr.close()
        self._stdout.close()

    @property
    def pid(self) -> int:
        """The pid that the spawner knows and waits for."""
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        """The helper's only child. Call it after an answer: the worker may start late."""
        (worker,) = children_of(self.pid)
        return worker

    def send(self, data: bytes) -> None:
        """Write all bytes to the request pipe. BrokenPipeError when the helper is gone."""
        view = memoryview(data)
        while view:
            writable = select.select([], [self._request_fd], [], DEADLINE_SECONDS)[1]
            assert writable, "the helper stopped reading its request pipe"
            with suppress(BlockingIOError):
                view = view[os.write(self._request_fd, view) :]

    def receive(self) -> int | None:
        """Return the next answer, None when the pipe is closed without one."""
        data = b""
        while len(data) < ANSWER.size:
            readable = select.select([self._answer_fd], [], [], DEADLINE_SECONDS)[0]
            assert readable, "the helper does not answer"
            part = os.read(self._answer_fd, ANSWER.size - len(data))
            if not part:
                assert not data, f"the helper left within an answer: {data!r}"
                return None
            data += part
        value: int = ANSWER.unpack(data)[0]
        return value

    def ask(self, request: RawRequest | bytes) -> int | None:
        """Send a request, return the answer. Not reading all of a refused one is fine."""
        with suppress(BrokenPipeError):
            self.send(request if isinstance(request, bytes) else request.encode())
        return self.receive()

    def close_request_pipe(self) -> None:
        """Close the end that requests are written to: the helper reads the end of input."""
        if self._request_fd >= 0:
            os.close(self._request_fd)
            self._request_fd = -1

    def close_answer_pipe(self) -> None:
        """Close the end that answers are read from."""
        if self._answer_fd >= 0:
            os.close(self._answer_fd)
            self._answer_fd = -1

    def finish(self) -> Outcome:
        """Close the request pipe, expect no further answer, and wait for the end."""
        self.close_request_pipe()
        if self._answer_fd >= 0:
            assert self.receive() is None, "an answer that nobody asked for"
        return self.wait()

    def wait(self) -> Outcome:
        """Wait for the helper to end by itself."""
        status = self._process.wait(DEADLINE_SECONDS)
        self._stderr.seek(0)
        self._stdout.seek(0)
        return Outcome(status, self._stderr.read().decode(), self._stdout.read())


@contextmanager
def closing_fds(*fds: int) -> Iterator[None]:
    """Close descriptors that belong to a child once it has been started."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def run_helper(*options: str, pass_fds: Sequence[int] = ()) -> Outcome:
    """Run ``helperd`` with nothing on stdin, for calls that end at once."""
    result = subprocess.run(
        [*COMMAND, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=pass_fds,
        timeout=DEADLINE_SECONDS,
    )
    return Outcome(result.returncode, result.stderr.decode(), result.stdout)
