"""Files on their way into a directory, in a folder of their own: put in their places, or dropped.

The folder's name says which: from the moment that it is renamed they have arrived, and whoever
comes next puts them in their places. See :mod:`helperd.images.writer`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING

from helperd.errors import UsageError
from helperd.images.directory import PARENT_NAME
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.leftovers import NotOurs, is_file, list_files, open_folder
from helperd.images.records import os_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

UNDER_WAY, ARRIVED = PREFIXES = (".helperd-incoming.", ".helperd-arrived.")
_LOCK_SECONDS, _LOCK_PAUSE = 30.0, 0.01


def recover(path: str) -> None:
    """Finish or drop what killed writers have left in a directory; leave alone what is under way.

    Raises:
        ImageError, ResourceError: from the system.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with locked(fd, path):
                recover_in(fd, path)
        finally:
            os.close(fd)
    except OSError as error:
        raise os_failure(error, f"cannot clean up {path}") from error


def recover_in(fd: int, path: str) -> None:
    """Do what :func:`recover` does, in a directory that is open and locked."""
    for name in sorted(os.listdir(fd)):
        if not name.startswith(PREFIXES):
            continue
        try:
            folder = open_folder(name, fd, path)
        except (FileNotFoundError, NotOurs):
            # Gone by now, or of somebody else, who may be at work: neither is ours to touch.
            continue
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # All of it is looked at before any of it is moved.
            list_files(folder, os.path.join(path, name), _is_ours)
            if name.startswith(ARRIVED):
                move_all(fd, folder)
                os.rmdir(name, dir_fd=fd)
            else:
                drop(fd, folder, name)
        except BlockingIOError:
            pass  # its writer lives
        finally:
            os.close(folder)


def move_all(fd: int, folder: int) -> None:
    """Put complete files in their places: what others refer to first, the inventory last."""
    for name in sorted(os.listdir(folder), key=_order):
        if name == PARENT_NAME and exists(fd, name):
            os.unlink(name, dir_fd=folder)
        else:
            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=fd)
    os.fsync(fd)


def _order(name: str) -> tuple[bool, bool, str]:
    return name == INVENTORY_NAME, name.startswith("pagemap-"), name


def exists(fd: int, name: str) -> bool:
    """Return whether anything of a name is in a directory."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def drop(fd: int, folder: int, name: str) -> None:
    """Remove the open folder ``name`` with all that is in it."""
    for file in os.listdir(folder):
        os.unlink(file, dir_fd=folder)
    os.rmdir(name, dir_fd=fd)


def _is_ours(name: str, mode: int) -> bool:
    """Return whether we leave something of a name and a mode in a folder of new files."""
    if name == PARENT_NAME:
        return stat.S_ISLNK(mode)
    return is_file(mode) and is_image_name(name)


def is_image_name(name: str) -> bool:
    """Return whether a file of a directory of images can have this name."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


@contextlib.contextmanager
def locked(fd: int, path: str) -> Iterator[None]:
    """Keep others away from a directory for the moment that the block takes.

    Raises:
        UsageError: somebody else keeps it for long.
        OSError: from the system calls.
    """
    # An open file of its own: a lock belongs to that, and there may be several of us.
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"{path}: another process is changing these images") from None
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(own)
