"""Whole restores: where the curves cross."""

from __future__ import annotations

import pytest
from bench.competitors import DAEMON, HELPERD
from bench.rows import SECONDS, Results
from bench.share import CONTENTS, make_chunk, measure_share
from bench.whole import SECTION, case_of, crossing, curve

from helperd.blocks import PAGE_SIZE
from helperd.codec.chunk import CHUNK_PAGES


def results(own: dict[int, float], reference: dict[int, float]) -> Results:
    found = Results({})
    for who, seconds in ((HELPERD, own), (DAEMON, reference)):
        for size, value in seconds.items():
            found.add(SECTION, case_of(size), who, SECONDS, [value])
    return found


def test_crossing_lies_where_both_take_as_long() -> None:
    """Between 4 and 16 MiB the ratio goes from 2 to 1/2: in the middle of the logarithms."""
    found = results({1: 4.0, 4: 4.0, 16: 4.0}, {1: 1.0, 4: 2.0, 16: 8.0})
    assert curve(found, HELPERD) == ([1, 4, 16], [4.0, 4.0, 4.0])
    assert crossing(found, HELPERD) == pytest.approx(8)


def test_the_last_crossing_counts() -> None:
    found = results({1: 1.0, 4: 4.0, 16: 1.0}, {1: 2.0, 4: 2.0, 16: 2.0})
    assert crossing(found, HELPERD) == pytest.approx(8)


def test_never_and_always() -> None:
    slow, fast = {1: 2.0, 4: 3.0}, {1: 1.0, 4: 1.0}
    assert crossing(results(slow, fast), HELPERD) is None
    assert crossing(results(fast, slow), HELPERD) == 1
    assert crossing(results({}, fast), HELPERD) is None


@pytest.mark.parametrize("block_pages", [0, 1, 16])
@pytest.mark.parametrize("content", CONTENTS)
def test_share_is_measured_of_what_it_says(content: str, block_pages: int) -> None:
    pages = [CONTENTS[content](number) for number in range(CHUNK_PAGES)]
    assert {len(page) for page in pages} == {PAGE_SIZE}
    chunk, payload = make_chunk(pages, block_pages)
    assert (chunk.n_pages, chunk.payload) == (CHUNK_PAGES, len(payload))
    (seconds,) = measure_share(pages, block_pages, 1, repeats=1)
    assert seconds > 0
