"""A redis with many keys, to be dumped and restored; its digest says whether all is right."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from criu.debian import is_made, made_once, unpack
from criu.errors import WorkloadError
from criu.native import CACHE, write_launcher
from criu.processes import is_gone, kill, start, wait_for

_FOLDER = CACHE / "redis"
_SUITE = "bookworm"


def set_up_redis() -> None:
    """Download and unpack redis, unless that was done.

    Raises:
        SetupError: it cannot be had.
    """
    made_once(_FOLDER, f"redis of {_SUITE}, 3", _make)


def is_redis_ready() -> bool:
    """Say whether redis was set up."""
    return is_made(_FOLDER)


def _make(folder: Path) -> None:
    print(f"criu: unpacking redis of Debian {_SUITE}", flush=True)
    unpack(_SUITE, ["redis-server"], folder / "root")
    write_launcher(folder / "redis-server", folder / "root", "usr/bin/redis-server")


class Redis:
    """A running redis-server that listens on a socket in a folder; a context manager.

    Args:
        folder: of the socket; with a short path.

    Attributes:
        pid: of the server.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._socket = folder / "redis.sock"
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "save": "",
            "appendonly": "no",
            "enable-debug-command": "yes",
            "dir": str(folder),
            "activerehashing": "no",
        }
        command = [str(_FOLDER / "redis-server")]
        for name, value in settings.items():
            command += [f"--{name}", value]
        self.pid = start(command)
        try:
            wait_for(lambda: self._listens() or is_gone(self.pid), "redis to listen")
            if is_gone(self.pid):
                raise WorkloadError(f"redis does not start: {shlex.join(command)}")
        except BaseException:
            kill([self.pid])
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        kill([self.pid])

    def wait_until_it_listens(self) -> None:
        """Wait until a restored server takes connections.

        Raises:
            WorkloadError: it never does.
        """
        wait_for(self._listens, "redis to listen")

    def _listens(self) -> bool:
        try:
            self.connect().__exit__()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def fill(self, n_keys: int) -> None:
        """Set so many keys, with values of 11 to 990 bytes."""
        with self.connect() as client:
            for first in range(0, n_keys, 1000):
                client.send_all(
                    ("SET", f"key:{i}", self.value(i))
                    for i in range(first, min(first + 1000, n_keys))
                )

    @staticmethod
    def value(number: int) -> str:
        """Return what :meth:`fill` sets the key ``key:NUMBER`` to."""
        # A number, again and again: as compressible as most values are.
        return f"{number * 2654435761 % 2**32:011d}" * (1 + number % 90)

    def digest(self) -> str:
        """Return the digest of everything that is in it."""
        with self.connect() as client:
            return client.send("DEBUG", "DIGEST")

    def n_keys(self) -> int:
        """Return how many keys it has."""
        with self.connect() as client:
            return int(client.send("DBSIZE"))

    def connect(self) -> RedisClient:
        """Return a connection. It must be closed when the server is dumped."""
        return RedisClient(str(self._socket))


class RedisClient:
    """A connection to redis; a context manager."""

    def __init__(self, path: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(path)
        except OSError:
            self._connection.close()
            raise
        self._replies = self._connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._connection.close()

    def send(self, *words: str) -> str:
        """Send one command and return what is answered, empty for nothing.

        Raises:
            WorkloadError: redis answers with an error, or not at all.
        """
        self._connection.sendall(_encode(words))
        return self._reply()

    def send_all(self, commands: Iterable[tuple[str, ...]]) -> None:
        """Send commands, then read all answers.

        Raises:
            WorkloadError: redis answers with an error, or not at all.
        """
        encoded = [_encode(words) for words in commands]
        self._connection.sendall(b"".join(encoded))
        for _ in encoded:
            self._reply()

    def _reply(self) -> str:
        line = self._replies.readline()
        kind, rest = line[:1], line[1:].rstrip().decode()
        if kind in (b"+", b":"):
            return rest
        if kind == b"$":
            size = int(rest)
            return self._replies.read(size + 2)[:-2].decode() if size >= 0 else ""
        raise WorkloadError(f"redis has answered {line!r}")


def _encode(words: tuple[str, ...]) -> bytes:
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded)
