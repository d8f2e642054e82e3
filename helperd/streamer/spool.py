"""Files that must wait, on disk and without a name."""

from __future__ import annotations

import os
import tempfile
from typing import BinaryIO

from helperd.images.records import os_failure
from helperd.streamer.sinks import MOVED_BYTES, SinkFile, move


class Spool:
    """A file without a name for what must wait."""

    def __init__(self, scratch: str, name: str) -> None:
        self.name = name
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(dir=scratch, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise os_failure(error, f"cannot make a file in {scratch}") from error

    @property
    def path(self) -> str:
        """A path that leads to the file."""
        return f"/proc/self/fd/{self._file.fileno()}"

    def move(self, source: int, n_bytes: int) -> int:
        """Take up to ``n_bytes`` from a descriptor; return how many, 0 at its end."""
        return move(source, self._file.fileno(), n_bytes, self.name)

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def write(self, payload: bytes) -> None:
        """Append ``payload``."""
        self._file.write(payload)

    def close(self) -> None:
        """Say that the file is complete."""

    def copy_to(self, file: SinkFile) -> None:
        """Pass all of it on."""
        self._file.seek(0)
        while file.move(self._file.fileno(), MOVED_BYTES):
            pass

    def drop(self) -> None:
        """Let go of it; can be called again."""
        self._file.close()


class Tee:
    """A small file that is passed on and kept."""

    def __init__(self, file: SinkFile, spool: Spool) -> None:
        self._file = file
        self._spool = spool

    def move(self, source: int, n_bytes: int) -> int:
        """Take up to ``n_bytes`` from a descriptor; return how many, 0 at its end."""
        content = os.read(source, min(n_bytes, 1 << 16))
        if content:
            self._file.write(content)
            self._spool.write(content)
        return len(content)

    def close(self) -> None:
        """Say that the file is complete."""
        self._file.close()
