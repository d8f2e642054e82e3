"""A log whose warnings can be looked at."""

from __future__ import annotations

from helperd.reports.log import Log


class RecordingLog(Log):
    """Keeps its warnings."""

    def __init__(self) -> None:
        super().__init__(fd=None)
        self.warnings: list[str] = []

    def warning(self, message: str, event: str = "", **fields: object) -> None:
        self.warnings.append(message)
