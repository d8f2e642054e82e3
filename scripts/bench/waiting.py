"""Waiting for a helper: for its first answer, and for each one after that."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.bench import Bench
from bench.competitors import ATTACH, BARE, CONNECT
from bench.images import PagesImage
from bench.rows import SECONDS, BenchError
from bench.server import Server, wait_for_pages
from helperd.blocks import PAGE_SIZE

#: Before each turn: a server that is left in peace gets ready for the next client.
PAUSE_SECONDS = 0.05
#: The two cases of the section.
FIRST, WARM = "first answer", "one-page request"


def waiting(bench: Bench) -> None:
    """Let every way to a helper wait for one page after the other, in turns."""
    bench.say("waiting for one page")
    turns, n_requests = (5, 300) if bench.scale.quick else (30, 1000)
    program = bench.programs.latency
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(bench.image("text", "page", PAGE_SIZE))
        commands = {c.name: c.command for c in bench.competitors.values() if c.command}
        server = stack.enter_context(Server(bench.helperd, bench.folder))
        commands[ATTACH] = server.attach

        def spawning(command: Sequence[str]) -> Callable[[], list[float]]:
            return lambda: spawn_and_wait(program, command, image, n_requests)

        ways = {name: spawning(command) for name, command in commands.items()}
        ways[CONNECT] = lambda: wait_for_pages(server, image, n_requests)
        ways[BARE] = lambda: [run_bare_python()]
        for who, runs in in_turns(ways, turns).items():
            bench.results.add("waiting", FIRST, who, SECONDS, [first for first, *_ in runs])
            warm = [second for _, *later in runs for second in later]
            if warm:
                bench.results.add("waiting", WARM, who, SECONDS, warm)


def in_turns(
    ways: dict[str, Callable[[], list[float]]], turns: int
) -> dict[str, list[list[float]]]:
    """Let everybody wait ``turns`` times, in turns, after one time that does not count."""
    found: dict[str, list[list[float]]] = {who: [] for who in ways}
    for turn in range(turns + 1):
        for who, wait in ways.items():
            time.sleep(PAUSE_SECONDS)
            seconds = wait()
            if turn:
                found[who].append(seconds)
    return found


def run_bare_python() -> float:
    """Return the seconds that a Python takes which does nothing, to its exit status."""
    started = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "pass"], os.environ)
    os.waitpid(pid, 0)
    return time.perf_counter() - started


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
