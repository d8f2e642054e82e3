"""Make the files of a new image directory: owners, modes, times, links and holes like the old."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO, NamedTuple

from helperd.errors import ImageError, ShortImage
from helperd.images.records import open_image
from helperd.kernel.hints import set_times

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.images.pagesfile import PagesFile

_CHUNK_BYTES = 1 << 20


class Place(NamedTuple):
    """Where a new file is to be.

    Attributes:
        path: of it, in the folder.
        folder: a descriptor; None for the working directory.
        durable: whether it is to be on disk once it is written; not what is only passed on.
    """

    path: str
    folder: int | None = None
    durable: bool = True

    def make(self, flags: int) -> int:
        """Make the file, for its owner only; return a descriptor of it.

        Raises:
            OSError: from the system call; something is there already, for one.
        """
        flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600, dir_fd=self.folder)

    def remove(self) -> None:
        """Remove the file.

        Raises:
            OSError: from the system call.
        """
        os.unlink(self.path, dir_fd=self.folder)


@contextlib.contextmanager
def new_file(place: Place, like: str) -> Iterator[BinaryIO]:
    """Open a new file for writing, to become a file like ``like``.

    When the block ends without an error the content is on disk (if the place is a durable one), and
    the file has the owner, mode and times of ``like``. Until then only its owner can read it: it
    holds a process's memory.

    Raises:
        OSError: from the system calls; the file exists already, for one.
    """
    fd = place.make(os.O_WRONLY)
    with open(fd, "wb", buffering=_CHUNK_BYTES) as stream:
        yield stream
        stream.flush()
        copy_metadata(os.path.realpath(like), fd)
        if place.durable:
            os.fsync(fd)


def copy_directory(source: str, target: str, *, except_names: Collection[str] = ()) -> None:
    """Copy everything in ``source`` but the top-level ``except_names`` into the empty ``target``.

    Symlinks stay the links they are. All of it is on disk then, but for the names in ``target``
    itself, which keeps its owner, mode and times, too: more may be put into it.

    Raises:
        ImageError: something there is neither a file, a directory, nor a symlink.
        OSError: from the system calls.
    """
    pending = [""]
    folders: list[str] = []
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(source, folder)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if name in except_names:
                continue
            path = os.path.join(target, name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
                copy_metadata(entry.path, path)
            elif entry.is_dir():
                os.mkdir(path, 0o700)
                pending.append(name)
                folders.append(name)
            elif entry.is_file():
                copy_file(entry.path, path)
            else:
                raise ImageError(f"{entry.path}: neither a file nor a directory nor a link")
    # Only now: putting files into a directory changes its times.
    for name in reversed(folders):
        copy_metadata(os.path.join(source, name), os.path.join(target, name))
        sync_directory(os.path.join(target, name))


def copy_file(source: str, target: str) -> None:
    """Copy a regular file to the new file ``target``; holes stay holes.

    Raises:
        ImageError: ``source`` is not a regular file, or shrinks.
        OSError: from the system calls.
    """
    with open_image(source) as reader, new_file(Place(target), source) as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        start = 0
        while start < size:
            try:
                start = os.lseek(reader.fileno(), start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole up to the end
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < end:
                content = os.pread(reader.fileno(), min(end - start, _CHUNK_BYTES), start)
                if not content:
                    raise ShortImage(f"{source}: shrank while it was copied")
                start += os.pwrite(writer.fileno(), content, start)


def write_all(fd: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of ``content`` at ``offset`` of a file.

    Raises:
        OSError: from the system call.
    """
    done = os.pwrite(fd, content, offset)
    while done < len(content):
        done += os.pwrite(fd, memoryview(content)[done:], offset + done)


def copy_data(source: PagesFile, start: int, end: int, target: int, offset: int) -> None:
    """Copy a range of a pages file to ``offset`` of another file; what is a hole is left out.

    Raises:
        ShortImage: the source ends before.
        OSError: from the system calls.
    """
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for at, stop in source.holes.gaps(start, end):
        while at < stop:
            n_bytes = min(stop - at, _CHUNK_BYTES)
            source.read_into(buffer[:n_bytes], at)
            write_all(target, buffer[:n_bytes], offset + at - start)
            at += n_bytes


def copy_metadata(source: str, target: str | int) -> None:
    """Give ``target`` the owner, mode, times and extended attributes of ``source``.

    Follows no links. Like ``cp -p``, keeps its own owner where it may not give files away, and does
    without attributes and times that cannot be set.

    Args:
        source: a path.
        target: a path, or the descriptor of an open file.

    Raises:
        OSError: from the system calls.
    """
    status = os.lstat(source)
    follow = isinstance(target, int)  # A descriptor is the file itself.
    with contextlib.suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=follow)
    for name in _attributes(source):
        with contextlib.suppress(OSError):
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=follow)
    if not stat.S_ISLNK(status.st_mode):  # Those have no mode of their own.
        os.chmod(target, stat.S_IMODE(status.st_mode))
    set_times(target, status.st_atime_ns, status.st_mtime_ns)


def _attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []  # A file system without them.


def sync_directory(path: str) -> None:
    """Bring the names in a directory to disk: what was made, renamed and removed in it.

    Raises:
        OSError: from the system calls.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
