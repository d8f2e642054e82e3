"""Make the files of a new image directory: owners, modes, times, links and holes like the old."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from typing import BinaryIO

from helperd.errors import ImageError, ShortImage
from helperd.images.records import open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.images.pagesfile import PagesFile

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def new_file(path: str, like: str) -> Iterator[BinaryIO]:
    """Open the new file ``path`` for writing, to become a file like ``like``.

    When the block ends without an error the content is on disk, and the file has the owner, mode
    and times of ``like``. Until then only its owner can read it: it holds a process's memory.

    Raises:
        OSError: from the system calls; the file exists already, for one.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=_CHUNK_BYTES) as stream:
        yield stream
        stream.flush()
        copy_metadata(os.path.realpath(like), path)
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
    with open_image(source) as reader, new_file(target, source) as writer:
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


def write_all(fd: int, content: bytes, offset: int) -> None:
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
    for at, stop in source.holes.gaps(start, end):
        while at < stop:
            content = os.pread(source.fd, min(stop - at, _CHUNK_BYTES), at)
            if not content:
                raise ShortImage(f"{source.path}: ends at offset {at}, before {stop}")
            write_all(target, content, offset + at - start)
            at += len(content)


def copy_metadata(source: str, target: str) -> None:
    """Give ``target`` the owner, mode, times and extended attributes of ``source``.

    Follows no links. Like ``cp -p``, keeps its own owner where it may not give files away.

    Raises:
        OSError: from the system calls.
    """
    status = os.lstat(source)
    with contextlib.suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


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
