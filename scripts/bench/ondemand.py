"""Restores on demand: CRIU's own daemon on its images, helperd's on compressed ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from criu.dumper import Criu
from criu.processes import adopt_orphans, wait_for
from criu.workload import Workload

from bench.bench import Bench
from bench.patterns import MIB
from bench.rows import SECONDS as SECONDS_UNIT
from bench.rows import TIMES, BenchError
from helperd import tools

SECTION = "on-demand"
OWN, PAGE, REGION = "criu lazy-pages", "helperd, per page", "helperd, 256K regions"
#: What is measured: from the daemon's start until the process runs; from then until all is there;
#: a reader of all memory in order; the ninth decile of a random reader's pages, and the median of
#: those that were not there yet.
RUNS, FILLED, WALK, RANDOM = "runs", "filled", "walk", "random page"
RANDOM_FAULT = "random page, median fault"
FAULTS = "walk, faults"
#: The faults of the random reader, while they are recorded; and of the same reader after that.
RECORDED, PREFETCHED = "random, faults recorded", "random, faults with --prefetch"
_RANDOM_READS = 2000
_NANOSECOND = 1e-9


@dataclass(frozen=True)
class _Daemon:
    """Who restores, from where.

    Attributes:
        images: the directory.
        command: what starts it; None for CRIU's own.
    """

    images: Path
    command: tuple[str, ...] | None


def on_demand(bench: Bench) -> None:
    """Let a process be restored in turns by each daemon, and use its memory in several ways."""
    assert bench.criu is not None
    adopt_orphans()
    criu = Criu(bench.criu)
    eighth = bench.scale.size // 8 // MIB
    memory = ("memory", f"text={5 * eighth}", f"random={2 * eighth}", f"zero={eighth}")
    bench.say(f"{SECTION}: {8 * eighth}M of text, random and zero pages")
    folder = bench.folder / "on-demand"
    folder.mkdir()
    found: dict[tuple[str, str, str], list[float]] = {}
    with Workload(folder / "workload", *memory) as process:
        daemons = _make_images(bench, criu, process, folder)
        for turn in range(bench.scale.rounds + 1):
            for who, daemon in daemons.items():
                for case, unit, value in _measure(criu, process, daemon, folder):
                    if turn:
                        found.setdefault((case, who, unit), []).append(value)
    for (case, who, unit), values in found.items():
        bench.results.add(SECTION, case, who, unit, values)
    shutil.rmtree(folder)


def _make_images(bench: Bench, criu: Criu, process: Workload, folder: Path) -> dict[str, _Daemon]:
    """Dump the process, and compress copies of its images."""
    plain = folder / "plain"
    criu.dump(process.pid, plain)
    ours = (*bench.helperd, "lazy-pages")
    daemons = {OWN: _Daemon(plain, None)}
    for who, region_bytes in ((PAGE, None), (REGION, 256 << 10)):
        images = folder / ("page" if region_bytes is None else "region")
        tools.compress(str(plain), output=str(images), region_bytes=region_bytes)
        daemons[who] = _Daemon(images, ours)
    return daemons


def _measure(
    criu: Criu, process: Workload, daemon: _Daemon, folder: Path
) -> Iterator[tuple[str, str, float]]:
    """Restore once for each use of the memory; yield (case, unit, value)."""
    with _restored(criu, process, daemon, folder) as (runs, wait):
        yield RUNS, SECONDS_UNIT, runs
        yield FILLED, SECONDS_UNIT, wait()
        process.check()
    with _restored(criu, process, daemon, folder) as (_, wait):
        before = _faults(process.pid)
        _, _, nanoseconds = process.ask("walk").split()
        yield WALK, SECONDS_UNIT, int(nanoseconds) * _NANOSECOND
        yield FAULTS, TIMES, _faults(process.pid) - before
        wait()
    with _restored(criu, process, daemon, folder) as (_, wait):
        words = process.ask(f"random 1 {_RANDOM_READS}").split()
        figures = dict(zip(words[2::2], words[3::2], strict=True))
        yield RANDOM, SECONDS_UNIT, int(figures["p90"]) * _NANOSECOND
        yield RANDOM_FAULT, SECONDS_UNIT, int(figures["fault-median"]) * _NANOSECOND
        wait()
    if daemon.command is None:
        return
    for case, option in ((RECORDED, "--record"), (PREFETCHED, "--prefetch")):
        # Recorded without the fill, for what that has brought is never asked for.
        fill = ("--fill", "never" if case == RECORDED else "now")
        command = (*daemon.command, *fill, option, str(folder / "working-set"))
        with _restored(criu, process, _Daemon(daemon.images, command), folder) as (_, wait):
            before = _faults(process.pid)
            process.ask(f"random 1 {_RANDOM_READS}")
            yield case, TIMES, _faults(process.pid) - before
            if case == PREFETCHED:
                wait()


@contextlib.contextmanager
def _restored(
    criu: Criu, process: Workload, daemon: _Daemon, folder: Path
) -> Iterator[tuple[float, Callable[[], float]]]:
    """Restore for the block; give the seconds until it ran, and what waits for the last page.

    That returns the seconds from the moment when the process ran.
    """
    start = time.perf_counter()
    if daemon.command is None:
        own = _start_own(criu, daemon.images)
        criu.restore(daemon.images, "--lazy-pages")
    else:
        own = _start_ours(criu, daemon, folder)
    running = time.perf_counter()

    def wait() -> float:
        status = own.wait()
        if status:
            raise BenchError(f"{own.args!r} has ended with {status}")
        return time.perf_counter() - running

    try:
        yield running - start, wait
    finally:
        process.kill()
        own.wait()


def _start_own(criu: Criu, images: Path) -> subprocess.Popen[bytes]:
    ready, told = os.pipe()
    command = [str(criu.program), "lazy-pages", "-D", str(images), "--status-fd", str(told)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[told])
    os.close(told)
    if os.read(ready, 1) != b"\0":
        raise BenchError("criu lazy-pages does not start")
    os.close(ready)
    return process


def _start_ours(criu: Criu, daemon: _Daemon, folder: Path) -> subprocess.Popen[bytes]:
    assert daemon.command is not None
    runs = folder / "runs"
    runs.unlink(missing_ok=True)
    restore = criu.restore_command(Path("{}"), "--lazy-pages")
    script = f'"$@" && : > {runs}'
    command = [*daemon.command, "-D", str(daemon.images), "--", "sh", "-c", script, "sh", *restore]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    wait_for(lambda: runs.exists() or process.poll() is not None, "the restore")
    if not runs.exists():
        raise BenchError(f"helperd lazy-pages has ended with {process.returncode}")
    return process


def _faults(pid: int) -> int:
    """Return how often a process had to wait for a page; those that came unasked cost nothing."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]) + int(fields[9])
