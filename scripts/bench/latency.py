"""Waiting for a helper: for its first answer, and for each one after that."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.competitors import Competitor
from bench.errors import BenchError
from bench.images import make_image
from bench.patterns import make_memory
from bench.results import Latency
from bench.stats import summarize
from helperd.blocks import PAGE_SIZE


def measure_latencies(
    program: Path, helpers: Sequence[Competitor], folder: Path, *, spawns: int, requests: int
) -> dict[str, Latency]:
    """Start each helper ``spawns`` times, in turns, and send it ``requests`` one-page requests.

    Args:
        program: the compiled latency.c, which plays the restorer and checks every page.
        helpers: competitors that have a command.
        folder: for a small image.
        spawns: of each helper, after one that does not count.
        requests: to each helper that was started.

    Raises:
        BenchError: a helper failed or restored a wrong page.
    """
    memory = make_memory("text", PAGE_SIZE, folder)
    image = make_image(memory, "page", folder / "latency.img")
    first: dict[str, list[float]] = {helper.name: [] for helper in helpers}
    warm: dict[str, list[float]] = {helper.name: [] for helper in helpers}
    for turn in range(spawns + 1):
        for helper in helpers:
            command = [str(program), str(image.path), str(image.payload_bytes)]
            command += [str(memory.source), str(requests), *helper.command]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise BenchError(f"{helper.name}: {result.stderr.strip()}")
            seconds = [int(line) / 1e9 for line in result.stdout.split()]
            if turn:
                first[helper.name].append(seconds[0])
                warm[helper.name] += seconds[1:]
    return {
        helper.name: Latency(summarize(first[helper.name]), summarize(warm[helper.name]))
        for helper in helpers
    }
