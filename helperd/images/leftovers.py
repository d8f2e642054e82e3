"""What a killed run has left in a directory, told from what somebody has put there.

A directory of images may come from anybody. So nothing in it is believed: folders are entered by
descriptors that follow no link, belong to the user that we are, and hold no more than our own
runs can have left there.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from helperd.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

#: What opening a folder says of a link, and of a file.
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)


class NotOurs(ImageError):
    """Something has the name of a left-over of helperd, and is none of this user's."""


def open_folder(name: str, fd: int, path: str) -> int:
    """Open the folder ``name`` in the directory ``fd``, if it is one of our own.

    Args:
        name: of the folder.
        fd: of the directory.
        path: of the directory, for errors.

    Raises:
        NotOurs: it is something else, or belongs to another user.
        OSError: from the system calls; FileNotFoundError if nothing is there.
    """
    where = os.path.join(path, name)
    try:
        folder = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
        )
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise NotOurs(f"{where}: not a folder that helperd made; move it away") from None
        raise
    owner = os.fstat(folder).st_uid
    if owner != os.geteuid():
        os.close(folder)
        raise NotOurs(
            f"{where}: belongs to user {owner}, so it is not a left-over of ours; let that user"
            " run the command, or remove it"
        )
    return folder


def list_files(folder: int, path: str, known: Callable[[str, int], bool]) -> list[str]:
    """Return the names in a folder, sorted; each must be known as something that we leave there.

    Args:
        folder: open.
        path: of it, for errors.
        known: called with a name and its mode, as lstat(2) has it; says whether we leave it.

    Raises:
        NotOurs: one is not.
        OSError: from the system calls.
    """
    names = sorted(os.listdir(folder))
    for name in names:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not known(name, mode):
            raise NotOurs(f"{os.path.join(path, name)}: nothing that helperd left; move it away")
    return names


def is_file(mode: int) -> bool:
    """Return whether a mode is that of a regular file."""
    return stat.S_ISREG(mode)
