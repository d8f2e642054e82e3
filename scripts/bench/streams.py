"""Streams: dumps and restores by a real CRIU, with helperd at the other end or with nobody."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from criu.dumper import Criu
from criu.processes import adopt_orphans, wait_until_gone
from criu.workload import Workload

from bench.bench import Bench
from bench.measure import warm_memory
from bench.patterns import MIB
from bench.rows import MIB as MIB_UNIT
from bench.rows import SECONDS, BenchError
from helperd import tools
from helperd.blocks import pages_to_bytes
from helperd.images.directory import PARENT_NAME, ImageDirectory
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.images.pagemap import PE_PARENT, PE_PRESENT, PagemapEntry
from helperd.images.pagemap_writer import write_pagemap

SECTION = "streams"
#: What is measured: a dump until its images are in effect, a restore until CRIU is done.
DUMP, RESTORE, PEAK = "dump", "restore", "restore, peak"
#: Images in a directory; streams as they are; streams of compressed images.
STOCK, PLAIN, PAGE, REGION, CHAIN = (
    "criu, no stream",
    "helperd, uncompressed",
    "helperd, per page",
    "helperd, 256K regions",
    "helperd, compressed chain of 3",
)
#: Per page, too, with LZ4 as fast as libblosc lets it be.
FAST = "helperd, --acceleration 9"
_DUMP_WORDS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    PAGE: ("--compress", "page"),
    FAST: ("--compress", "page", "--acceleration", "9"),
}
_REGION_BYTES = 256 << 10
#: Of the levels of a chain: how much of the memory each holds, and the pages of its runs.
_SHARES, _RUNS = (1.0, 0.2, 0.1), (4, 16, 64, 256)
_WARM_BYTES = 1024 * MIB


def streams(bench: Bench) -> None:
    """Dump and restore a process in turns, through each kind of stream."""
    assert bench.criu is not None
    adopt_orphans()
    criu = Criu(bench.criu)
    eighth = bench.scale.size // 8 // MIB
    memory = ("memory", f"text={5 * eighth}", f"random={2 * eighth}", f"zero={eighth}")
    bench.say(f"{SECTION}: {8 * eighth}M of text, random and zero pages")
    folder = bench.folder / "streams"
    folder.mkdir()
    dumps: dict[str, list[float]] = {who: [] for who in (STOCK, *_DUMP_WORDS)}
    with Workload(folder / "workload", *memory) as process:
        for turn in range(bench.scale.rounds + 1):
            for who, values in dumps.items():
                seconds = _dump(bench, criu, process.pid, folder / "dump", who)
                if turn:
                    values.append(seconds)
        sources = _make_images(criu, process, folder)
        restores: dict[str, list[float]] = {who: [] for who in sources}
        peaks: dict[str, list[float]] = {who: [] for who in sources if who != STOCK}
        for turn in range(bench.scale.rounds + 1):
            for who, images in sources.items():
                warm_memory(_WARM_BYTES)
                seconds, peak = _restore(bench, criu, images, folder / "sockets", who)
                if turn:
                    restores[who].append(seconds)
                    if who != STOCK:
                        peaks[who].append(peak)
                else:
                    process.check()
                process.kill()
    for case, unit, found in (
        (DUMP, SECONDS, dumps),
        (RESTORE, SECONDS, restores),
        (PEAK, MIB_UNIT, peaks),
    ):
        for who, values in found.items():
            bench.results.add(SECTION, case, who, unit, values)
    shutil.rmtree(folder)


class _Streamer:
    """``helperd stream``, listening."""

    def __init__(self, bench: Bench, *words: str | Path) -> None:
        progress, told = os.pipe()
        command = [*bench.helperd, "stream", "-p", str(told), *map(str, words)]
        # With a preexec_fn it is forked: of a vfork it would have our own peak of memory.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[told], preexec_fn=os.getpid
        )
        os.close(told)
        self._progress = os.fdopen(progress)
        if self._progress.readline().strip() != "socket-init":
            raise BenchError(f"{command!r} does not start")

    def end(self) -> float:
        """Wait for its end; return its peak of resident memory in MiB."""
        with self._progress:
            _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise BenchError(f"helperd stream has ended with {self._process.returncode}")
        return usage.ru_maxrss / 1024


def _dump(bench: Bench, criu: Criu, pid: int, images: Path, who: str) -> float:
    """Dump a process, which lives on; return the seconds until its images are in effect."""
    images.mkdir()
    if who == STOCK:
        start = time.perf_counter()
        criu.dump(pid, images, "--leave-running")
    else:
        sockets = images.with_name("sockets")
        words: tuple[str | Path, ...] = (
            "-D",
            sockets,
            "--to",
            images,
            *_DUMP_WORDS[who],
            "capture",
        )
        streamer = _Streamer(bench, *words)
        start = time.perf_counter()
        criu.dump(pid, sockets, "--stream", "--leave-running")
        streamer.end()
    seconds = time.perf_counter() - start
    shutil.rmtree(images)
    return seconds


def _restore(
    bench: Bench, criu: Criu, images: Path, sockets: Path, who: str
) -> tuple[float, float]:
    """Restore; return the seconds that CRIU takes, and helperd's peak of memory in MiB."""
    if who == STOCK:
        start = time.perf_counter()
        criu.restore(images)
        return time.perf_counter() - start, 0.0
    streamer = _Streamer(bench, "-D", sockets, "--from", images, "serve")
    start = time.perf_counter()
    criu.restore(sockets, "--stream")
    seconds = time.perf_counter() - start
    return seconds, streamer.end()


