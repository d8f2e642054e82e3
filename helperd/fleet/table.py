"""What became of each checkpoint, as JSON lines that a rerun can go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from helperd.errors import from_errno
from helperd.fleet.find import Checkpoint
from helperd.fleet.jobs import FAILED, Outcome


class Table:
    """A file of outcomes; a context manager. Each is on disk when :meth:`add` returns.

    Args:
        path: of the file, which is appended to.

    Raises:
        HelperdError: it cannot be opened or read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = open(os.open(path, flags, 0o644), "r+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise from_errno(error.errno or 0, f"cannot open {path}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def left(self, checkpoints: Iterable[Checkpoint], verb: str) -> list[Checkpoint]:
        """Return the checkpoints with which ``verb`` has not gone well yet.

        Lines that are no outcomes, the last one of a killed run for instance, count for nothing.
        """
        done = set()
        self._file.seek(0)
        for line in self._file:
            try:
                found = json.loads(line)
                if found["verb"] == verb and found["verdict"] != FAILED:
                    done.add(found["path"])
            except (ValueError, KeyError, TypeError):
                continue
        return [checkpoint for checkpoint in checkpoints if checkpoint.path not in done]

    def add(self, outcome: Outcome) -> None:
        """Append an outcome.

        Raises:
            HelperdError: the disk is full, for one.
        """
        try:
            self._file.seek(0, os.SEEK_END)
            if not self._ends_with_a_line():
                self._file.write("\n")
            self._file.write(json.dumps(outcome.to_json()) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise from_errno(error.errno or 0, f"cannot write {self.path}") from error

    def _ends_with_a_line(self) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        return not size or os.pread(self._file.fileno(), 1, size - 1) == b"\n"
