"""A ``helperd serve`` under test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

from tests.support.helper import COMMAND
from tests.support.processes import DEADLINE_SECONDS


class ServerProcess:
    """A server in a folder of its own; a context manager that leaves none behind.

    It is ready when it is constructed: it says so as to systemd.

    Attributes:
        path: of its socket.
        metrics: its metrics file.
        attach: the command line of a client, up to its options.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        folder.chmod(0o711)
        self.path = folder / "s"
        self.metrics = folder / "metrics.prom"
        self.attach = (*COMMAND, "attach", "--socket", str(self.path))
        self._log = folder / "log"
        notify = folder / "n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            ready.settimeout(DEADLINE_SECONDS)
            self._process = subprocess.Popen(
                [
                    *(command or [*COMMAND, "serve", "--socket", str(self.path)]),
                    *("--socket-mode", "666", "-v", "3", "--log-file", str(self._log)),
                    *("--metrics", str(self.metrics), *options),
                ],
                env={**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(notify)},
                stdin=subprocess.DEVNULL,
                pass_fds=pass_fds,
            )
            assert ready.recv(100) == b"READY=1"
        notify.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The server's pid; its sessions are its children."""
        return self._process.pid

    def log(self) -> str:
        """Return what it has logged."""
        text = self._log.read_text()
        assert "Traceback" not in text
        assert "a bug" not in text
        return text

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, return its exit status."""
        return self._process.wait(DEADLINE_SECONDS)

    def stop(self) -> int:
        """Stop it as systemd does, return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()
