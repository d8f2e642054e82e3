"""Replace several files of a directory at once: after a crash all are old, or all are new.

A rename replaces one file. For several, every file becomes for a moment a link through one common
link, and that one is what a single rename switches over::

    pagemap-7.img -> .helperd/current/pagemap-7.img
    pages-1.img   -> .helperd/current/pages-1.img
    .helperd/current -> old                        (hard links to the replaced files)
                      -> new                       (the staged files)

1. The new files are written to ``.helperd/new`` and synced. The directory is untouched.
2. ``.helperd/old`` gets hard links to the old files, ``current`` leads there, and the files are
   replaced by links, one by one. All files are the old ones, whether linked or not.
3. ``current`` is replaced by a link to ``new``. Now all files are the new ones.
4. The links are replaced by the new files, one by one, and ``.helperd`` is removed.

The directory is synced between the steps. Whoever opens the files after a crash, helperd or not,
finds all old or all new ones; :func:`recover` takes back step 2 or finishes step 4. None of them
needs disk space for data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator

from helperd.errors import ImageError, UsageError
from helperd.offline.files import sync_directory

#: Folder in an image directory for all that is not finished.
STAGING_NAME = ".helperd"
#: Added to the name of a file that is kept.
BACKUP_SUFFIX = ".bak"

_NEW, _OLD, _CURRENT, _LINK = "new", "old", "current", "link"


class Switch:
    """New files for a directory, not yet in effect.

    Args:
        path: the directory; locked, and without left-overs.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._staging = os.path.join(path, STAGING_NAME)
        os.mkdir(self._staging, 0o700)
        os.mkdir(os.path.join(self._staging, _NEW), 0o700)

    def stage(self, name: str) -> str:
        """Return the path to write the new content of the file ``name`` to, synced."""
        return os.path.join(self._staging, _NEW, name)

    def commit(self, *, backups: bool) -> None:
        """Put all staged files into effect.

        Args:
            backups: keep the old files as NAME.bak.

        Raises:
            UsageError: a backup of that name exists; nothing was changed.
            OSError: from the system calls; :func:`recover` decides what is in effect.
        """
        staging, path = self._staging, self._path
        names = sorted(os.listdir(os.path.join(staging, _NEW)))
        sync_directory(os.path.join(staging, _NEW))
        os.mkdir(os.path.join(staging, _OLD), 0o700)
        for name in names:
            os.link(os.path.join(path, name), os.path.join(staging, _OLD, name))
        # Whoever may read the files may also follow the links to them.
        mode = stat.S_IMODE(os.stat(path).st_mode)
        for folder in (staging, os.path.join(staging, _OLD), os.path.join(staging, _NEW)):
            os.chmod(folder, mode)
        os.symlink(_OLD, os.path.join(staging, _CURRENT))
        for name in names if backups else ():
            try:
                os.link(os.path.join(path, name), os.path.join(path, name + BACKUP_SUFFIX))
            except FileExistsError:
                raise _backup_exists(path, name) from None
        for folder in (os.path.join(staging, _OLD), staging, path):
            sync_directory(folder)
        link = os.path.join(staging, _LINK)
        for name in names:
            os.symlink(os.path.join(STAGING_NAME, _CURRENT, name), link)
            os.rename(link, os.path.join(path, name))
        sync_directory(path)
        os.symlink(_NEW, link)
        os.rename(link, os.path.join(staging, _CURRENT))
        sync_directory(staging)
        recover(path)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep other commands that change files away from a directory, until the block or we end.

    Raises:
        UsageError: another process is at it.
        OSError: from the system calls.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another process is changing these images") from None
    else:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[Switch]:
    """Give a :class:`Switch` for a locked directory without left-overs.

    When the block ends, however it ends, nothing staged is left.

    Raises:
        OSError: from the system calls.
    """
    try:
        yield Switch(path)
    finally:
        recover(path)


def check_replaceable(path: str, names: Iterable[str], *, backups: bool) -> None:
    """Find out beforehand what would make a commit fail.

    Raises:
        ImageError: a file is a link to somewhere else.
        UsageError: the name of a backup is taken.
        OSError: from the system calls.
    """
    for name in names:
        file = os.path.join(path, name)
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise ImageError(
                f"{file}: not a file itself but a link or the like, so it cannot be replaced;"
                " convert into a copy with --output"
            )
        if backups and os.path.lexists(file + BACKUP_SUFFIX):
            raise _backup_exists(path, name)


def recover(path: str) -> None:
    """Finish or undo what a killed run has left in a directory; else do nothing.

    The caller holds the lock.

    Raises:
        ImageError: what lies there is not helperd's.
        OSError: from the system calls; the files are still all old or all new.
    """
    staging = os.path.join(path, STAGING_NAME)
    try:
        if not stat.S_ISDIR(os.lstat(staging).st_mode):
            raise ImageError(f"{staging}: not a folder that helperd made; move it away")
    except FileNotFoundError:
        return
    try:
        current = os.readlink(os.path.join(staging, _CURRENT))
    except FileNotFoundError:
        current = None  # nothing was replaced yet, or all is done
    if current == _NEW:
        _move_all(os.path.join(staging, _NEW), path)
    elif current == _OLD:
        _drop_backups(os.path.join(staging, _OLD), path)
        _move_all(os.path.join(staging, _OLD), path)
    _dismantle(staging)
    sync_directory(path)


def is_interrupted(path: str) -> bool:
    """Return whether a run that changes files has been killed in a directory, or is under way."""
    return os.path.lexists(os.path.join(path, STAGING_NAME))


def _move_all(folder: str, path: str) -> None:
    """Put the files of a staging folder in their places."""
    for name in _names(folder):
        os.rename(os.path.join(folder, name), os.path.join(path, name))
    sync_directory(path)


def _names(folder: str) -> list[str]:
    """Return what is in a staging folder, sorted; nothing if it was cleaned up already."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _drop_backups(old: str, path: str) -> None:
    """Remove the backups that this commit has made: other names of the same files."""
    for name in _names(old):
        backup = os.path.join(path, name + BACKUP_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(backup), os.lstat(os.path.join(old, name))):
                os.unlink(backup)


def _dismantle(staging: str) -> None:
    for folder in (os.path.join(staging, _OLD), os.path.join(staging, _NEW)):
        for name in _names(folder):
            os.unlink(os.path.join(folder, name))
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(folder)
    for name in (_LINK, _CURRENT):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(staging, name))
    os.rmdir(staging)


def _backup_exists(path: str, name: str) -> UsageError:
    return UsageError(
        f"{os.path.join(path, name)}{BACKUP_SUFFIX}: exists and would be overwritten; move it away,"
        " or do without backups (--in-place)"
    )
