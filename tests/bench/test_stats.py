"""Medians, quartiles, ratios."""

from __future__ import annotations

from bench.stats import Summary, ratio, summarize


def test_one_value_is_its_own_quartiles() -> None:
    assert summarize([3.0]) == Summary(3.0, 3.0, 3.0, 1)


def test_quartiles_of_an_odd_number_in_any_order() -> None:
    assert summarize([5.0, 1.0, 4.0, 2.0, 3.0]) == Summary(3.0, 2.0, 4.0, 5)


def test_an_outlier_does_not_move_the_median() -> None:
    assert summarize([1.0, 1.0, 1.0, 1.0, 100.0]).median == 1.0


def test_ratio_is_of_the_medians() -> None:
    assert ratio(Summary(6.0, 1.0, 9.0, 5), Summary(3.0, 2.0, 4.0, 5)) == 2.0
