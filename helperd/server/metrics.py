"""The sums over all sessions, as a text file for Prometheus.

The format is a few lines of text, which node_exporter's textfile collector reads; the client
library would bring an HTTP server, locks and process metrics into a daemon that runs as root.
"""

from __future__ import annotations

import os
from collections import Counter

from helperd.reports.stats import COUNTERS

_PREFIX = "helperd_"


class Metrics:
    """Counts sessions and adds up what they have done.

    Args:
        path: the file to keep up to date; None for none.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._active = 0
        self._refused = 0
        self._ended: Counter[int] = Counter()
        self._sums: dict[str, float] = dict.fromkeys((*COUNTERS, "serving_seconds"), 0)

    def started(self) -> None:
        """Count a session that has begun."""
        self._active += 1
        self._write()

    def refused(self) -> None:
        """Count a client that found no place."""
        self._refused += 1
        self._write()

    def ended(self, exit_code: int, numbers: dict[str, int | float]) -> None:
        """Count a session that has ended, with what it did."""
        self._active -= 1
        self._ended[exit_code] += 1
        for name in self._sums:
            # Written by a process of the client's user: only what makes sense is taken over.
            self._sums[name] += max(0, numbers.get(name, 0))
        self._write()

    def to_text(self) -> str:
        """Return Prometheus' text format."""
        lines = [
            *_family("sessions_active", "gauge", "sessions now", {"": self._active}),
            *_family("refused_total", "counter", "clients without a place", {"": self._refused}),
            *_family(
                "sessions_total",
                "counter",
                "sessions that have ended, by exit code",
                {f'{{exit_code="{code}"}}': n for code, n in sorted(self._ended.items())},
            ),
            *_family(
                "serving_seconds_total",
                "counter",
                "time spent on requests",
                {"": self._sums["serving_seconds"]},
            ),
        ]
        for name, meaning in COUNTERS.items():
            lines += _family(f"{name}_total", "counter", meaning, {"": self._sums[name]})
        return "\n".join(lines) + "\n"

    def _write(self) -> None:
        """Replace the file at once: a reader sees the old or the new one."""
        if self._path is None:
            return
        scratch = f"{self._path}.new"
        try:
            with open(scratch, "w") as file:
                file.write(self.to_text())
            os.replace(scratch, self._path)
        except OSError:
            return  # Metrics are not worth a restore.


def _family(name: str, kind: str, meaning: str, samples: dict[str, float]) -> list[str]:
    head = [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} {kind}"]
    return head + [f"{_PREFIX}{name}{labels} {value}" for labels, value in samples.items()]
