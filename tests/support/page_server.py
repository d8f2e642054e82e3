"""A page server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PORT = re.compile(r" port (\d+)$", re.MULTILINE)


class PageServerProcess:
    """``helperd page-server`` on a free port, listening when the context is entered.

    Args:
        images: the directory.
        options: further ones.

    Attributes:
        port: where it listens.
        pid: its process.
    """

    def __init__(self, images: Path, *options: str) -> None:
        self.images = images
        self._log = images.with_name(f"{images.name}.log")
        ready, told = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "helperd", "page-server", "-D", str(images), "-v4"),
                *("--port", "0", "--status-fd", str(told), "-o", f"../{self._log.name}", *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(told,),
        )
        os.close(told)
        byte = os.read(ready, 2)
        os.close(ready)
        if byte != b"\0":
            output, _ = self.process.communicate()
            raise AssertionError(f"the page server has not started: {output.decode()}")
        # The log goes on where that of the server before has ended.
        self.port = int(_PORT.findall(self.log())[-1])
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()

    @property
    def client_options(self) -> tuple[str, ...]:
        """Options with which criu sends its pages here."""
        return ("--page-server", "--address", "127.0.0.1", "--port", str(self.port))

    def wait(self) -> int:
        """Return its exit code, when it ends by itself; it prints nothing."""
        output, _ = self.process.communicate(timeout=60)
        assert output == b""
        return self.process.returncode

    def stop(self) -> int:
        """Ask it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text()
