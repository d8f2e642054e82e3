"""What a session has done, for --stats, for SIGUSR1 and for the server's metrics."""

from __future__ import annotations

import resource

from helperd.blocks import pages_to_bytes
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

#: More than any count has.
_DIGITS = 25


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
            "peak_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


def in_words(numbers: dict[str, int | float]) -> str:
    """Return statistics as one line of a log."""
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def pack(numbers: dict[str, int | float], reason: str) -> str:
    """Return statistics and the reason of the end as the last words of a worker.

    Lines of a name and a value; not JSON, which would have to be imported before the worker is
    confined, and that takes long.
    """
    lines = [
        f"{name} {value:.6f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    ]
    return "\n".join([*lines, f"reason {reason}"])


def unpack(last_words: str) -> tuple[dict[str, int | float], str]:
    """Return what :func:`pack` was given; what is not understood is left out."""
    numbers: dict[str, int | float] = {}
    reason = ""
    for line in last_words.splitlines():
        name, _, value = line.partition(" ")
        if name == "reason":
            reason = value
            continue
        if value.isascii() and value.replace(".", "", 1).isdecimal() and len(value) <= _DIGITS:
            numbers[name] = float(value) if "." in value else int(value)
    return numbers, reason


class End:
    """How a session ended.

    Attributes:
        exit_code: see :mod:`helperd.errors`.
        reason: in one line.
        numbers: what was done, as far as that is known.
    """

    def __init__(self, exit_code: int, reason: str, numbers: dict[str, int | float]) -> None:
        self.exit_code = exit_code
        self.reason = reason
        self.numbers = numbers

    def to_json(self) -> str:
        """Return the document of --stats."""
        import json  # Not needed before the restore is over.

        document = {**self.numbers, "exit_code": self.exit_code, "exit_reason": self.reason}
        return json.dumps(document, indent=2) + "\n"
