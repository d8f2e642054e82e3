"""Medians and quartiles, and the ratio of two of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and quartiles of some measurements, in their own unit."""

    median: float
    low: float
    high: float
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Return the median and the quartiles (inclusive method) of at least one value."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, len(values))


def ratio(value: Summary, reference: Summary) -> float:
    """Return how many times the reference's median ``value``'s median is."""
    return value.median / reference.median
