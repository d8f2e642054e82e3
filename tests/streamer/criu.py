"""What CRIU does at its end of a stream, and helperd at the other end of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from helperd.wire.stream import decode_reply, encode_request

SECONDS = 60
_WORD = struct.Struct("<I")
_connections: list[socket.socket] = []


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    _connections.append(connection)
    return connection


class Streamer:
    """A running ``helperd stream``, told where to report its progress."""

    def __init__(self, *words: object, stdin: object = None, stdout: object = None) -> None:
        self._progress, write_end = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helperd", "stream", "-p", str(write_end), *map(str, words)],
            pass_fds=[write_end, *self._passed(words)],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
        )
        os.close(write_end)

    @staticmethod
    def _passed(words: Iterable[object]) -> list[int]:
        found = []
        words = [str(word) for word in words]
        for option, value in itertools.pairwise(words):
            if option in ("-s", "-e"):
                found += [int(word.rpartition(":")[2]) for word in value.split(",")]
        return found

    def line(self) -> str:
        """Return the next line of progress, "" at the end."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._progress, 1)
            if not byte:
                break
            line += byte
        return line.decode().strip()

    def until(self, line: str) -> None:
        """Wait for a line of progress."""
        while (found := self.line()) != line:
            assert found, f"helperd ended: {self.process.communicate(timeout=SECONDS)[1]}"

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what was said on stderr."""
        _, said = self.process.communicate(timeout=SECONDS)
        os.close(self._progress)
        return self.process.returncode, said.decode()

    def kill(self) -> None:
        """End it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.end()


@contextlib.contextmanager
def streamer(*words: object, stdin: object = None, stdout: object = None) -> Iterator[Streamer]:
    """Run ``helperd stream`` with these words."""
    running = Streamer(*words, stdin=stdin, stdout=stdout)
    try:
        yield running
    finally:
        running.kill()
        while _connections:
            _connections.pop().close()


class Dumper:
    """``criu dump --stream``: asks for files to be taken, several at once."""

    def __init__(self, directory: Path) -> None:
        self.socket = _connect(directory / "streamer-capture.sock")

    def begin(self, name: str) -> int:
        """Return the pipe to write a file into."""
        read_end, write_end = os.pipe()
        self.socket.sendall(encode_request(name))
        socket.send_fds(self.socket, [b"\0"], [read_end])
        os.close(read_end)
        return write_end

    def send(self, files: dict[str, bytes]) -> None:
        """Send files one after the other."""
        for name, content in files.items():
            with open(self.begin(name), "wb", buffering=0) as pipe:
                write_all(pipe.fileno(), content)

    def end(self) -> None:
        """Say that this is all."""
        self.socket.close()


class Restorer:
    """``criu restore --stream``: asks for one file after the other."""

    def __init__(self, directory: Path) -> None:
        self.socket = _connect(directory / "streamer-serve.sock")

    def begin(self, name: str) -> int | None:
        """Return the pipe to read a file from, None if it does not exist."""
        self.socket.sendall(encode_request(name))
        (size,) = _WORD.unpack(self._read(_WORD.size))
        if not decode_reply(self._read(size)):
            return None
        read_end, write_end = os.pipe()
        socket.send_fds(self.socket, [b"\0"], [write_end])
        os.close(write_end)
        return read_end

    def read(self, name: str) -> bytes | None:
        """Return a file, None if it does not exist."""
        pipe = self.begin(name)
        return None if pipe is None else read_all(pipe)

    def end(self) -> None:
        """Say that this is all."""
        self.socket.close()

    def _read(self, n_bytes: int) -> bytes:
        content = self.socket.recv(n_bytes, socket.MSG_WAITALL)
        assert len(content) == n_bytes, "helperd has closed the connection"
        return content


def read_all(pipe: int) -> bytes:
    """Return what comes from a pipe, and close it."""
    with open(pipe, "rb") as stream:
        return stream.read()


def write_all(pipe: int, content: bytes) -> None:
    """Write everything into a pipe."""
    view = memoryview(content)
    while view:
        view = view[os.write(pipe, view) :]


def interleave(dumper: Dumper, files: dict[str, bytes], piece: int) -> None:
    """Send files all at once, a piece of each in turn, whichever pipe has room."""
    left = {}
    with selectors.DefaultSelector() as selector:
        for name, content in files.items():
            pipe = dumper.begin(name)
            os.set_blocking(pipe, False)
            left[pipe] = memoryview(content)
            selector.register(pipe, selectors.EVENT_WRITE)
        while left:
            for key, _ in selector.select():
                pipe = key.fd
                if left[pipe]:
                    with contextlib.suppress(BlockingIOError):
                        left[pipe] = left[pipe][os.write(pipe, left[pipe][:piece]) :]
                if not left[pipe]:
                    selector.unregister(pipe)
                    os.close(pipe)
                    del left[pipe]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the images of a directory in the order in which CRIU sends them.

    A pagemap, then its pages; what belongs to the process; inventory.img at the end.
    """
    names = [path.name for path in folder.iterdir() if path.is_file() and path.suffix == ".img"]

    def order(name: str) -> tuple[bool, bool, str]:
        return name == "inventory.img", not name.startswith("pagemap-"), name

    found = {}
    for name in sorted(names, key=order):
        content = (folder / name).read_bytes()
        if name.startswith("pages-"):
            continue
        found[name] = content
        if name.startswith("pagemap-"):
            # Magics, the head's size, then field 1: the id of the pages file.
            pages = f"pages-{content[13]}.img"
            found[pages] = (folder / pages).read_bytes()
    return found
