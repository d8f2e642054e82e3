"""The file of --stats; a module of its own, as ``helperd attach`` counts nothing itself."""

from __future__ import annotations

import posix as os

from helperd.errors import ResourceError, UsageError, describe_errno
from helperd.kernel.hints import empty_file


def open_stats(path: str | None) -> int | None:
    """Open the file of --stats before the work: better no restore than one without its books.

    Raises:
        UsageError: it cannot be opened.
    """
    if path is None:
        return None
    # Not emptied yet: it may be a file that must not be. And no wait for a reader of a FIFO.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot open the statistics file {path}: {describe_errno(error.errno or 0)}"
        ) from error


def empty_stats(fd: int | None) -> None:
    """Empty the file, so that an earlier restore's numbers are not taken for this one's."""
    if fd is not None:
        empty_file(fd)


def write_stats(fd: int, document: str) -> None:
    """Write the document and close its file.

    Raises:
        ResourceError: it cannot be written.
    """
    empty_file(fd)
    try:
        with open(fd, "w") as file:
            file.write(document)
    except OSError as error:
        raise ResourceError(
            f"cannot write the statistics: {describe_errno(error.errno or 0)}"
        ) from error
