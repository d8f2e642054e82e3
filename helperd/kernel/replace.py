"""A file that is replaced at once: whoever reads it sees the old content or the new one."""

from __future__ import annotations

import contextlib
import os
import stat


def replace_file(path: str, text: str) -> None:
    """Give the file ``path`` a new content.

    It is written beside the old one, never through a link that somebody has put there.

    Raises:
        OSError: it cannot be written, or something that is no file has its name.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(f"{path} is not a file")
    except FileNotFoundError:
        pass
    scratch = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(scratch)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(fd, "w") as file:
        file.write(text)
    os.replace(scratch, path)
