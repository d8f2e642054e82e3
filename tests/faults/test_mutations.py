"""20,000 mutated requests and images: right bytes, or a clean error and nothing else."""

from __future__ import annotations

import gc
import os
import random
import resource
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.abuse import Bench, bench, mutate, samples

MUTATIONS = 20_000
BATCHES = 10
COLLECTED = 200
GROWTH_KIB = 32 << 10


@pytest.fixture(scope="module")
def abused() -> Iterator[Bench]:
    """Return a bench for all tests here."""
    with bench() as one:
        yield one


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_samples_are_right(abused: Bench) -> None:
    """The oracle agrees with the engine before anything is wrong."""
    for stream, image in samples(abused):
        assert abused.check(stream, image) == "ok"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutated(abused: Bench, batch: int) -> None:
    choose = random.Random(batch).randrange
    originals = samples(abused)
    for stream, image in originals:
        abused.check(stream, image)
    fds, peak = open_fds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    for number in range(MUTATIONS // BATCHES):
        if number % COLLECTED == 0:
            # A failure and the frames that it has left refer to each other; a helper has but one.
            gc.collect()
        stream, image = originals[choose(len(originals))]
        what = choose(3)
        if what != 1:
            stream = mutate(stream, choose)
        if what != 0:
            image = mutate(image, choose)
        outcomes[abused.check(stream, image)] += 1
    # They must not all stop at the first check.
    assert {"ok", "MalformedRequest", "TruncatedRequest", "CorruptBlock", "ShortImage"} <= set(
        outcomes
    )
    assert "InternalError" not in outcomes
    assert open_fds() <= fds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GROWTH_KIB


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutations_that_shrink(abused: Bench, data: st.DataObject) -> None:
    """The same with hypothesis, which finds the smallest mutation that goes wrong."""

    def choose(n: int) -> int:
        return data.draw(st.integers(0, n - 1))

    originals = samples(abused)
    stream, image = originals[choose(len(originals))]
    if choose(2):
        stream = mutate(stream, choose)
    if choose(2):
        image = mutate(image, choose)
    abused.check(stream, image)
