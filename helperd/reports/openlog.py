"""Where the log goes and how its lines look, as the options say."""

from __future__ import annotations

import errno
import posix as os

from helperd.errors import UsageError, describe_errno
from helperd.kernel.descriptors import is_open
from helperd.kernel.pipes import never_blocking
from helperd.reports.log import JOURNAL, TEXT, Log

_STDERR = 2


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
            return log_to(level, _open_file(path), layout)
    except OSError as error:
        raise UsageError(
            f"cannot open the log {path or layout}: {describe_errno(error.errno or 0)}"
        ) from error
    if not is_open(_STDERR):
        return Log(level, None)
    return log_to(level, _STDERR, layout)


def _open_file(path: str) -> int:
    flags = os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    # A FIFO that nobody reads yet. With an end of our own it takes what a reader finds later.
    return os.open(path, flags | os.O_RDWR, 0o600)


def log_to(level: int, fd: int, layout: str) -> Log:
    """Return a log to an open descriptor, or to another one of the same pipe."""
    fd = never_blocking(fd)
    if layout == TEXT:
        return Log(level, fd)
    # Imported only if wanted: json takes as long as the rest of the start.
    from helperd.reports import logformats

    return Log(level, fd, layout=logformats.LAYOUTS[layout])
