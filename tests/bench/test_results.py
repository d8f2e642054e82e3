"""The JSON that a run leaves."""

from __future__ import annotations

import json

import pytest
from bench.results import Results

from tests.bench.samples import full_results


def test_json_holds_everything() -> None:
    results = full_results()
    assert Results.from_json(results.to_json()) == results


def test_shape_of_the_json() -> None:
    data = json.loads(full_results().to_json())
    assert data["format"] == 1
    first = data["cases"][0]
    assert (first["pattern"], first["mode"], first["request"]) == ("text", "page", "64M")
    assert first["results"]["helperd"]["throughput"] == {
        "median": 2.5,
        "low": 2.5,
        "high": 2.5,
        "n": 1,
    }
    assert first["results"]["in-process"]["peak_rss_kib"] is None


def test_results_from_before_a_section_can_be_read() -> None:
    data = json.loads(full_results().to_json())
    del data["sandbox"]
    results = Results.from_json(json.dumps(data))
    assert results.sandbox == []
    assert results.cases == full_results().cases


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        Results.from_json('{"format": 99}')


def test_cold_overhead_is_against_the_slower_part() -> None:
    (case,) = full_results().cold
    assert case.overhead == pytest.approx(0.42 / 0.4)
