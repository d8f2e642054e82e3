"""What the worker's confinement costs: two helpers that differ in ``--sandbox`` only."""

from __future__ import annotations

import contextlib

from bench.competitors import Competitor
from bench.images import PagesImage
from bench.measure import verified_runner
from bench.results import SandboxCase
from bench.stats import summarize


def measure_sandbox(
    image: PagesImage,
    off: Competitor,
    on: Competitor,
    max_pages: int,
    *,
    starts: int,
    rounds: int,
) -> SandboxCase:
    """Let two helpers restore ``image`` in turns: A B B A A B B A ...

    The difference is far smaller than that between two restores, so each restore is compared
    with its neighbour. And of two helpers that do not differ at all one can be 5% faster as long
    as both live, so they are started afresh again and again.

    Args:
        image: to restore.
        off: the unconfined helper.
        on: the confined one.
        max_pages: most pages of a request.
        starts: of each helper.
        rounds: restores of each helper that was started.

    Raises:
        BenchError: what was restored is not what it should be.
    """
    walls: dict[str, list[float]] = {off.name: [], on.name: []}
    for _ in range(starts):
        with contextlib.ExitStack() as stack:
            pair = [
                (helper.name, stack.enter_context(verified_runner(helper, image, max_pages)))
                for helper in (off, on)
            ]
            for _ in range(rounds):
                for name, runner in pair:
                    walls[name].append(runner.restore().wall)
                    runner.drop()
                pair.reverse()
    gigabytes = image.memory.n_bytes / 1e9
    neighbours = zip(walls[off.name], walls[on.name], strict=True)
    return SandboxCase(
        pattern=image.memory.name,
        mode=image.mode,
        off=summarize([gigabytes / wall for wall in walls[off.name]]),
        on=summarize([gigabytes / wall for wall in walls[on.name]]),
        ratio=summarize([wall_off / wall_on for wall_off, wall_on in neighbours]),
    )
