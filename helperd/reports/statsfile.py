"""The file of --stats; a module of its own, as ``helperd attach`` counts nothing itself."""

from __future__ import annotations

import os

from helperd.errors import ResourceError, UsageError, describe_errno


def open_stats(path: str | None) -> int | None:
    """Open the file of --stats before the work: better no restore than one without its books.

    Raises:
        UsageError: it cannot be opened.
    """
    if path is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot open the statistics file {path}: {describe_errno(error.errno or 0)}"
        ) from error


def write_stats(fd: int, document: str) -> None:
    """Write the document and close its file.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        with open(fd, "w") as file:
            file.write(document)
    except OSError as error:
        raise ResourceError(
            f"cannot write the statistics: {describe_errno(error.errno or 0)}"
        ) from error
