"""Goals: the worst case decides."""

from __future__ import annotations

import dataclasses

import pytest
from bench.competitors import ATTACH, CONNECT, DAEMON, HELPERD
from bench.goals import Goal, judge
from bench.results import Latency, PeakCase, Results

from tests.bench.samples import (
    MIB_IN_KIB,
    case,
    dedup_case,
    exactly,
    full_results,
    result,
    sandbox_case,
)

SPEED = "speed / C helper, 64 MiB requests"


def goal(results: Results, what: str) -> Goal:
    (found,) = (goal for goal in judge(results) if goal.what == what)
    return found


def test_all_goals_are_judged_and_met() -> None:
    goals = judge(full_results())
    assert len(goals) == 17
    assert [goal.what for goal in goals if not goal.met] == []


def test_nothing_measured_is_no_goal() -> None:
    assert judge(Results({}, {})) == []


def test_the_worst_case_decides_and_is_named() -> None:
    results = full_results()
    results.cases.append(case("elf", "page", HELPERD=1.9))
    found = goal(results, SPEED)
    assert not found.met
    assert found.measured == "1.90 (elf page)"


def test_the_limit_itself_is_enough() -> None:
    results = Results({}, {}, cases=[case(HELPERD=2.0)])
    assert goal(results, SPEED).met


def test_only_real_content_in_the_main_modes_counts() -> None:
    results = full_results()
    results.cases += [case("random", "page", HELPERD=0.1), case("text", "raw", HELPERD=0.1)]
    assert goal(results, SPEED).met


def test_cpu_time_may_be_a_fifth_more() -> None:
    results = full_results()
    slow = case()
    slow.results[HELPERD] = result(2.5, cpu=1.21)
    results.cases.append(slow)
    assert not goal(results, "CPU time / C helper").met


def test_a_missing_competitor_is_not_judged() -> None:
    alone = case()
    results = Results({}, {}, [dataclasses.replace(alone, results={HELPERD: result(9.0)})])
    assert [found.what for found in judge(results)] == ["peak RSS"]


@pytest.mark.parametrize(("peak_mib", "met"), [(64, True), (65, False)])
def test_peak_of_a_very_large_request_counts(peak_mib: int, met: bool) -> None:
    results = full_results()
    results.peaks.append(PeakCase("256K", 4 << 30, peak_mib * MIB_IN_KIB))
    assert goal(results, "peak RSS").met is met


@pytest.mark.parametrize(("way", "seconds"), [(HELPERD, 0.081), (ATTACH, 0.041), (CONNECT, 0.011)])
def test_a_slow_start_is_not_met(way: str, seconds: float) -> None:
    results = full_results()
    results.latencies[way] = Latency(exactly(seconds), exactly(80e-6))
    (missed,) = (found for found in judge(results) if not found.met)
    assert missed.what.startswith("first answer, ")
    assert missed.what.endswith(way)


def test_latency_is_judged_against_the_c_helper() -> None:
    results = full_results()
    results.latencies[DAEMON] = Latency(exactly(0.001), exactly(40e-6))
    assert not goal(results, "one-page request, time / C helper").met


@pytest.mark.parametrize(("excess_mib", "met"), [(32, True), (33, False)])
def test_auto_dedup_keeps_the_peak_flat(excess_mib: int, met: bool) -> None:
    results = Results({}, {}, dedup=[dedup_case(excess_mib=excess_mib)])
    assert goal(results, "--auto-dedup, peak over the larger of image and memory").met is met


@pytest.mark.parametrize(("speed", "met"), [(0.9, True), (0.89, False)])
def test_auto_dedup_costs_little(speed: float, met: bool) -> None:
    results = Results({}, {}, dedup=[dedup_case(speed=speed)])
    assert goal(results, "--auto-dedup, speed / without").met is met


@pytest.mark.parametrize(("ratio", "met"), [(0.98, True), (0.979, False)])
def test_the_sandbox_costs_next_to_nothing(ratio: float, met: bool) -> None:
    found = goal(Results({}, {}, sandbox=[sandbox_case(ratio)]), "--sandbox on, speed / off")
    assert (found.met, found.measured) == (met, f"{ratio:.3f} (text page)")
