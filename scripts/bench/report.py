"""Results as tables: on the terminal, and in docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence

from bench.competitors import NAMES
from bench.goals import Goal
from bench.rows import SECONDS, Results, Row, in_order

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

_NOTHING = "–"  # noqa: RUF001 - a dash is meant


def render(results: Results, goals: Sequence[Goal]) -> str:
    """Return all tables as Markdown that can be read as it is."""
    parts = [_section("Machine and settings", table(("", ""), list(results.machine.items())))]
    judged = [verdict for goal in goals if (verdict := goal.judge(results)) is not None]
    if judged:
        rows = [(*words, "yes" if met else "**no**") for *words, met in judged]
        header = ("goal", "wanted", "measured (worst case)", "met")
        parts.append(_section("Goals", table(header, rows)))
    for section, unit in dict.fromkeys((row.section, row.unit) for row in results.rows):
        rows_of = [row for row in results.rows if (row.section, row.unit) == (section, unit)]
        parts.append(_section(f"{section}, {_unit_of(rows_of)}", _matrix(rows_of)))
    return "\n".join(parts)


def insert(document: str, report: str) -> str:
    """Return ``document`` with ``report`` in place of what stands between the markers.

    Raises:
        ValueError: the document has no markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} ... {END} to put the report between")
    return f"{before}{BEGIN}\n\n{report}\n{END}{after}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned: the first to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join((first, *others))} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)]) + "\n"


def _section(title: str, content: str) -> str:
    return f"### {title}\n\n{content}"


def _unit_of(rows: Sequence[Row]) -> str:
    return "ms" if rows[0].unit == SECONDS else rows[0].unit


def _matrix(rows: Sequence[Row]) -> str:
    """Return a table of cases by who; the quartiles in parentheses where there are enough."""
    shown = {(row.case, row.who): _cell(row) for row in rows}
    names = in_order((row.who for row in rows), NAMES)
    cases = dict.fromkeys(row.case for row in rows)
    lines = [(case, *(shown.get((case, name), _NOTHING) for name in names)) for case in cases]
    return table(("case", *names), lines)


def _cell(row: Row) -> str:
    factor = 1e3 if row.unit == SECONDS else 1.0
    median, low, high = (f"{value * factor:.3g}" for value in (row.median, row.low, row.high))
    return f"{median} ({low}..{high})" if row.n >= 5 else median
