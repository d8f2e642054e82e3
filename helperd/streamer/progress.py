"""Progress lines, as those who start criu-image-streamer read them."""

from __future__ import annotations

import contextlib
import os
import time


class Progress:
    """Writes lines to a descriptor; nobody has to read them.

    Args:
        fd: where to, None for nowhere.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._started = time.monotonic()

    def listening(self) -> None:
        """Say that CRIU may be started."""
        self._emit("socket-init")

    def dump_started(self) -> None:
        """Say that the processes are frozen."""
        self._started = time.monotonic()
        self._emit("checkpoint-start")

    def transferred(self, shards: list[int], millis: list[int] | None = None) -> None:
        """Say that the image is complete.

        Args:
            shards: bytes of each.
            millis: time that each took, in milliseconds; since the start if it is not known.
        """
        took = int((time.monotonic() - self._started) * 1000)
        parts = ",".join(
            f'{{"size":{size},"transfer_duration_millis":{millis[i] if millis else took}}}'
            for i, size in enumerate(shards)
        )
        self._emit(f'{{"shards":[{parts}]}}')

    def _emit(self, line: str) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, f"{line}\n".encode())
