"""Where the log goes and how its lines look, as the options say."""

from __future__ import annotations

import os

from helperd.errors import UsageError, describe_errno
from helperd.reports.log import JOURNAL, TEXT, Log


def open_log(level: int, path: str | None, layout: str = TEXT) -> Log:
    """Return a log to stderr, appending to the file ``path``, or to journald.

    Args:
        level: see :class:`Log`.
        path: None for stderr; must be None for JOURNAL.
        layout: one of FORMATS.

    Raises:
        UsageError: the file or journald's socket cannot be opened.
    """
    try:
        if layout == JOURNAL:
            from helperd.reports import logformats

            return log_to(level, logformats.connect_journal(), layout)
        if path is not None:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            return log_to(level, fd, layout)
    except OSError as error:
        raise UsageError(
            f"cannot open the log {path or layout}: {describe_errno(error.errno or 0)}"
        ) from error
    try:
        os.fstat(2)
    except OSError:
        return Log(level, None)  # Spawned without a stderr: never write into what took its place.
    return log_to(level, 2, layout)


def log_to(level: int, fd: int, layout: str) -> Log:
    """Return a log to an open descriptor."""
    if layout == TEXT:
        return Log(level, fd)
    # Imported only if wanted: json takes as long as the rest of the start.
    from helperd.reports import logformats

    return Log(level, fd, layout=logformats.LAYOUTS[layout])
