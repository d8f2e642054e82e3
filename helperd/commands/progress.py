"""A progress bar on a terminal; nothing anywhere else."""

from __future__ import annotations

import sys
import time

from helperd.commands.output import note

_WIDTH = 30
_INTERVAL = 0.1


class ProgressBar:
    """Draws ``label [#####.....] 50%  1.2 GB/s`` on stderr while it is a terminal.

    Args:
        label: what is being done.
        unit_bytes: bytes of one unit of progress.
    """

    def __init__(self, label: str, unit_bytes: int) -> None:
        self._label = label
        self._unit_bytes = unit_bytes
        self._started = time.monotonic()
        self._drawn = 0.0
        self._enabled = sys.stderr is not None and sys.stderr.isatty()

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units are done."""
        now = time.monotonic()
        if not self._enabled or (done < total and now - self._drawn < _INTERVAL):
            return
        self._drawn = now
        share = done / total if total else 1.0
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
        speed = done * self._unit_bytes / max(now - self._started, 1e-9) / 1e9
        note(f"\r{self._label} [{bar}] {share:4.0%}  {speed:.2f} GB/s")

    def finish(self) -> None:
        """Remove the bar, so that what is printed next starts on a clean line."""
        if self._enabled and self._drawn:
            note("\r\033[K")
