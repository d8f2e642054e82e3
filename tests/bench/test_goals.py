"""Goals: the worst case decides."""

from __future__ import annotations

import pytest
from bench import archives, received, share, streams, whole
from bench.competitors import ATTACH, BARE, CONNECT, DAEMON, HELPERD, HUGE, INPROCESS, ONE_THREAD
from bench.dedup import DEDUP, EXCESS, PLAIN
from bench.goals import GOALS
from bench.ondemand import (
    FAULTS,
    FILLED,
    OWN,
    PAGE,
    PREFETCHED,
    RANDOM_FAULT,
    RECORDED,
    REGION,
    RUNS,
    SECTION,
    WALK,
)
from bench.restore import MAIN
from bench.rows import CPU_PER_GB, GB_PER_S, MIB, SECONDS, TIMES, Results
from bench.tools import LOOP, PER_PAGE, REGIONS
from bench.waiting import FIRST, WARM

SPEED = "speed / C helper, 64 MiB requests"


def good_results() -> Results:
    """Return results that meet every goal."""
    found = Results({"kernel": "6.18"})
    speeds = {DAEMON: 1.0, HELPERD: 2.5, ONE_THREAD: 1.2, HUGE: 3.5, INPROCESS: 2.8}
    for request in ("64M", "whole"):
        for pattern, mode in MAIN:
            for who, speed in speeds.items():
                case = f"{pattern} {mode}, {request}"
                found.add("throughput", case, who, GB_PER_S, [speed])
                found.add("throughput", case, who, CPU_PER_GB, [1.0])
    found.add("throughput", "text page, 64M", HELPERD, MIB, [20.0])
    for who, seconds in ((DAEMON, 100e-6), (HELPERD, 150e-6)):
        found.add("waiting", WARM, who, SECONDS, [seconds])
    for who, seconds in ((BARE, 0.010), (HELPERD, 0.020), (ATTACH, 0.015), (CONNECT, 0.002)):
        found.add("waiting", FIRST, who, SECONDS, [seconds])
        found.add(whole.SECTION, whole.ONE_PAGE, who, SECONDS, [seconds])
    for size, reference in ((1, 0.002), (4, 0.005), (16, 0.020), (64, 0.080), (256, 0.4)):
        for who, start in ((DAEMON, 0.0), (HELPERD, 0.019), (ATTACH, 0.014), (CONNECT, 0.001)):
            seconds = start + reference * (0.5 if start else 1.0)
            found.add(whole.SECTION, whole.case_of(size), who, SECONDS, [seconds])
    found.add(share.SECTION, "text, page", share.WHO, share.UNIT, [30.0])
    for who, seconds in (("reading alone", 0.4), ("restore, warm", 0.3), ("restore, cold", 0.42)):
        found.add("cold", "text page", who, SECONDS, [seconds])
    for who, seconds, excess in ((PLAIN, 1.0, 400.0), (DEDUP, 1.05, 20.0)):
        found.add("auto-dedup", "text page", who, SECONDS, [seconds])
        found.add("auto-dedup", f"text page, {EXCESS}", who, MIB, [excess])
    found.add("sandbox", "text page", "speed on / off", TIMES, [0.99])
    for who, seconds in ((LOOP, 5.0), (PER_PAGE, 1.0), (REGIONS, 1.1)):
        found.add("offline", "text, compress", who, SECONDS, [seconds])
    for who, seconds in ((archives.ARCHIVE, 0.4), (archives.UNPACKED, 1.0)):
        found.add(archives.SECTION, "compress", who, SECONDS, [seconds])
    for who, seconds in ((OWN, 0.10), (PAGE, 0.11), (REGION, 0.11)):
        found.add(SECTION, RUNS, who, SECONDS, [seconds])
    for case in (FILLED, WALK):
        for who, seconds in ((OWN, 1.0), (REGION, 0.4)):
            found.add(SECTION, case, who, SECONDS, [seconds])
    for who, faults, seconds in ((OWN, 3200.0, 0.04), (PAGE, 200.0, 0.05), (REGION, 190.0, 0.06)):
        found.add(SECTION, FAULTS, who, TIMES, [faults])
        found.add(SECTION, RANDOM_FAULT, who, SECONDS, [seconds])
        if who != OWN:
            found.add(SECTION, RECORDED, who, TIMES, [1900.0])
            found.add(SECTION, PREFETCHED, who, TIMES, [180.0])
    for who, seconds in ((received.OWN, 0.7), (received.NONE, 0.75), (received.PAGE, 1.0)):
        found.add(received.SECTION, "dump", who, SECONDS, [seconds])
    found.add(received.SECTION, "dump, peak RSS", received.PAGE, MIB, [50.0])
    for who, seconds in ((streams.STOCK, 0.3), (streams.PAGE, 0.4)):
        found.add(streams.SECTION, streams.DUMP, who, SECONDS, [seconds])
    for who in (streams.PLAIN, streams.PAGE, streams.REGION, streams.CHAIN):
        found.add(streams.SECTION, streams.RESTORE, who, SECONDS, [0.3])
        found.add(streams.SECTION, streams.PEAK, who, MIB, [50.0])
    return found


def verdict(results: Results, what: str) -> tuple[str, str, str, bool]:
    (found,) = (judged for goal in GOALS if (judged := goal.judge(results)) and judged[0] == what)
    return found


def test_all_goals_are_judged_and_met() -> None:
    judged = [goal.judge(good_results()) for goal in GOALS]
    assert None not in judged
    assert [found[0] for found in judged if found and not found[3]] == []


def test_nothing_measured_is_no_goal() -> None:
    assert {goal.judge(Results({})) for goal in GOALS} == {None}


def test_the_worst_case_decides_and_is_named() -> None:
    results = good_results()
    results.rows = [
        row for row in results.rows if (row.case, row.who) != ("elf page, 64M", HELPERD)
    ]
    results.add("throughput", "elf page, 64M", HELPERD, GB_PER_S, [1.9])
    assert verdict(results, SPEED) == (SPEED, ">= 2", "1.9 (elf page, 64M)", False)


def test_the_limit_itself_is_enough() -> None:
    results = Results({})
    for who, speed in ((DAEMON, 1.0), (HELPERD, 2.0)):
        results.add("throughput", "text page, 64M", who, GB_PER_S, [speed])
    assert verdict(results, SPEED)[3]


@pytest.mark.parametrize("case", ["random page, 64M", "text raw, 64M"])
def test_only_real_content_in_the_main_modes_counts(case: str) -> None:
    results = good_results()
    for who, speed in ((DAEMON, 1.0), (HELPERD, 0.1)):
        results.add("throughput", case, who, GB_PER_S, [speed])
    assert verdict(results, SPEED)[3]


def test_a_cold_image_is_compared_with_the_slower_part() -> None:
    assert verdict(good_results(), "cold image, time / max(read, restore)")[2].startswith("1.05 ")


def test_the_peak_without_dedup_is_no_matter() -> None:
    found = verdict(good_results(), "--auto-dedup, peak over the larger of both")
    assert found[2:] == ("20 MiB (text page, peak over the larger of image and memory)", True)


def test_liblz4_alone_is_a_limit_and_no_goal() -> None:
    results = good_results()
    results.add("offline", "text, compress", "liblz4 alone, per page", SECONDS, [4.9])
    assert verdict(results, "compress, decompress, speed / per-page loop")[3]
