"""Shards, read and written: the byte streams that an image travels in."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import threading
import time

from helperd.errors import HelperdError, MalformedStream, PeerGone, TruncatedStream
from helperd.kernel.pipes import read_some, wait_readable, write_all
from helperd.kernel.syscalls import joined
from helperd.streamer.encoding import PagesReceiver
from helperd.streamer.endpoint import enlarge
from helperd.streamer.packer import Packer, Receiver
from helperd.streamer.sinks import SinkFile, move
from helperd.wire.shards import Kind, Marker, MarkerReader, MarkerWriter, Reassembly

#: What shards' pipes are made to hold, if the system allows it.
PIPE_BYTES = 1 << 20
#: Bytes behind one marker; small enough that a slow shard does not hold up the others for long.
_CHUNK_BYTES = 256 << 10


class ShardSink:
    """Passes files on in shards, each chunk in the one that has the most room.

    Args:
        fds: of the shards.

    Attributes:
        sizes: bytes written to each.
    """

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds
        self._markers = MarkerWriter()
        self._lock = threading.Lock()
        self.sizes = [0] * len(fds)
        for fd in fds:
            enlarge(fd, PIPE_BYTES)

    def create(self, name: str) -> SinkFile:
        """Begin a file."""
        return _ShardFile(self, name)

    def finish(self) -> None:
        """Say that the image is complete, and close the shards.

        Raises:
            PeerGone: nobody reads a shard any more.
        """
        with self._lock:
            self._put(self._markers.image_eof(), self._choose())
            self.abandon()

    def abandon(self) -> None:
        """Close the shards."""
        while self._fds:
            os.close(self._fds.pop())

    def data(self, name: str, content: bytes | bytearray) -> None:
        """Pass on some of a file."""
        view = memoryview(content)
        while view:
            part, view = view[:_CHUNK_BYTES], view[_CHUNK_BYTES:]
            with self._lock:
                shard = self._choose()
                self._put(self._markers.data(name, len(part)), shard)
                self._put(part, shard)

    def splice(self, name: str, source: int, n_bytes: int) -> None:
        """Pass on ``n_bytes`` that are waiting in a pipe."""
        with self._lock:
            shard = self._choose()
            self._put(self._markers.data(name, n_bytes), shard)
            self.sizes[shard] += n_bytes
            while n_bytes:
                n_bytes -= move(source, self._fds[shard], n_bytes, f"shard {shard}", wait=True)

    def file_eof(self, name: str) -> None:
        """Say that a file is complete."""
        with self._lock:
            self._put(self._markers.file_eof(name), self._choose())

    def _choose(self) -> int:
        if len(self._fds) == 1:
            return 0
        return min(range(len(self._fds)), key=lambda shard: waiting(self._fds[shard]))

    def _put(self, content: bytes | memoryview, shard: int) -> None:
        self.sizes[shard] += len(content)
        try:
            write_all(self._fds[shard], content)
        except PeerGone as error:
            raise _gone(shard) from error


class _ShardFile:
    def __init__(self, sink: ShardSink, name: str) -> None:
        self._sink = sink
        self._name = name

    def move(self, source: int, n_bytes: int) -> int:
        n_bytes = min(n_bytes, _CHUNK_BYTES)
        ready = min(n_bytes, waiting(source))
        if ready:
            self._sink.splice(self._name, source, ready)
            return ready
        content = os.read(source, n_bytes)
        self._sink.data(self._name, content)
        return len(content)

    def write(self, payload: bytes) -> None:
        self._sink.data(self._name, payload)

    def write_ranges(self, ranges: array.array[int], n_bytes: int) -> None:
        self._sink.data(self._name, joined(ranges, n_bytes))

    def close(self) -> None:
        self._sink.file_eof(self._name)


class External:
    """A file that goes to a descriptor instead of where the others go."""

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        self._fd = fd

    def move(self, source: int, n_bytes: int) -> int:
        """Pass on up to ``n_bytes``; return how many."""
        return move(source, self._fd, n_bytes, self._name, wait=True)

    def close(self) -> None:
        """Say that it is complete."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Extraction:
    """Takes an image out of its shards.

    Args:
        fds: of the shards; closed at the end.
        packer: where the files go.
        externals: files that go elsewhere, by name.

    Attributes:
        sizes: bytes read from each shard.
        millis: how long each took to its end, in milliseconds.
    """

    def __init__(self, fds: list[int], packer: Packer, externals: dict[str, External]) -> None:
        self._fds = fds
        self._packer = packer
        self._externals = externals
        self._readers = [MarkerReader() for _ in fds]
        self._image = Reassembly(len(fds))
        self._files: dict[str, Receiver] = {}
        self._started = time.monotonic()
        self.sizes = [0] * len(fds)
        self.millis = [0] * len(fds)
        for fd in fds:
            enlarge(fd, PIPE_BYTES)

    def run(self) -> None:
        """Take everything, up to the end of all shards.

        Raises:
            ProtocolError: the shards do not make up an image, or end early.
            HelperdError: what comes cannot be stored.
        """
        image = self._image
        while not image.complete:
            for shard in self._ready(image.waiting):
                marker = self._read_marker(shard)
                if marker is None:
                    image.end(shard)
                else:
                    image.add(shard, marker)
                while (step := image.next_step()) is not None:
                    self._carry_out(step.shard, step.kind, step.name, step.size)
                if image.complete:
                    break
        for shard in sorted(image.waiting):
            if self._read_marker(shard) is not None:
                raise MalformedStream(f"shard {shard} goes on after the end of the image")

    def close(self) -> None:
        """Close the shards and the external files."""
        while self._fds:
            os.close(self._fds.pop())
        for external in self._externals.values():
            external.close()

    def _ready(self, shards: set[int]) -> list[int]:
        """Return shards that can be read without waiting for another one of them."""
        if len(shards) <= 1:
            return list(shards)
        poll = select.poll()
        by_fd = {self._fds[shard]: shard for shard in shards}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        return sorted(by_fd[fd] for fd, _ in poll.poll())

    def _read_marker(self, shard: int) -> Marker | None:
        reader = self._readers[shard]
        while True:
            content = self._read(shard, reader.wants)
            if len(content) < reader.wants:
                if content:
                    raise TruncatedStream(f"shard {shard} ends inside a marker")
                reader.end()
                self.millis[shard] = int((time.monotonic() - self._started) * 1000)
                return None
            marker = reader.feed(content)
            if marker is not None:
                return marker

    def _read(self, shard: int, n_bytes: int) -> bytes:
        content = b""
        while len(content) < n_bytes:
            part = read_some(self._fds[shard], n_bytes - len(content))
            if not part:
                break
            content += part
        self.sizes[shard] += len(content)
        return content

    def _carry_out(self, shard: int, kind: Kind, name: str, size: int) -> None:
        if kind is Kind.NAME:
            receiver = self._externals.get(name) or self._packer.receive(name)
            # Pages wait here for their pagemap, so no threads take them.
            assert not isinstance(receiver, PagesReceiver)
            self._files[name] = receiver
        elif kind is Kind.DATA:
            self._move(shard, self._files[name], name, size)
        elif kind is Kind.FILE_EOF:
            self._files.pop(name).close()

    def _move(self, shard: int, file: Receiver, name: str, size: int) -> None:
        self.sizes[shard] += size
        while size:
            try:
                moved = file.move(self._fds[shard], size)
            except BlockingIOError:
                wait_readable(self._fds[shard])
                continue
            if not moved:
                raise TruncatedStream(f"shard {shard} ends {size} bytes early, inside {name}")
            size -= moved


def waiting(fd: int) -> int:
    """Return the bytes that wait in a pipe; 0 for what is none."""
    count = array.array("i", (0,))
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return max(count[0], 0)


def _gone(shard: int) -> HelperdError:
    return PeerGone(f"nobody reads shard {shard} any more")
