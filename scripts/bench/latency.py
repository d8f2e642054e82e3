"""Waiting for a helper: for its first answer, and for each one after that."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.images import PagesImage
from bench.results import Latency
from bench.stats import summarize

#: Restores memory page by page; returns seconds to the first answer, then for each request.
Wait = Callable[[], list[float]]


def measure_latencies(waits: Mapping[str, Wait], turns: int) -> dict[str, Latency]:
    """Let everybody wait ``turns`` times, in turns, after one time that does not count."""
    found: dict[str, list[list[float]]] = {name: [] for name in waits}
    for turn in range(turns + 1):
        for name, wait in waits.items():
            seconds = wait()
            if turn:
                found[name].append(seconds)
    return {
        name: Latency(
            first=summarize([first for first, *_ in runs]),
            warm=summarize([second for _, *warm in runs for second in warm]),
        )
        for name, runs in found.items()
    }


def spawn_and_wait(
    program: Path, command: Sequence[str], image: PagesImage, n_requests: int
) -> list[float]:
    """Let ``program`` start a helper, and send it ``n_requests`` requests after the first.

    Args:
        program: the compiled latency.c, which plays the restorer and checks every page.
        command: of the helper, without its descriptors.
        image: of one page.
        n_requests: after the first.

    Returns:
        Seconds from before fork to the first answer, then from each request to its answer.

    Raises:
        BenchError: the helper failed or restored a wrong page.
    """
    arguments = [str(program), str(image.path), str(image.payload_bytes)]
    arguments += [str(image.memory.source), str(n_requests), *command]
    result = subprocess.run(arguments, capture_output=True, text=True)
    if result.returncode:
        raise BenchError(f"{' '.join(command)}: {result.stderr.strip()}")
    return [int(line) / 1e9 for line in result.stdout.split()]
