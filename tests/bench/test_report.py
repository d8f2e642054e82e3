"""Tables, and their place in the documentation."""

from __future__ import annotations

import pytest
from bench.goals import judge
from bench.report import BEGIN, END, insert, render, table

from tests.bench.samples import full_results


def test_table_is_aligned_markdown() -> None:
    assert table(("name", "n"), [("a", "10"), ("bcdef", "2")]) == (
        "| name  |  n |\n| :---- | -: |\n| a     | 10 |\n| bcdef |  2 |\n"
    )


def test_report_shows_ratios_to_the_c_helper() -> None:
    lines = render(full_results(), []).splitlines()
    start = lines.index("### Times as fast as the C helper, requests of 64 MiB")
    header, row = lines[start + 2], lines[start + 4]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "memory, mode",
        "helperd",
        "helperd 1 thread",
        "helperd huge",
        "in-process",
    ]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "text page",
        "2.50",
        "1.20",
        "3.50",
        "2.80",
    ]


def test_report_says_which_goals_are_not_met() -> None:
    results = full_results()
    del results.cold[:], results.peaks[:]
    results.latencies.clear()
    assert "**no**" not in render(results, judge(results))
    results.cases[0].results["helperd"] = results.cases[0].results["C helper"]
    assert "**no**" in render(results, judge(results))


def test_report_shows_the_ratio_of_pairs() -> None:
    lines = render(full_results(), []).splitlines()
    row = lines[lines.index("### What --sandbox on costs") + 4]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "text page",
        "1",
        "1.50 (1.50..1.50)",
        "1.20 (1.20..1.20)",
        "0.990 (0.990..0.990)",
    ]


def test_a_section_without_measurements_is_left_out() -> None:
    results = full_results()
    results.latencies.clear()
    results.sandbox.clear()
    report = render(results, [])
    assert "Waiting for one page" not in report
    assert "--sandbox" not in report


def test_insert_replaces_what_stood_there() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(document, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert insert(once, "new\n") == once


def test_insert_needs_the_markers() -> None:
    with pytest.raises(ValueError, match="between"):
        insert("no markers here", "new")
