"""What was measured: one row for each figure, in one table that goes to CSV as it is."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

GB_PER_S, CPU_PER_GB, SECONDS, MIB, TIMES = "GB/s", "CPU s/GB", "s", "MiB", "times"
_HEADER = ("section", "case", "who", "unit", "median", "low", "high", "n")


class BenchError(Exception):
    """The benchmark cannot go on, or something restored wrong bytes; the message says what."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        section: of the benchmark, as on the command line.
        case: what was done, "text page, 64M" say.
        who: did it.
        unit: of the values.
        median: of the measurements.
        low: their lower quartile (inclusive method).
        high: their upper quartile.
        n: how many they were.
    """

    section: str
    case: str
    who: str
    unit: str
    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What was in memory at one moment of a restore, in bytes."""

    seconds: float
    image_bytes: int
    target_bytes: int
    helper_bytes: int


@dataclass
class Results:
    """Everything a run found.

    Attributes:
        machine: what the figures depend on, by name.
        rows: one for each figure, in the order in which they were taken.
    """

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    def add(self, section: str, case: str, who: str, unit: str, values: Sequence[float]) -> None:
        """Add a row for at least one measurement."""
        low = median = high = values[0]
        if len(values) > 1:
            low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        self.rows.append(Row(section, case, who, unit, median, low, high, len(values)))

    def value(self, section: str, case: str, who: str, unit: str) -> float | None:
        """Return a median, or None if it was not measured."""
        wanted = (section, case, who, unit)
        found = (row for row in self.rows if (row.section, row.case, row.who, row.unit) == wanted)
        return next((row.median for row in found), None)

    def cases(self, section: str) -> list[str]:
        """Return the cases of a section, in order, each once."""
        return list(dict.fromkeys(row.case for row in self.rows if row.section == section))

    def to_csv(self) -> str:
        """Return all rows as CSV, with four significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        for row in self.rows:
            figures = (f"{value:.4g}" for value in (row.median, row.low, row.high))
            writer.writerow((row.section, row.case, row.who, row.unit, *figures, row.n))
        return text.getvalue()


def read_csv(text: str) -> list[Row]:
    """Return the rows that :meth:`Results.to_csv` wrote.

    Raises:
        ValueError: it is something else.
    """
    reader = csv.reader(io.StringIO(text))
    if tuple(next(reader, ())) != _HEADER:
        raise ValueError(f"no table of results: it does not begin with {','.join(_HEADER)}")
    return [
        Row(section, case, who, unit, float(median), float(low), float(high), int(n))
        for section, case, who, unit, median, low, high, n in reader
    ]


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return names, each once: those of ``first`` in that order, then the others as they come."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: first.index(name) if name in first else len(first))
