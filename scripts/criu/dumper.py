"""Dumps and restores with a real CRIU."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from criu.errors import CriuError
from criu.native import version_of
from criu.processes import descendants, wait_until_gone

#: A dump or a restore that takes longer hangs.
TIMEOUT_SECONDS = 300
_LOG_LINES = 12


@dataclass(frozen=True)
class Criu:
    """A CRIU that runs on this kernel.

    Attributes:
        program: its path.
    """

    program: Path

    @cached_property
    def version(self) -> str:
        """Return what it says of itself, such as ``4.2.1``."""
        return version_of(self.program)

    @cached_property
    def has_soft_dirty(self) -> bool:
        """Say whether this kernel tracks changes of memory, which pre-dumps and parents need."""
        check = [str(self.program), "check", "--feature", "mem_dirty_track"]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0

    def dump_command(self, pid: int, images: Path, *options: str) -> list[str]:
        """Return the command that dumps a tree of processes and ends it."""
        return self._command("dump", images, "--tree", str(pid), *options)

    def pre_dump_command(self, pid: int, images: Path, *options: str) -> list[str]:
        """Return the command that dumps memory alone and lets the processes run on."""
        return self._command("pre-dump", images, "--tree", str(pid), *options)

    def restore_command(self, images: Path, *options: str) -> list[str]:
        """Return the command that restores in the background."""
        return self._command("restore", images, "--restore-detached", *options)

    def dump(self, pid: int, images: Path, *options: str) -> None:
        """Dump a tree of processes and wait until their pids are free for a restore.

        Raises:
            CriuError: it failed, with what the log says.
        """
        images.mkdir(exist_ok=True)
        # All of them: a session's number is taken as long as any of its processes is.
        everybody = descendants(pid)
        self.run(self.dump_command(pid, images, *options), images)
        if "--leave-running" not in options:
            wait_until_gone(*everybody)

    def pre_dump(self, pid: int, images: Path, *options: str) -> None:
        """Dump the memory of running processes, and remember what they change from now on.

        Raises:
            CriuError: it failed, with what the log says.
        """
        images.mkdir(exist_ok=True)
        self.run(self.pre_dump_command(pid, images, "--track-mem", *options), images)

    def restore(self, images: Path, *options: str) -> None:
        """Restore; the processes have their old pids.

        Raises:
            CriuError: it failed, with what the log says.
        """
        self.run(self.restore_command(images, *options), images)

    def run(self, command: list[str], images: Path) -> None:
        """Run a command of :meth:`dump_command` and the like.

        Raises:
            CriuError: it failed, or took too long, with what the log says.
        """
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CriuError(f"{command[1]} takes too long: {log_tail(images)}") from error
        if result.returncode:
            raise CriuError(
                f"{command[1]} ended with {result.returncode}: {result.stdout}{log_tail(images)}"
            )

    def _command(self, action: str, images: Path, *options: str) -> list[str]:
        return [
            str(self.program),
            action,
            "--images-dir",
            str(images),
            "--log-file",
            f"{action}.log",
            "-v4",
            *options,
        ]


def log_tail(images: Path) -> str:
    """Return what the youngest log of a directory says about what went wrong."""
    logs = sorted(images.glob("*.log"), key=os.path.getmtime)
    if not logs:
        return "no log"
    lines = logs[-1].read_text(errors="replace").splitlines()
    wrong = [line for line in lines if "Error" in line or "Warn" in line]
    return f"{logs[-1].name}: " + " | ".join((wrong or lines)[-_LOG_LINES:])
