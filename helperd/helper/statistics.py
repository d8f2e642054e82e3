"""What a session has done, for --stats, for SIGUSR1 and for the server's metrics."""

from __future__ import annotations

from helperd.blocks import pages_to_bytes
from helperd.kernel.syscalls import peak_rss_kib
from helperd.reports import phases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.engine.engine import Engine
    from helperd.engine.release import Release

#: All that are counted, with what they are; the source of the names in JSON and in metrics.
COUNTERS = {
    "requests": "requests served",
    "pages": "pages of those requests",
    "zero_blocks": "blocks that were all zero",
    "raw_blocks": "blocks stored raw",
    "lz4_blocks": "blocks compressed by LZ4",
    "bytes_in": "payload bytes read from pages images",
    "bytes_out": "bytes written to targets",
    "thp_collapses": "huge pages made in targets",
    "punched_bytes": "bytes punched out of pages images",
}


class Statistics:
    """Reads the books of a session's engine whenever it is asked.

    Attributes:
        serving_seconds: spent on requests, from their last byte to their answer.
    """

    def __init__(self, engine: Engine, release: Release, threads: int) -> None:
        self._engine = engine
        self._release = release
        self._threads = threads
        self.serving_seconds = 0.0

    def collect(self) -> dict[str, int | float]:
        """Return the numbers as they are now, those of COUNTERS first."""
        totals = self._engine.totals
        return {
            "requests": totals.requests,
            "pages": totals.pages,
            "zero_blocks": totals.zero,
            "raw_blocks": totals.raw,
            "lz4_blocks": totals.lz4,
            "bytes_in": totals.payload,
            "bytes_out": pages_to_bytes(totals.written + totals.zeroed),
            "thp_collapses": self._engine.collapsed,
            "punched_bytes": self._release.punched,
            "threads": self._threads,
            "serving_seconds": round(self.serving_seconds, 6),
            **{f"{name}_seconds": round(spent, 6) for name, spent in phases.totals().items()},
            "peak_rss_kib": peak_rss_kib(),
        }


def in_words(numbers: dict[str, int | float]) -> str:
    """Return statistics as one line of a log."""
    return ", ".join(f"{name} {value}" for name, value in numbers.items())
