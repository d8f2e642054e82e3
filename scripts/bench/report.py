"""Results as tables: on the terminal, and in docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.competitors import DAEMON, NAMES
from bench.goals import Goal
from bench.results import Case, Result, Results, peak_bytes
from bench.stats import Summary, ratio
from bench.tools import LOOP

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

_NOTHING = "–"  # noqa: RUF001 - a dash is meant
_REQUESTS = {"64M": "requests of 64 MiB", "whole": "one request for everything"}


def render(results: Results, goals: Sequence[Goal]) -> str:
    """Return all tables as Markdown that can be read as it is."""
    parts = [_section("Machine and settings", _machine(results))]
    if goals:
        parts.append(_section("Goals", _goals(goals)))
    for request, name in _REQUESTS.items():
        cases = [case for case in results.cases if case.request == request]
        if cases:
            parts.append(_section(f"GB/s, {name}", _matrix(cases, _throughput)))
            parts.append(_section(f"Times as fast as the C helper, {name}", _ratios(cases)))
            parts.append(_section(f"CPU seconds per GB, {name}", _matrix(cases, _cpu)))
            parts.append(_section(f"Peak RSS in MiB, {name}", _matrix(cases, _peak)))
    if results.latencies:
        parts.append(_section("Waiting for one page", _latencies(results)))
    if results.cold:
        parts.append(_section("Image on a disk, not in the page cache", _cold(results)))
    if results.peaks:
        parts.append(_section("Peak RSS with a very large request", _peaks(results)))
    if results.dedup:
        parts.append(_section("Restoring from a tmpfs with --auto-dedup", _dedup(results)))
    if results.sandbox:
        parts.append(_section("What --sandbox on costs", _sandbox(results)))
    if results.tools:
        parts.append(_section("Offline: compress and decompress", _tools(results)))
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


def _machine(results: Results) -> str:
    return table(("", ""), list({**results.machine, **results.settings}.items()))


def _goals(goals: Sequence[Goal]) -> str:
    rows = [(g.what, g.wanted, g.measured, "yes" if g.met else "**no**") for g in goals]
    return table(("goal", "wanted", "measured (worst case)", "met"), rows)


def _matrix(cases: Sequence[Case], show: Callable[[Result], str | None]) -> str:
    shown = {
        (case.name, name): show(result) for case in cases for name, result in case.results.items()
    }
    names = [n for n in NAMES if any(shown.get((case.name, n)) for case in cases)]
    rows = [
        (case.name, _compression(case), *(shown.get((case.name, n)) or _NOTHING for n in names))
        for case in cases
    ]
    return table(("memory, mode", "compressed", *names), rows)


def _ratios(cases: Sequence[Case]) -> str:
    names = [n for n in NAMES if n != DAEMON and any(n in case.results for case in cases)]
    rows = [
        (case.name, *(f"{case.ratio(n, DAEMON):.2f}" if n in case.results else "" for n in names))
        for case in cases
        if DAEMON in case.results
    ]
    return table(("memory, mode", *names), rows)


def _compression(case: Case) -> str:
    return f"{case.payload_bytes / case.memory_bytes:.0%}"


def _throughput(result: Result) -> str:
    return _spread(result.throughput, 1, 2)


def _cpu(result: Result) -> str:
    return f"{result.cpu.median:.2f}"


def _peak(result: Result) -> str | None:
    return None if result.peak_rss_kib is None else f"{result.peak_rss_kib / 1024:.0f}"


def _spread(summary: Summary, factor: float, digits: int) -> str:
    """Return the median and, in parentheses, the quartiles."""
    median, low, high = (
        f"{value * factor:.{digits}f}" for value in (summary.median, summary.low, summary.high)
    )
    return f"{median} ({low}..{high})"


def _latencies(results: Results) -> str:
    rows = [
        (name, _spread(item.first, 1e3, 1), _spread(item.warm, 1e6, 1))
        for name, item in results.latencies.items()
    ]
    return table(("helper", "first answer, ms", "one-page request, µs"), rows)


def _cold(results: Results) -> str:
    rows = [
        (
            case.name,
            f"{case.payload_bytes / 1e6:.0f}",
            _spread(case.read, 1e3, 0),
            _spread(case.warm, 1e3, 0),
            _spread(case.cold, 1e3, 0),
            f"{case.overhead:.2f}",
        )
        for case in results.cold
    ]
    header = (
        "memory, mode",
        "MB",
        "read alone, ms",
        "restore warm, ms",
        "restore cold, ms",
        "cold / max",
    )
    return table(header, rows)


def _peaks(results: Results) -> str:
    rows = [
        (peak.mode, f"{peak.request_bytes >> 20} MiB", f"{peak.peak_rss_kib / 1024:.0f} MiB")
        for peak in results.peaks
    ]
    return table(("mode", "request", "peak RSS of helperd"), rows)


def _dedup(results: Results) -> str:
    rows = [
        (
            case.name,
            f"{case.memory_bytes >> 20}",
            f"{case.payload_bytes >> 20}",
            f"{peak_bytes(case.plain_timeline) >> 20}",
            f"{peak_bytes(case.dedup_timeline) >> 20}",
            _spread(case.plain, 1, 2),
            _spread(case.dedup, 1, 2),
            f"{ratio(case.dedup, case.plain):.2f}",
        )
        for case in results.dedup
    ]
    header = (
        "memory, mode",
        "memory, MiB",
        "image, MiB",
        "peak without, MiB",
        "peak with, MiB",
        "GB/s without",
        "GB/s with",
        "with / without",
    )
    return table(header, rows)


def _sandbox(results: Results) -> str:
    rows = [
        (
            case.name,
            f"{case.ratio.n}",
            _spread(case.off, 1, 2),
            _spread(case.on, 1, 2),
            _spread(case.ratio, 1, 3),
        )
        for case in results.sandbox
    ]
    header = ("memory, mode", "pairs", "GB/s off", "GB/s on", "on / off, pair by pair")
    return table(header, rows)


def _tools(results: Results) -> str:
    loops = {(case.pattern, case.command): case for case in results.tools if case.who == LOOP}
    rows = [
        (
            f"{case.pattern}, {case.command}",
            case.who,
            f"{case.ratio:.2f}",
            _spread(case.throughput, 1, 2),
            f"{ratio(case.throughput, loops[case.pattern, case.command].throughput):.2f}",
        )
        for case in results.tools
    ]
    return table(("memory, command", "who", "ratio", "GB/s", "times the loop"), rows)