def _make_images(criu: Criu, process: Workload, folder: Path) -> dict[str, Path]:
    """Dump the process, which ends; return the images for each competitor."""
    plain, chain = folder / "plain", folder / "chain"
    criu.dump(process.pid, plain)
    wait_until_gone(process.pid)
    page, region = folder / "page", folder / "region"
    tools.compress(str(plain), output=str(page))
    tools.compress(str(plain), output=str(region), region_bytes=_REGION_BYTES)
    _split(plain, chain)
    for level in range(len(_SHARES)):
        tools.compress(str(chain / str(level)), in_place=True, region_bytes=_REGION_BYTES)
    last = chain / str(len(_SHARES) - 1)
    return {STOCK: plain, PLAIN: plain, PAGE: page, REGION: region, CHAIN: last}


def _split(plain: Path, chain: Path) -> None:
    """Make a chain with the same memory of uncompressed images: pre-dumps cannot be had anywhere.

    Each level holds some runs of pages and refers to its parent for the others.
    """
    rnd = random.Random(1)
    images = ImageDirectory(str(plain))
    chain.mkdir()
    for level, share in enumerate(_SHARES):
        folder = chain / str(level)
        folder.mkdir()
        if level:
            (folder / PARENT_NAME).symlink_to(f"../{level - 1}")
        is_last = level == len(_SHARES) - 1
        for path in plain.glob("*.img"):
            if path.name == INVENTORY_NAME or (is_last and "page" not in path.name):
                shutil.copy(path, folder)
        for name in images.pagemap_names:
            pagemap = images.pagemap_by_name(name)
            runs = [run for entry in pagemap.entries for run in _runs(entry, share, rnd)]
            with (
                open(plain / pagemap.pages_name, "rb") as source,
                open(folder / pagemap.pages_name, "wb") as pages,
                open(folder / name, "wb") as stream,
            ):
                for run in runs:
                    if run.present:
                        source.seek(run.offset)
                        pages.write(source.read(run.payload_bytes))
                write_pagemap(stream, pagemap.head, runs, Schema.NONE)


def _runs(entry: PagemapEntry, share: float, rnd: random.Random) -> list[PagemapEntry]:
    found = []
    page = 0
    while page < entry.nr_pages:
        longest = entry.nr_pages - page
        end = page + (longest if share == 1 else min(rnd.choice(_RUNS), longest))
        flags = PE_PRESENT if rnd.random() < share else PE_PARENT
        part = entry.part(page, end)
        found.append(replace(part, flags=flags))
        page = end
    assert sum(run.nr_pages for run in found) == entry.nr_pages
    assert pages_to_bytes(entry.nr_pages) == entry.payload_bytes
    return found
