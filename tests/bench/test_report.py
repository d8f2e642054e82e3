"""Tables, and their place in the documentation."""

from __future__ import annotations

import pytest
from bench.goals import GOALS
from bench.report import BEGIN, END, insert, render, table
from bench.rows import GB_PER_S, SECONDS, Results

from tests.bench.test_goals import good_results


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_is_aligned_markdown() -> None:
    assert table(("name", "n"), [("a", "10"), ("bcdef", "2")]) == (
        "| name  |  n |\n| :---- | -: |\n| a     | 10 |\n| bcdef |  2 |\n"
    )


def test_cases_are_rows_and_competitors_columns() -> None:
    results = Results({})
    results.add("throughput", "text page, 64M", "helperd", GB_PER_S, [2.0, 2.5, 3.0, 2.5, 2.5])
    results.add("throughput", "text page, 64M", "C helper", GB_PER_S, [1.0])
    results.add("throughput", "elf page, 64M", "helperd", GB_PER_S, [1.5])
    lines = render(results, []).splitlines()
    start = lines.index("### throughput, GB/s")
    assert cells(lines[start + 2]) == ["case", "C helper", "helperd"]
    assert cells(lines[start + 4]) == ["text page, 64M", "1", "2.5 (2.5..2.5)"]
    assert cells(lines[start + 5]) == ["elf page, 64M", "–", "1.5"]  # noqa: RUF001


def test_seconds_are_shown_as_milliseconds() -> None:
    results = Results({})
    results.add("cold", "text page", "restore, cold", SECONDS, [0.25])
    assert "250" in render(results, [])
    assert "### cold, ms" in render(results, [])


def test_report_says_which_goals_are_not_met() -> None:
    results = good_results()
    assert "**no**" not in render(results, GOALS)
    results.add("waiting", "one-page request", "x", SECONDS, [1.0])
    results.add("sandbox", "elf page", "speed on / off", "times", [0.5])
    assert "**no**" in render(results, GOALS)


def test_insert_replaces_what_stood_there() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(document, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert insert(once, "new\n") == once


def test_insert_needs_the_markers() -> None:
    with pytest.raises(ValueError, match="between"):
        insert("no markers here", "new")
