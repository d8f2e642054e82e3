"""The log: one line for each thing worth saying, with CRIU's time stamps and verbosity levels.

Not :mod:`logging`: its import alone costs as much as the whole start of the helper.
A line is one write(2), so lines of the parent and of the worker never mix.
"""

from __future__ import annotations

import os
import time

SILENT, ERROR, WARNING, INFO, DEBUG = range(5)
DEFAULT_LEVEL = WARNING

_PREFIX = {ERROR: "Error: ", WARNING: "Warn: ", INFO: "", DEBUG: ""}


class Log:
    """Writes lines up to ``level`` (0 nothing, 1 errors, 2 warnings, 3 info, 4 debug) to ``fd``.

    ``fd`` None drops everything. The log outlives neither its descriptor nor a fork's child:
    both processes share it.
    """

    def __init__(self, level: int = DEFAULT_LEVEL, fd: int | None = 2, role: str = "") -> None:
        self.level = level
        self.role = role
        self._fd = fd
        self._start = time.monotonic()

    def error(self, message: str) -> None:
        """Say what failed, where, and what to do."""
        self._write(ERROR, message)

    def warning(self, message: str) -> None:
        """Say what is not as it should be, though the work goes on."""
        self._write(WARNING, message)

    def info(self, message: str) -> None:
        """Say what happened, a few lines for a restore."""
        self._write(INFO, message)

    def debug(self, message: str) -> None:
        """Say what happens, some lines for each request."""
        self._write(DEBUG, message)

    def _write(self, level: int, message: str) -> None:
        if level > self.level or self._fd is None:
            return
        elapsed = time.monotonic() - self._start
        stamp = f"({int(elapsed):02d}.{int(elapsed % 1 * 1e6):06d})"
        # One line whatever the message holds: an exception's text may have line ends.
        text = " ".join(message.splitlines())
        line = f"{stamp} helperd{self.role}: {_PREFIX[level]}{text}\n"
        try:
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
        except OSError:
            self._fd = None  # Nobody can be told that nobody can be told.


def open_log(level: int, path: str | None) -> Log:
    """Return a log to stderr, or appending to the file ``path``.

    Raises:
        OSError: the file cannot be opened.
    """
    if path is not None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return Log(level, fd)
    try:
        os.fstat(2)
    except OSError:
        return Log(level, None)  # Spawned without a stderr: never write into what took its place.
    return Log(level, 2)
