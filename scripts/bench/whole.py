"""Whole restores: from before there is a helper until nothing of it is left.

Of a small process a restore is mostly the start of its helper, of a large one mostly the work. In
between lies the size from which on helperd is the quicker one.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.bench import Bench
from bench.competitors import ATTACH, BARE, CONNECT, DAEMON, HELPERD
from bench.images import PagesImage
from bench.patterns import MIB
from bench.rows import SECONDS, BenchError, Results
from bench.server import Server
from bench.waiting import PAUSE_SECONDS, run_bare_python
from helperd.blocks import PAGE_SIZE

SECTION = "whole"
#: The smallest process.
ONE_PAGE = "one page"
#: Who restores, the C helper first.
WAYS = (DAEMON, HELPERD, ATTACH, CONNECT)
_SIZES = (1, 4, 16, 64, 256)
_REQUEST_PAGES = (64 * MIB) // PAGE_SIZE
#: Up to this many MiB the start is most of it, and varies most.
_SMALL = 16


def whole(bench: Bench) -> None:
    """Restore processes of several sizes, in turns."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(bench.helperd, bench.folder))
        with bench.image("text", "page", PAGE_SIZE) as image:
            ways = _ways(bench, server, image) | {BARE: run_bare_python}
            bench.in_turns(SECTION, ONE_PAGE, ways, rounds=4 * bench.scale.rounds + 1)
        for size in _SIZES[:-1] if bench.scale.quick else _SIZES:
            bench.say(f"whole restores of {size} MiB")
            rounds = bench.scale.rounds * (4 if size <= _SMALL else 2) + 1
            with bench.image("text", "page", size * MIB) as image:
                bench.in_turns(SECTION, case_of(size), _ways(bench, server, image), rounds=rounds)


def case_of(size: int) -> str:
    """Return the case of a process of ``size`` MiB."""
    return f"{size} MiB"


def curve(results: Results, who: str) -> tuple[list[int], list[float]]:
    """Return the sizes in MiB that were measured, and the median seconds of each."""
    found = ((size, results.value(SECTION, case_of(size), who, SECONDS)) for size in _SIZES)
    measured = [(size, seconds) for size, seconds in found if seconds is not None]
    return [size for size, _ in measured], [seconds for _, seconds in measured]


def crossing(results: Results, who: str) -> float | None:
    """Return the MiB from which on ``who`` is quicker than the C helper; None if never.

    Between two measured sizes the ratio is taken for a straight line over the size's logarithm.
    """
    sizes, seconds = curve(results, who)
    _, references = curve(results, DAEMON)
    if not sizes or len(references) != len(sizes):
        return None
    logs = [math.log(own / other) for own, other in zip(seconds, references, strict=True)]
    slower = [index for index, log in enumerate(logs) if log > 0]
    if not slower:
        return float(sizes[0])
    last = slower[-1]
    if last + 1 == len(sizes):
        return None
    part = logs[last] / (logs[last] - logs[last + 1])
    return math.exp(math.log(sizes[last]) * (1 - part) + math.log(sizes[last + 1]) * part)


def live_once(program: Path, image: PagesImage, requests: Path, way: Sequence[str]) -> float:
    """Have ``program``, the compiled life.c, restored once; return the seconds it took.

    Args:
        program: which compares every byte.
        image: to restore from.
        requests: a file of the requests that restore all of it.
        way: "spawn" and a command line, or "connect" and a socket.

    Raises:
        BenchError: the helper failed or restored wrong bytes.
    """
    command = [program, image.path, requests, image.memory.source, *way]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode:
        raise BenchError(f"{' '.join(way)}: {result.stderr.strip()}")
    return int(result.stdout) / 1e9


def write_requests(image: PagesImage, path: Path) -> Path:
    """Write the requests that restore ``image`` into a file, for :func:`live_once`."""
    requests = image.requests(1, _REQUEST_PAGES)
    path.write_bytes(b"".join(request.to_bytes() for request in requests))
    return path


def _ways(bench: Bench, server: Server, image: PagesImage) -> dict[str, Callable[[], float]]:
    program = bench.programs.life
    requests = write_requests(image, bench.folder / "requests")
    ways = {
        DAEMON: ("spawn", str(bench.programs.daemon)),
        HELPERD: ("spawn", *bench.helperd),
        ATTACH: ("spawn", *server.attach),
        CONNECT: ("connect", server.path),
    }

    def living(way: Sequence[str]) -> Callable[[], float]:
        def live() -> float:
            time.sleep(PAUSE_SECONDS)
            return live_once(program, image, requests, way)

        return live

    return {who: living(way) for who, way in ways.items()}
