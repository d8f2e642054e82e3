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
finds all old or all new ones; :meth:`Directory.recover` takes back step 2 or finishes step 4. None
of them needs disk space for data.

Everything goes through descriptors of the directory and of its staging folders: whoever else may
change the directory cannot lead a step to anywhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

from helperd.errors import ImageError, UsageError
from helperd.images.leftovers import NotOurs, is_file, list_files, open_folder
from helperd.offline.files import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Folder in an image directory for all that is not finished.
STAGING_NAME = ".helperd"
#: Added to the name of a file that is kept.
BACKUP_SUFFIX = ".bak"
#: Of a staged file that never comes into effect.
SCRATCH_NAME = "uncompressed"

_NEW, _OLD, _CURRENT, _LINK = "new", "old", "current", "link"
_REPLACED = re.compile(r"(pagemap(-shmem)?-[0-9]+|pages-[0-9]+|inventory)\.img", re.ASCII)
#: A staging folder is for others to read at most, whoever may write to the directory.
_READABLE = 0o755


class Directory:
    """A directory of images that nobody else changes now, by its descriptor; see :func:`locked`.

    Attributes:
        path: as it was given, for messages.
        fd: its descriptor.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def check_replaceable(self, names: Iterable[str], *, backups: bool) -> None:
        """Find out beforehand what would make a commit fail.

        Raises:
            ImageError: a file is a link to somewhere else.
            UsageError: the name of a backup is taken.
            OSError: from the system calls.
        """
        for name in names:
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                raise ImageError(
                    f"{os.path.join(self.path, name)}: not a file itself but a link or the like,"
                    " so it cannot be replaced; convert into a copy with --output"
                )
            if backups and _exists(name + BACKUP_SUFFIX, self.fd):
                raise self._backup_exists(name)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Switch]:
        """Give a :class:`Switch`, when there are no left-overs.

        When the block ends, however it ends, nothing staged is left.

        Raises:
            OSError: from the system calls.
        """
        switch = None
        try:
            switch = Switch(self)
            yield switch
        finally:
            if switch is not None:
                switch.close()
            self.recover()

    def recover(self) -> None:
        """Finish or undo what a killed run has left; else do nothing.

        Raises:
            ImageError: what lies there is not what our own run can have left.
            OSError: from the system calls; the files are still all old or all new.
        """
        try:
            staging = open_folder(STAGING_NAME, self.fd, self.path)
        except FileNotFoundError:
            return
        try:
            self._recover(staging)
        finally:
            os.close(staging)
        os.rmdir(STAGING_NAME, dir_fd=self.fd)
        os.fsync(self.fd)

    def _recover(self, staging: int) -> None:
        path = os.path.join(self.path, STAGING_NAME)
        left = list_files(staging, path, _is_staged)
        # Nothing is touched before everything has been looked at.
        with contextlib.ExitStack() as stack:
            folders: dict[str, tuple[int, list[str]]] = {}
            for name in (_OLD, _NEW):
                if name in left:
                    folder = open_folder(name, staging, path)
                    stack.callback(os.close, folder)
                    names = list_files(folder, os.path.join(path, name), _is_replacement)
                    folders[name] = folder, names
            current = os.readlink(_CURRENT, dir_fd=staging) if _CURRENT in left else None
            if current is not None and current not in (_OLD, _NEW):
                raise NotOurs(
                    f"{os.path.join(path, _CURRENT)}: no link that helperd left; move it away"
                )
            # None: nothing was replaced yet, or all is done.
            if current is not None and current in folders:
                folder, names = folders[current]
                if current == _OLD:
                    self._drop_backups(folder, names)
                self._move_all(folder, names)
            for name, (folder, names) in folders.items():
                for file in names:
                    # A rename over another name of the same file does nothing.
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file, dir_fd=folder)
                os.rmdir(name, dir_fd=staging)
            for name in (_LINK, _CURRENT):
                if name in left:
                    os.unlink(name, dir_fd=staging)

    def _move_all(self, folder: int, names: Iterable[str]) -> None:
        """Put the files of a staging folder in their places."""
        for name in names:
            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=self.fd)
        os.fsync(self.fd)

    def _drop_backups(self, old: int, names: Iterable[str]) -> None:
        """Remove the backups that this commit has made: other names of the same files."""
        for name in names:
            backup = name + BACKUP_SUFFIX
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(
                    os.stat(backup, dir_fd=self.fd, follow_symlinks=False),
                    os.stat(name, dir_fd=old, follow_symlinks=False),
                ):
                    os.unlink(backup, dir_fd=self.fd)

    def _backup_exists(self, name: str) -> UsageError:
        return UsageError(
            f"{os.path.join(self.path, name)}{BACKUP_SUFFIX}: exists and would be overwritten; move"
            " it away, or do without backups (--in-place)"
        )


class Switch:
    """New files for a directory, not yet in effect.

    Args:
        directory: without left-overs.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._fds: list[int] = []
        self._staging = self._make(STAGING_NAME, directory.fd)
        self._new = self._make(_NEW, self._staging)

    def _make(self, name: str, fd: int) -> int:
        os.mkdir(name, 0o700, dir_fd=fd)
        folder = open_folder(name, fd, self._directory.path)
        self._fds.append(folder)
        return folder

    def stage(self, name: str) -> Place:
        """Return the place to write the new content of the file ``name`` to, synced."""
        return Place(name, self._new)

    def commit(self, *, backups: bool) -> None:
        """Put all staged files into effect.

        Args:
            backups: keep the old files as NAME.bak.

        Raises:
            UsageError: a backup of that name exists; nothing was changed.
            OSError: from the system calls; :meth:`Directory.recover` decides what is in effect.
        """
        directory, staging = self._directory, self._staging
        names = sorted(os.listdir(self._new))
        os.fsync(self._new)
        old = self._make(_OLD, staging)
        for name in names:
            _link(name, directory.fd, name, old)
        # Whoever may read the files may also follow the links to them.
        mode = stat.S_IMODE(os.fstat(directory.fd).st_mode) & _READABLE
        for folder in (staging, old, self._new):
            os.fchmod(folder, mode)
        os.symlink(_OLD, _CURRENT, dir_fd=staging)
        for name in names if backups else ():
            try:
                _link(name, directory.fd, name + BACKUP_SUFFIX, directory.fd)
            except FileExistsError:
                raise directory._backup_exists(name) from None
        for folder in (old, staging, directory.fd):
            os.fsync(folder)
        for name in names:
            os.symlink(os.path.join(STAGING_NAME, _CURRENT, name), _LINK, dir_fd=staging)
            os.rename(_LINK, name, src_dir_fd=staging, dst_dir_fd=directory.fd)
        os.fsync(directory.fd)
        os.symlink(_NEW, _LINK, dir_fd=staging)
        os.rename(_LINK, _CURRENT, src_dir_fd=staging, dst_dir_fd=staging)
        os.fsync(staging)
        directory.recover()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


@contextlib.contextmanager
def locked(path: str) -> Iterator[Directory]:
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
        yield Directory(path, fd)
    finally:
        os.close(fd)


def is_interrupted(path: str) -> bool:
    """Return whether a run that changes files has been killed in a directory, or is under way."""
    return os.path.lexists(os.path.join(path, STAGING_NAME))


def _is_staged(name: str, mode: int) -> bool:
    """Return whether we leave something of a name and a mode in the staging folder."""
    if name in (_NEW, _OLD):
        return stat.S_ISDIR(mode)
    return name in (_CURRENT, _LINK) and stat.S_ISLNK(mode)


def _is_replacement(name: str, mode: int) -> bool:
    """Return whether we leave something of a name and a mode among old and new files."""
    return is_file(mode) and (name == SCRATCH_NAME or _REPLACED.fullmatch(name) is not None)


def _link(name: str, folder: int, new_name: str, new_folder: int) -> None:
    os.link(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder, follow_symlinks=False)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
