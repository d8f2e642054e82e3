"""Rows: medians and quartiles, and the CSV that a run leaves."""

from __future__ import annotations

import pytest
from bench.rows import SECONDS, Results, Row, in_order, read_csv


def results(*values: float) -> Results:
    found = Results({})
    found.add("cold", "text page", "helperd", SECONDS, values)
    return found


def test_one_value_is_its_own_quartiles() -> None:
    assert results(3.0).rows == [Row("cold", "text page", "helperd", SECONDS, 3.0, 3.0, 3.0, 1)]


def test_quartiles_of_an_odd_number_in_any_order() -> None:
    (row,) = results(5.0, 1.0, 4.0, 2.0, 3.0).rows
    assert (row.low, row.median, row.high, row.n) == (2.0, 3.0, 4.0, 5)


def test_an_outlier_does_not_move_the_median() -> None:
    assert results(1.0, 1.0, 1.0, 1.0, 100.0).value("cold", "text page", "helperd", SECONDS) == 1.0


def test_what_was_not_measured_has_no_value() -> None:
    assert results(1.0).value("cold", "text page", "somebody else", SECONDS) is None


def test_the_csv_holds_everything() -> None:
    found = results(1.25, 2.5, 3.75)
    found.add("offline", 'a "case", with comma', "loop", SECONDS, [0.5])
    assert read_csv(found.to_csv()) == found.rows


@pytest.mark.parametrize("text", ["", "section,case\n", "{}"])
def test_something_else_is_no_table_of_results(text: str) -> None:
    with pytest.raises(ValueError, match="no table of results"):
        read_csv(text)


def test_names_keep_their_order() -> None:
    assert in_order(["x", "b", "y", "a", "b"], ("a", "b")) == ["a", "b", "x", "y"]
