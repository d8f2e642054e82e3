"""What helperd is meant to reach, and whether it did: the worst case decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench import share, whole
from bench.archives import ARCHIVE, UNPACKED
from bench.archives import SECTION as ARCHIVES
from bench.competitors import ATTACH, BARE, CONNECT, DAEMON, HELPERD, HUGE, INPROCESS, ONE_THREAD
from bench.dedup import DEDUP, EXCESS, PLAIN
from bench.ondemand import FAULTS, FILLED, PREFETCHED, RANDOM_FAULT, RECORDED, RUNS, WALK
from bench.ondemand import OWN as OWN_DAEMON
from bench.ondemand import PAGE as PAGE_ON_DEMAND
from bench.ondemand import REGION as REGION_ON_DEMAND
from bench.ondemand import SECTION as ON_DEMAND
from bench.received import NONE, OWN, PAGE
from bench.received import SECTION as RECEIVED
from bench.restore import MAIN
from bench.rows import CPU_PER_GB, GB_PER_S, MIB, SECONDS, TIMES, Results
from bench.streams import CHAIN, DUMP, RESTORE
from bench.streams import PAGE as PAGE_STREAM
from bench.streams import PLAIN as PLAIN_STREAM
from bench.streams import REGION as REGION_STREAM
from bench.streams import SECTION as STREAMS
from bench.streams import STOCK as NO_STREAM
from bench.tools import LOOP, PER_PAGE, REGIONS
from bench.waiting import FIRST, WARM
from bench.whole import ONE_PAGE

#: Values with the cases that they are of.
Measured = list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal.

    Attributes:
        what: is meant.
        limit: that is still good enough.
        least: whether the limit is the least that is, or else the most.
        measure: finds the values that it is about.
        unit: of the values, for people.
    """

    what: str
    limit: float
    least: bool
    measure: Callable[[Results], Measured]
    unit: str = ""

    def judge(self, results: Results) -> tuple[str, str, str, bool] | None:
        """Return what is meant, the limit, the worst value and where, and whether it is met."""
        measured = self.measure(results)
        if not measured:
            return None
        value, where = (min if self.least else max)(measured)
        met = value >= self.limit if self.least else value <= self.limit
        sign = ">=" if self.least else "<="
        wanted = f"{sign} {self.limit:g}{self.unit}"
        return self.what, wanted, f"{value:.3g}{self.unit} ({where})", met


def ratio(
    section: str, who: str, reference: str, unit: str, cases: Iterable[str] | None = None
) -> Callable[[Results], Measured]:
    """Measure how many times the reference's median that of ``who`` is, in each case."""

    def measure(results: Results) -> Measured:
        found = []
        for case in results.cases(section) if cases is None else cases:
            value = results.value(section, case, who, unit)
            base = results.value(section, case, reference, unit)
            if value is not None and base:
                found.append((value / base, case))
        return found

    return measure


def values(section: str, who: str, unit: str, factor: float = 1.0) -> Callable[[Results], Measured]:
    """Measure the medians of ``who`` in each case, times ``factor``."""

    def measure(results: Results) -> Measured:
        return [
            (row.median * factor, row.case)
            for row in results.rows
            if (row.section, row.who, row.unit) == (section, who, unit)
        ]

    return measure


def _wait(case: str, who: str) -> Callable[[Results], Measured]:
    def measure(results: Results) -> Measured:
        value = results.value("waiting", case, who, SECONDS)
        return [] if value is None else [(value * 1e3, case)]

    return measure


def _start(case: str, who: str) -> Callable[[Results], Measured]:
    section = "waiting" if case == FIRST else whole.SECTION
    return ratio(section, who, BARE, SECONDS, [case])


def _crossing(who: str) -> Callable[[Results], Measured]:
    def measure(results: Results) -> Measured:
        if not whole.curve(results, who)[0]:
            return []
        size = whole.crossing(results, who)
        return [(math.inf if size is None else size, "text page")]

    return measure


