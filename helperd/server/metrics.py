"""The sums over all sessions, as a text file for Prometheus.

The format is a few lines of text, which node_exporter's textfile collector reads; the client
library would bring an HTTP server, locks and process metrics into a daemon that runs as root.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from helperd.errors import UsageError, describe_errno
from helperd.helper import statistics
from helperd.kernel.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helperd.reports.log import Log

_PREFIX = "helperd_"


class Metrics:
    """Counts sessions and adds up what they have done.

    Args:
        path: the file to keep up to date; None for none.
        log: for a warning when that cannot be done any more.
        counters: what sessions count, with what it is.
        prefix: of all names.
    """

    def __init__(
        self,
        path: str | None,
        log: Log,
        *,
        counters: Mapping[str, str] = statistics.COUNTERS,
        prefix: str = _PREFIX,
    ) -> None:
        self._counters = counters
        self._prefix = prefix
        self._path = path
        self._log = log
        self._warned = False
        self._active = 0
        self._refused = 0
        self._ended: Counter[int] = Counter()
        self._sums: dict[str, float] = dict.fromkeys((*counters, "serving_seconds"), 0)

    def begin(self) -> None:
        """Write the file for the first time.

        Raises:
            UsageError: it cannot be written, or something that is no file has its name.
        """
        try:
            self._replace()
        except OSError as error:
            why = describe_errno(error.errno) if error.errno else str(error)
            raise UsageError(f"--metrics {self._path}: cannot be written: {why}") from error

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
        family = self._family
        lines = [
            *family("sessions_active", "gauge", "sessions now", {"": self._active}),
            *family("refused_total", "counter", "clients without a place", {"": self._refused}),
            *family(
                "sessions_total",
                "counter",
                "sessions that have ended, by exit code",
                {f'{{exit_code="{code}"}}': n for code, n in sorted(self._ended.items())},
            ),
            *family(
                "serving_seconds_total",
                "counter",
                "time spent on requests",
                {"": self._sums["serving_seconds"]},
            ),
        ]
        for name, meaning in self._counters.items():
            lines += family(f"{name}_total", "counter", meaning, {"": self._sums[name]})
        return "\n".join(lines) + "\n"

    def _write(self) -> None:
        try:
            self._replace()
        except OSError as error:
            # Metrics are not worth a restore.
            if not self._warned:
                self._warned = True
                self._log.warning(
                    f"cannot write the metrics {self._path}: {describe_errno(error.errno or 0)}",
                    event="no-metrics",
                )

    def _replace(self) -> None:
        """Replace the file at once: a reader sees the old or the new one."""
        if self._path is None:
            return
        replace_file(self._path, self.to_text())

    def _family(
        self, name: str, kind: str, meaning: str, samples: Mapping[str, float]
    ) -> list[str]:
        full = f"{self._prefix}{name}"
        head = [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
        return head + [f"{full}{labels} {value}" for labels, value in samples.items()]
