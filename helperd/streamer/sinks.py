"""Where the files of a stream go: into a directory, or on in shards."""

from __future__ import annotations

import errno
import os
from array import array
from collections import deque
from typing import BinaryIO, Protocol

from helperd.errors import PeerGone
from helperd.images.records import os_failure
from helperd.images.writer import ImageWriter
from helperd.kernel.pipes import wait_readable, wait_writable, write_all
from helperd.kernel.syscalls import writev_all

#: Bytes moved in one call.
MOVED_BYTES = 1 << 20
_READ_BYTES = 64 << 10
#: Files of a directory that are complete, but not yet on disk and closed.
_MAX_OPEN = 128


class SinkFile(Protocol):
    """A file of an image on its way."""

    def move(self, source: int, n_bytes: int) -> int:
        """Take up to ``n_bytes`` from a descriptor; return how many, 0 at its end.

        Raises:
            BlockingIOError: there is nothing yet.
            HelperdError: they could not be put where they belong.
        """

    def write(self, payload: bytes) -> None:
        """Append ``payload``; may be called by any one thread."""

    def write_ranges(self, ranges: array[int], n_bytes: int) -> None:
        """Append what lies in this process at (address, bytes, ...), ``n_bytes`` in all."""

    def close(self) -> None:
        """Say that the file is complete."""


class Sink(Protocol):
    """Takes the files of an image."""

    def create(self, name: str) -> SinkFile:
        """Begin a file; several may be under way."""

    def finish(self) -> None:
        """Say that the image is complete; when this returns it is safe."""

    def abandon(self) -> None:
        """Drop what is not finished; can be called at any time, and again."""


class DirectorySink:
    """Files for an image directory, in effect and on disk all at once.

    Args:
        path: of the directory.

    Raises:
        ImageError: it cannot be written to.
    """

    def __init__(self, path: str) -> None:
        self._writer = ImageWriter(path)
        self._idle: deque[BinaryIO] = deque()
        self._path = path

    def create(self, name: str) -> SinkFile:
        """Begin a file.

        Raises:
            ImageError: there is one of this name already.
        """
        return _DirectoryFile(self, name, self._writer.create(name))

    def settle(self, file: BinaryIO) -> None:
        """Take back a complete file."""
        self._idle.append(file)
        while len(self._idle) > _MAX_OPEN:
            oldest = self._idle.popleft()
            os.fsync(oldest.fileno())
            oldest.close()

    def finish(self) -> None:
        """Put all files into effect.

        Raises:
            ImageError, ResourceError: that failed; the directory is as it was.
        """
        self._writer.finish()

    def abandon(self) -> None:
        """Drop everything that is not in effect."""
        self._writer.abandon()


class _DirectoryFile:
    def __init__(self, sink: DirectorySink, name: str, file: BinaryIO) -> None:
        self._sink = sink
        self._name = name
        self._file = file

    def move(self, source: int, n_bytes: int) -> int:
        return move(source, self._file.fileno(), n_bytes, self._name)

    def write(self, payload: bytes) -> None:
        view = memoryview(payload)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise os_failure(error, f"cannot write {self._name}") from error

    def write_ranges(self, ranges: array[int], _n_bytes: int) -> None:
        try:
            writev_all(self._file.fileno(), ranges)
        except OSError as error:
            raise os_failure(error, f"cannot write {self._name}") from error

    def close(self) -> None:
        try:
            self._sink.settle(self._file)
        except OSError as error:
            raise os_failure(error, f"cannot write {self._name}") from error


def move(source: int, target: int, n_bytes: int, name: str, *, wait: bool = False) -> int:
    """Move up to ``n_bytes`` from one descriptor to the end of another.

    Args:
        source: that they come from.
        target: that they go to.
        n_bytes: at the most.
        name: of the file, for messages.
        wait: until ``target``, which may be a pipe, takes them; ``source`` must have some.

    Returns:
        How many; 0 at the end of ``source``.

    Raises:
        BlockingIOError: there is nothing yet.
        HelperdError: reading or writing fails.
    """
    n_bytes = min(n_bytes, MOVED_BYTES)
    flags = 0 if wait else os.SPLICE_F_NONBLOCK
    try:
        while True:
            try:
                return os.splice(source, target, n_bytes, flags=flags)
            except BlockingIOError:
                if not wait:
                    raise
                # One of both is non-blocking, which makes splice so.
                wait_readable(source)
                wait_writable(target)
    except BlockingIOError:
        raise
    except BrokenPipeError as error:
        raise PeerGone(f"nobody reads {name} any more") from error
    except OSError as error:
        # Neither is a pipe, or one of them cannot be spliced.
        if error.errno != errno.EINVAL:
            raise os_failure(error, f"cannot write {name}") from error
    content = os.read(source, min(n_bytes, _READ_BYTES))
    write_all(target, content)
    return len(content)