def _cold(results: Results) -> Measured:
    found = []
    for case in results.cases("cold"):
        read, warm, cold = (
            results.value("cold", case, who, SECONDS)
            for who in ("reading alone", "restore, warm", "restore, cold")
        )
        if read is not None and warm is not None and cold is not None:
            found.append((cold / max(read, warm), case))
    return found


def _excess(results: Results) -> Measured:
    return [row for row in values("auto-dedup", DEDUP, MIB)(results) if row[1].endswith(EXCESS)]


def _rss(results: Results) -> Measured:
    return values("throughput", HELPERD, MIB)(results) + values("peak", HELPERD, MIB)(results)


def _offline(results: Results) -> Measured:
    return [
        measured
        for who in (PER_PAGE, REGIONS)
        for measured in ratio("offline", LOOP, who, SECONDS)(results)
    ]


def _stream_rss(results: Results) -> Measured:
    everybody = (PLAIN_STREAM, PAGE_STREAM, REGION_STREAM, CHAIN)
    return [row for who in everybody for row in values(STREAMS, who, MIB)(results)]


def _runs_later(results: Results) -> Measured:
    own = results.value(ON_DEMAND, RUNS, OWN_DAEMON, SECONDS)
    found = []
    for who in (PAGE_ON_DEMAND, REGION_ON_DEMAND):
        ours = results.value(ON_DEMAND, RUNS, who, SECONDS)
        if own is not None and ours is not None:
            found.append(((ours - own) * 1e3, who))
    return found


def _prefetched(results: Results) -> Measured:
    """Measure what is left of a random reader's faults once they are known before."""
    found = []
    for who in (PAGE_ON_DEMAND, REGION_ON_DEMAND):
        recorded = results.value(ON_DEMAND, RECORDED, who, TIMES)
        left = results.value(ON_DEMAND, PREFETCHED, who, TIMES)
        if recorded and left is not None:
            found.append((left / recorded, who))
    return found


_SPLIT = [f"{pattern} {mode}, 64M" for pattern, mode in MAIN]
_WHOLE = [f"{pattern} {mode}, whole" for pattern, mode in MAIN]


def _speed(who: str, reference: str, cases: list[str]) -> Callable[[Results], Measured]:
    return ratio("throughput", who, reference, GB_PER_S, cases)


