"""Starts workload.c, whose processes check their own memory, and asks them whether it is right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from criu.errors import SetupError, WorkloadError
from criu.native import CACHE
from criu.processes import descendants, is_gone, kill, start, wait_for, wait_until_gone

_SOURCE = Path(__file__).with_name("workload.c")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread")


def compile_workload() -> Path:
    """Return the program, compiled when the source is new.

    It lies where a virtual machine sees it, too; that has no time for compilers.

    Raises:
        SetupError: there is no C compiler, or it failed.
    """
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    program = CACHE / "programs" / f"workload-{digest}"
    if program.exists():
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SetupError("no C compiler found: install gcc, or set CC to a compiler")
    program.parent.mkdir(parents=True, exist_ok=True)
    partial = program.with_name(f"{program.name}.{os.getpid()}")
    command = [compiler, *_FLAGS, "-o", str(partial), str(_SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetupError(f"cannot compile {_SOURCE}: {result.stderr.strip()}")
    partial.rename(program)
    return program


class Workload:
    """A running tree of processes of workload.c; a context manager that leaves none behind.

    It can be dumped and restored in between: everything goes by pids, which CRIU keeps.

    Args:
        folder: for questions and answers; it has to be there, at the same path, after a restore.
        arguments: what workload.c is to do, such as ``memory text=64 random=16``.
        processes: how many it consists of.

    Attributes:
        pid: of the first process, the one to dump.
        pids: of all, parents first.
    """

    def __init__(self, folder: Path, *arguments: str, processes: int = 1) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pid = start([str(compile_workload()), str(folder), *arguments])
        self.pids = [self.pid]
        try:
            self._answer(self.pid)
            wait_for(lambda: len(descendants(self.pid)) == processes, f"{processes} processes")
            self.pids = descendants(self.pid)
            for pid in self.pids[1:]:
                self._answer(pid)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, question: str, pid: int | None = None) -> str:
        """Ask a process (the first one, if none is named) and return its answer.

        Raises:
            WorkloadError: it ended, or does not answer.
        """
        pid = self.pid if pid is None else pid
        self.tell(question, pid)
        return self._answer(pid)

    def tell(self, question: str, pid: int | None = None) -> None:
        """Ask a process without waiting for the answer, which :meth:`answer` brings."""
        pid = self.pid if pid is None else pid
        partial = self._folder / f"{pid}.question"
        partial.write_text(question + "\n")
        partial.rename(self._folder / f"{pid}.ask")
        os.kill(pid, signal.SIGUSR1)

    def answer(self, pid: int | None = None) -> str:
        """Wait for the answer to :meth:`tell`.

        Raises:
            WorkloadError: the process ended, or does not answer.
        """
        return self._answer(self.pid if pid is None else pid)

    def check(self) -> None:
        """Have every process check all its memory, and what the processes share.

        Raises:
            WorkloadError: something is wrong; the message says where.
        """
        token = int.from_bytes(os.urandom(3)) + 1
        for pid in self.pids:
            answer = self.ask(f"check {token}" if pid == self.pid else "check", pid)
            for line in answer.splitlines():
                words = line.split()
                if words[0] == "wrong":
                    raise WorkloadError(f"memory of process {pid} is {line}")
                if words[0] == "token" and words[1:] != [str(token)] * 2:
                    raise WorkloadError(f"process {pid} shares no memory with the first: {line}")
                if words[0] == "threads" and words[4] != "0":
                    raise WorkloadError(f"threads of process {pid} have found errors: {line}")
            if not answer.startswith("right "):
                raise WorkloadError(f"process {pid} has answered {answer!r}")

    def wait_until_gone(self) -> None:
        """Wait until all pids are free.

        Raises:
            WorkloadError: one never is.
        """
        wait_until_gone(*self.pids)

    def is_running(self) -> bool:
        """Say whether the first process is there and no zombie."""
        return not is_gone(self.pid)

    def kill(self) -> None:
        """End all processes."""
        kill(self.pids)

    def _answer(self, pid: int) -> str:
        path = self._folder / f"{pid}.answer"
        died = self._folder / f"{pid}.died"
        wait_for(lambda: path.exists() or died.exists() or is_gone(pid), f"process {pid}")
        if not path.exists():
            with contextlib.suppress(FileNotFoundError):
                raise WorkloadError(f"process {pid} died: {died.read_text().strip()}")
            raise WorkloadError(f"process {pid} is gone and has answered nothing")
        answer = path.read_text()
        path.unlink()
        return answer
