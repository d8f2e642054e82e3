"""Both ends of a restore on demand: the daemon, and a process that is restored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from helperd.blocks import PAGE_SIZE
from helperd.wire.lazy import SOCKET_NAME
from tests.conftest import ROOT
from tests.support.processes import DEADLINE_SECONDS, children_of

#: Where the tests map memory: nothing else is ever there.
BASE_PAGE = 0x600000000000 // PAGE_SIZE


def address_of(page: int) -> int:
    """Return the address of a page by its number from BASE_PAGE on."""
    return (BASE_PAGE + page) * PAGE_SIZE


HELPERD = (sys.executable, "-m", "helperd")


class RestoredProcess:
    """A running ``tests.lazy_pages.restored``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lazy_pages.restored"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, name: str, *arguments: object) -> None:
        """Give a command without waiting for its answer."""
        assert self.process.stdin is not None
        words = " ".join([name, *map(str, arguments)])
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Return the answer to a command; empty if the process has died."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip()

    def do(self, name: str, *arguments: object) -> str:
        """Give a command and return its answer."""
        self.send(name, *arguments)
        return self.answer()

    def map(self, page: int, n_pages: int) -> None:
        """Map memory, and have it watched."""
        for command in ("map", "watch"):
            assert self.do(command, address_of(page), n_pages * PAGE_SIZE) == "ok"

    def read(self, page: int, n_pages: int = 1) -> str:
        """Return the hash of pages."""
        return self.do("read", address_of(page), n_pages * PAGE_SIZE)

    def connect(self, daemon: Daemon, *pids: int) -> None:
        """Tell the daemon of tasks, of which this process is the living one."""
        assert self.do("connect", daemon.socket) == "ok"
        for pid in pids:
            assert self.do("task", pid) == "ok"


class Daemon:
    """A running ``helperd lazy-pages``."""

    def __init__(
        self, images: Path, work: Path, *options: str, program: tuple[str, ...] = HELPERD
    ) -> None:
        work.mkdir(exist_ok=True)
        self.socket = work / SOCKET_NAME
        self.stats = work / "stats.json"
        self.log = work / "daemon.log"
        ready, status = os.pipe()
        command = [*program, "lazy-pages", "-D", str(images)]
        command += ["-W", str(work), "--status-fd", str(status), "--stats", str(self.stats)]
        command += ["-v4", "-o", str(self.log), *options]
        self.process = subprocess.Popen(command, pass_fds=(status,), stderr=subprocess.PIPE)
        os.close(status)
        self.is_ready = os.read(ready, 1) == b"\0"
        os.close(ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            for pid in (*children_of(self.process.pid), self.process.pid):
                with contextlib.suppress(ProcessLookupError):  # It may be at its end by itself.
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def report(self) -> dict[str, Any]:
        """Return what --stats has written."""
        report: dict[str, Any] = json.loads(self.stats.read_text())
        return report


def digest(content: bytes) -> str:
    """Return the hash that a process gives of memory with this content."""
    return hashlib.sha256(content).hexdigest()