GOALS = [
    Goal("speed / C helper, 64 MiB requests", 2.0, True, _speed(HELPERD, DAEMON, _SPLIT)),
    Goal("same, --thp always", 3.0, True, _speed(HUGE, DAEMON, _SPLIT)),
    Goal("speed / C helper, one request", 2.4, True, _speed(HELPERD, DAEMON, _WHOLE)),
    Goal("speed / C helper, one thread", 1.1, True, _speed(ONE_THREAD, DAEMON, _SPLIT)),
    Goal(
        "CPU time / C helper",
        1.2,
        False,
        ratio("throughput", HELPERD, DAEMON, CPU_PER_GB, _SPLIT),
    ),
    Goal("speed / in-process, 4K pages", 0.85, True, _speed(HELPERD, INPROCESS, _SPLIT)),
    Goal("same, --thp always", 1.1, True, _speed(HUGE, INPROCESS, _SPLIT)),
    Goal(
        "one-page request, time / C helper",
        1.7,
        False,
        ratio("waiting", HELPERD, DAEMON, SECONDS, [WARM]),
    ),
    Goal("first answer, spawning helperd / bare Python", 2.2, False, _start(FIRST, HELPERD)),
    Goal("first answer, helperd attach / bare Python", 1.6, False, _start(FIRST, ATTACH)),
    Goal("first answer, connecting to helperd serve", 3, False, _wait(FIRST, CONNECT), " ms"),
    Goal("whole life, one page, helperd / bare Python", 2.6, False, _start(ONE_PAGE, HELPERD)),
    Goal("whole life, one page, attach / bare Python", 2.0, False, _start(ONE_PAGE, ATTACH)),
    Goal("as quick as the C helper from, helperd", 40, False, _crossing(HELPERD), " MiB"),
    Goal("same, helperd attach", 28, False, _crossing(ATTACH), " MiB"),
    Goal("same, connecting to helperd serve", 6, False, _crossing(CONNECT), " MiB"),
    Goal("Python's share", 40, False, values(share.SECTION, share.WHO, share.UNIT), " us/MiB"),
    Goal("peak RSS", 64, False, _rss, " MiB"),
    Goal("cold image, time / max(read, restore)", 1.1, False, _cold),
    Goal("--auto-dedup, peak over the larger of both", 32, False, _excess, " MiB"),
    Goal("--auto-dedup, time / without", 1.1, False, ratio("auto-dedup", DEDUP, PLAIN, SECONDS)),
    Goal("--sandbox on, speed / off", 0.98, True, values("sandbox", "speed on / off", TIMES)),
    Goal("compress, decompress, speed / per-page loop", 4.0, True, _offline),
    Goal(
        "compress an archive, time / tar x, compress, tar c",
        0.5,
        False,
        ratio(ARCHIVES, ARCHIVE, UNPACKED, SECONDS),
    ),
    Goal("restore on demand, runs later than by criu lazy-pages", 20, False, _runs_later, " ms"),
    Goal(
        "same, 256K regions: from then until all is there / criu lazy-pages",
        0.75,
        False,
        ratio(ON_DEMAND, REGION_ON_DEMAND, OWN_DAEMON, SECONDS, [FILLED]),
    ),
    Goal(
        "same: time of a reader of all memory / criu lazy-pages",
        0.5,
        False,
        ratio(ON_DEMAND, REGION_ON_DEMAND, OWN_DAEMON, SECONDS, [WALK]),
    ),
    Goal(
        "same: its faults / criu lazy-pages",
        1 / 16,
        False,
        ratio(ON_DEMAND, REGION_ON_DEMAND, OWN_DAEMON, TIMES, [FAULTS]),
    ),
    Goal(
        "same: a random reader's median fault / criu lazy-pages, per page",
        1.5,
        False,
        ratio(ON_DEMAND, PAGE_ON_DEMAND, OWN_DAEMON, SECONDS, [RANDOM_FAULT]),
    ),
    Goal(
        "same, 256K regions",
        1.5,
        False,
        ratio(ON_DEMAND, REGION_ON_DEMAND, OWN_DAEMON, SECONDS, [RANDOM_FAULT]),
    ),
    Goal("same: its faults after --prefetch / recorded", 0.1, False, _prefetched),
    Goal(
        "page server, time of a dump / CRIU's own, per page",
        1.5,
        False,
        ratio(RECEIVED, PAGE, OWN, SECONDS),
    ),
    Goal("same, --compress none", 1.1, False, ratio(RECEIVED, NONE, OWN, SECONDS)),
    Goal("page server, peak RSS", 64, False, values(RECEIVED, PAGE, MIB), " MiB"),
    Goal(
        "streamed dump, compressed per page / a plain dump",
        1.5,
        False,
        ratio(STREAMS, PAGE_STREAM, NO_STREAM, SECONDS, [DUMP]),
    ),
    Goal(
        "streamed restore, per page / uncompressed",
        1.3,
        False,
        ratio(STREAMS, PAGE_STREAM, PLAIN_STREAM, SECONDS, [RESTORE]),
    ),
    Goal(
        "same, 256K regions",
        1.3,
        False,
        ratio(STREAMS, REGION_STREAM, PLAIN_STREAM, SECONDS, [RESTORE]),
    ),
    Goal(
        "same, a compressed chain of three",
        1.5,
        False,
        ratio(STREAMS, CHAIN, PLAIN_STREAM, SECONDS, [RESTORE]),
    ),
    Goal("streamed restore, peak RSS", 64, False, _stream_rss, " MiB"),
]
