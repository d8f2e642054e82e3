"""What helperd is meant to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.competitors import (
    ATTACH,
    CONNECT,
    DAEMON,
    HELPERD,
    HUGE,
    INPROCESS,
    ONE_THREAD,
)
from bench.results import Case, Results
from bench.stats import ratio
from bench.tools import LIMIT, LOOP

#: The cases that count: real content, in the two modes that matter.
_PATTERNS = ("text", "elf")
_MODES = ("page", "256K")

_PEAK_RSS_MIB = 64


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and the worst that was measured.

    Attributes:
        what: is meant.
        wanted: the limit.
        measured: the worst value, and where.
        met: whether it is within the limit.
    """

    what: str
    wanted: str
    measured: str
    met: bool


Measured = list[tuple[float, str]]


def judge(results: Results) -> list[Goal]:
    """Return the goals for which there is a measurement."""
    split = list(_cases(results, "64M"))
    whole = list(_cases(results, "whole"))

    def ratios(cases: list[Case], name: str, reference: str) -> Measured:
        return [
            (case.ratio(name, reference), case.name)
            for case in cases
            if name in case.results and reference in case.results
        ]

    cpu = [
        (case.cpu_ratio(HELPERD, DAEMON), case.name)
        for case in split
        if HELPERD in case.results and DAEMON in case.results
    ]
    latencies = results.latencies
    warm: Measured = []
    if HELPERD in latencies and DAEMON in latencies:
        helperd, daemon = latencies[HELPERD], latencies[DAEMON]
        warm.append((helperd.warm.median / daemon.warm.median, "one page"))

    def first(name: str) -> Measured:
        return [(latencies[name].first.median * 1e3, "one page")] if name in latencies else []

    peaks = [
        (result.peak_rss_kib / 1024, f"{case.name} {case.request}")
        for case in results.cases
        for name, result in case.results.items()
        if result.peak_rss_kib is not None and name != DAEMON
    ]
    peaks += [
        (peak.peak_rss_kib / 1024, f"{peak.mode}, one request of {peak.request_bytes >> 30} GiB")
        for peak in results.peaks
    ]
    goals = (
        _at_least("speed / C helper, 64 MiB requests", 2.0, ratios(split, HELPERD, DAEMON)),
        _at_least("same, --thp always", 3.0, ratios(split, HUGE, DAEMON)),
        _at_least("speed / C helper, one request", 2.4, ratios(whole, HELPERD, DAEMON)),
        _at_least("speed / C helper, one thread", 1.1, ratios(split, ONE_THREAD, DAEMON)),
        _at_most("CPU time / C helper", 1.2, cpu),
        _at_least("speed / in-process, 4K pages", 0.85, ratios(split, HELPERD, INPROCESS)),
        _at_least("same, --thp always", 1.1, ratios(split, HUGE, INPROCESS)),
        _at_most("one-page request, time / C helper", 1.0, warm),
        _at_most("first answer, from spawning helperd", 80, first(HELPERD), " ms"),
        _at_most("first answer, from spawning helperd attach", 40, first(ATTACH), " ms"),
        _at_most("first answer, from connecting to helperd serve", 10, first(CONNECT), " ms"),
        _at_most("peak RSS", _PEAK_RSS_MIB, peaks, " MiB"),
        _at_most(
            "cold image, time / max(read, restore)",
            1.1,
            [(case.overhead, case.name) for case in results.cold],
        ),
        _at_most(
            "--auto-dedup, peak over the larger of image and memory",
            32,
            [(case.excess_bytes / 2**20, case.name) for case in results.dedup],
            " MiB",
        ),
        _at_least(
            "--auto-dedup, speed / without",
            0.9,
            [(ratio(case.dedup, case.plain), case.name) for case in results.dedup],
        ),
        _at_least(
            "--sandbox on, speed / off",
            0.98,
            [(case.ratio.median, case.name) for case in results.sandbox],
            digits=3,
        ),
        _at_least("compress, decompress / per-page loop", 4.0, _tools(results)),
    )
    return [goal for goal in goals if goal is not None]


def _cases(results: Results, request: str) -> Iterable[Case]:
    return (
        case
        for case in results.cases
        if case.request == request and case.pattern in _PATTERNS and case.mode in _MODES
    )


def _tools(results: Results) -> Measured:
    loops = {(case.pattern, case.command): case for case in results.tools if case.who == LOOP}
    return [
        (
            ratio(case.throughput, loops[case.pattern, case.command].throughput),
            f"{case.pattern}, {case.command}, {case.who}",
        )
        for case in results.tools
        if case.who not in (LOOP, LIMIT)
    ]


def _at_least(
    what: str, limit: float, measured: Measured, unit: str = "", *, digits: int = 2
) -> Goal | None:
    return _worst(what, ">=", limit, measured, unit, min, digits)


def _at_most(what: str, limit: float, measured: Measured, unit: str = "") -> Goal | None:
    return _worst(what, "<=", limit, measured, unit, max)


def _worst(
    what: str,
    sign: str,
    limit: float,
    measured: Measured,
    unit: str,
    choose: Callable[[Measured], tuple[float, str]],
    digits: int = 2,
) -> Goal | None:
    if not measured:
        return None
    value, where = choose(measured)
    met = value >= limit if sign == ">=" else value <= limit
    return Goal(what, f"{sign} {limit:g}{unit}", f"{value:.{digits}f}{unit} ({where})", met)
