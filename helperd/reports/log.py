"""The log: one line for each thing worth saying, with CRIU's time stamps and verbosity levels.

Not :mod:`logging`: its import alone costs as much as the whole start of the helper.
A line is one write(2), so lines of the parent and of the worker never mix.
"""

from __future__ import annotations

import time

from helperd.kernel.pipes import write_soon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SILENT, ERROR, WARNING, INFO, DEBUG = range(5)
DEFAULT_LEVEL = WARNING
LEVEL_NAMES = ("silent", "error", "warning", "info", "debug")

#: How lines look: for people, as JSON objects, as datagrams for journald.
TEXT, JSON, JOURNAL = FORMATS = ("text", "json", "journal")

_PREFIX = {ERROR: "Error: ", WARNING: "Warn: ", INFO: "", DEBUG: ""}


class Record:
    """One thing to be logged.

    Attributes:
        level: ERROR to DEBUG.
        process: who says it.
        elapsed: seconds since the log was opened.
        event: what kind of thing it is, in a word that programs can rely on.
        message: what happened, in one line.
        fields: numbers and names that belong to it.
    """

    __slots__ = ("elapsed", "event", "fields", "level", "message", "process")

    def __init__(
        self,
        level: int,
        process: str,
        elapsed: float,
        event: str,
        message: str,
        fields: dict[str, object],
    ) -> None:
        self.level = level
        self.process = process
        self.elapsed = elapsed
        self.event = event
        # One line whatever the message holds: an exception's text may have line ends.
        self.message = " ".join(message.splitlines())
        self.fields = fields


class Log:
    """Writes lines up to ``level`` (0 nothing, 1 errors, 2 warnings, 3 info, 4 debug) to ``fd``.

    ``fd`` None drops everything. The log outlives neither its descriptor nor a fork's child:
    both processes share it. It never waits for a reader: lines that find no room are dropped, and
    when there is room again that is said.

    Every method takes the name of the ``event`` and further ``fields``, which text leaves out.
    """

    def __init__(
        self,
        level: int = DEFAULT_LEVEL,
        fd: int | None = 2,
        role: str = "",
        layout: Callable[[Record], bytes] | None = None,
    ) -> None:
        self.level = level
        self.role = role
        self.fd = fd
        self._layout = layout or text_line
        self._start = time.monotonic()
        self._dropped = 0
        self._cut = False

    @property
    def fds(self) -> list[int]:
        """The descriptor it writes to, if there is one."""
        return [] if self.fd is None else [self.fd]

    def error(self, message: str, *, event: str = "error", **fields: object) -> None:
        """Say what failed, where, and what to do."""
        self._write(ERROR, message, event, fields)

    def warning(self, message: str, *, event: str = "warning", **fields: object) -> None:
        """Say what is not as it should be, though the work goes on."""
        self._write(WARNING, message, event, fields)

    def info(self, message: str, *, event: str = "info", **fields: object) -> None:
        """Say what happened, a few lines for a restore."""
        self._write(INFO, message, event, fields)

    def debug(self, message: str, *, event: str = "debug", **fields: object) -> None:
        """Say what happens, some lines for each request."""
        self._write(DEBUG, message, event, fields)

    def answer(self, message: str, *, event: str, **fields: object) -> None:
        """Say what somebody has just asked for: at every level but SILENT."""
        self._write(INFO, message, event, fields, asked=self.level > SILENT)

    def _write(
        self,
        level: int,
        message: str,
        event: str,
        fields: dict[str, object],
        *,
        asked: bool = False,
    ) -> None:
        if self.fd is None or (level > self.level and not asked):
            return
        try:
            if self._dropped:
                lost = f"{self._dropped} lines are missing here: nobody read this log"
                if not self._put(self._line(WARNING, lost, "warning", {})):
                    self._dropped += 1
                    return
                self._dropped = 0
            if not self._put(self._line(level, message, event, fields)):
                self._dropped += 1
        except OSError:
            self.fd = None  # Nobody can be told that nobody can be told.

    def _line(self, level: int, message: str, event: str, fields: dict[str, object]) -> bytes:
        elapsed = time.monotonic() - self._start
        return self._layout(Record(level, f"helperd{self.role}", elapsed, event, message, fields))

    def _put(self, line: bytes) -> bool:
        """Write a line; return False if there is no room for any of it."""
        assert self.fd is not None
        if self._cut:
            line = b"\n" + line
        done = write_soon(self.fd, line)
        if done:
            # Only one that is longer than what a pipe takes at once.
            self._cut = done < len(line)
        return done > 0


def text_line(record: Record) -> bytes:
    """Return the line as CRIU's own log has it."""
    stamp = f"({int(record.elapsed):02d}.{int(record.elapsed % 1 * 1e6):06d})"
    line = f"{stamp} {record.process}: {_PREFIX[record.level]}{record.message}\n"
    return line.encode("utf-8", "backslashreplace")
