"""Restores of memory: warm, beside other ways to do it; cold; confined; of one huge request."""

from __future__ import annotations

import contextlib
import os
import time

from bench.bench import Bench, ratios
from bench.competitors import HELPERD, make_helper
from bench.measure import measure, verified_runner, warm_memory
from bench.patterns import MIB
from bench.rows import CPU_PER_GB, GB_PER_S, SECONDS, TIMES
from bench.rows import MIB as MIB_UNIT
from helperd.blocks import PAGE_SIZE
from helperd.modes import OFF, ON

#: The cases that goals are about: real content, in the two modes that matter.
MAIN = (("text", "page"), ("text", "256K"), ("elf", "page"), ("elf", "256K"))

_REQUEST_PAGES = 64 * MIB // PAGE_SIZE
_READ_BYTES = 8 << 20


def throughput(bench: Bench) -> None:
    """Let everybody restore every pattern in every mode, in requests of 64 MiB and in one."""
    for pattern in bench.scale.patterns:
        for mode in bench.scale.modes:
            with bench.image(pattern, mode, bench.scale.size) as image:
                kinds = {"64M": _REQUEST_PAGES}
                if (pattern, mode) in MAIN:
                    kinds["whole"] = image.memory.n_bytes // PAGE_SIZE
                for request, max_pages in kinds.items():
                    case = f"{pattern} {mode}, {request}"
                    bench.say(f"restore {case}")
                    everybody = list(bench.competitors.values())
                    samples = measure(image, everybody, max_pages, bench.scale.rounds)
                    gigabytes = image.memory.n_bytes / 1e9
                    for who, (found, peak) in samples.items():
                        add = bench.results.add
                        speeds = [gigabytes / sample.wall for sample in found]
                        add("throughput", case, who, GB_PER_S, speeds)
                        cpu = [sample.cpu / gigabytes for sample in found]
                        add("throughput", case, who, CPU_PER_GB, cpu)
                        if peak is not None:
                            add("throughput", case, who, MIB_UNIT, [peak / 1024])


def peak(bench: Bench) -> None:
    """Send one request of 4 GiB, for the peak of resident memory only."""
    size = (256 if bench.scale.quick else 4096) * MIB
    for mode in ("page", "256K"):
        case = f"sparse {mode}, one request of {size >> 20} MiB"
        bench.say(case)
        helperd = bench.competitors[HELPERD]
        with (
            bench.image("sparse", mode, size) as image,
            verified_runner(helperd, image, size // PAGE_SIZE) as runner,
        ):
            bench.results.add(
                "peak", case, HELPERD, MIB_UNIT, [(runner.peak_rss_kib() or 0) / 1024]
            )


def cold(bench: Bench) -> None:
    """Time reading an image on a disk, restoring it out of the page cache, and both at once."""
    cases = (("text", "page"), ("elf", "256K"), ("random", "256K"))
    for pattern, mode in cases[:1] if bench.scale.quick else cases:
        bench.say(f"{pattern} {mode}, image on a disk")
        with (
            bench.image(pattern, mode, bench.scale.size, on_disk=True) as image,
            verified_runner(bench.competitors[HELPERD], image, _REQUEST_PAGES) as runner,
            image.path.open("rb") as file,
        ):
            os.fsync(file.fileno())  # What has not been written stays in the cache.

            def restore(*, drop: bool) -> float:
                if drop:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                warm_memory(image.memory.n_bytes)
                wall = runner.restore().wall
                runner.drop()
                return wall

            turns = {
                "reading alone": lambda: _read_cold(file.fileno()),
                "restore, warm": lambda: restore(drop=False),
                "restore, cold": lambda: restore(drop=True),
            }
            bench.in_turns("cold", f"{pattern} {mode}", turns)


def _read_cold(fd: int) -> float:
    """Read the whole file as fast as one thread can, none of it in the page cache."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(_READ_BYTES)
    offset = 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    start = time.perf_counter()
    while n := os.preadv(fd, [buffer], offset):
        offset += n
    return time.perf_counter() - start


def sandbox(bench: Bench) -> None:
    """Let a confined and an unconfined helper restore in turns: A B B A A B B A ...

    The difference is far smaller than that between two restores, so each restore is compared
    with its neighbour. And of two helpers that do not differ at all one can be 5% faster as long
    as both live, so they are started afresh again and again.
    """
    starts, rounds = (3, 8) if bench.scale.quick else (12, 16)
    helpers = [
        make_helper(f"--sandbox {mode}", bench.programs, (*bench.helperd, "--sandbox", mode))
        for mode in (OFF, ON)
    ]
    walls: dict[str, list[float]] = {helper.name: [] for helper in helpers}
    bench.say("confined and not")
    with bench.image("text", "page", 128 * MIB) as image:
        for _ in range(starts):
            with contextlib.ExitStack() as stack:
                pair = [
                    (h.name, stack.enter_context(verified_runner(h, image, _REQUEST_PAGES)))
                    for h in helpers
                ]
                for _ in range(rounds):
                    for name, runner in pair:
                        walls[name].append(runner.restore().wall)
                        runner.drop()
                    pair.reverse()
    off, on = walls.values()
    for name, seconds in walls.items():
        bench.results.add("sandbox", "text page", name, SECONDS, seconds)
    bench.results.add("sandbox", "text page", "speed on / off", TIMES, ratios(off, on))
