"""helperd compress and decompress beside a plain loop over pages, in turns.

The loop is what ``crit compress`` and ``crit decompress`` do, one page at a time with python-lz4;
it writes no pagemaps and checks nothing, which is in its favour. The limit of both is what liblz4
alone takes for the pages, in C, on all CPUs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import lz4.block

from bench.errors import BenchError
from bench.measure import warm_memory
from bench.patterns import make_memory
from bench.results import ToolCase
from bench.stats import summarize
from helperd import blocks, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.directory import pagemap_name
from helperd.images.inventory import INVENTORY_NAME, Inventory, Schema
from helperd.images.pagemap import PagemapEntry, pages_name, write_pagemap
from helperd.images.pb import inventory_pb2, pagemap_pb2

LOOP, PER_PAGE, REGIONS = "per-page loop", "helperd", "helperd --region 256K"
LIMIT = "liblz4 alone, per page"
_PID = 7
_PAGES = pages_name(1)
_ZERO_PAGE = bytes(PAGE_SIZE)


def measure_tools(
    pattern: str, size_bytes: int, folder: Path, rounds: int, liblz4alone: Path
) -> list[ToolCase]:
    """Return a case for each command and who does it.

    Args:
        pattern: a name of :mod:`bench.patterns`.
        size_bytes: of memory.
        folder: on a tmpfs.
        rounds: how often each is measured, in turns.
        liblz4alone: the compiled program of that name.

    Raises:
        BenchError: what was decompressed is not what was compressed.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="tools-") as scratch:
        return _measure(pattern, size_bytes, Path(scratch), rounds, liblz4alone)


def _measure(
    pattern: str, size_bytes: int, folder: Path, rounds: int, liblz4alone: Path
) -> list[ToolCase]:
    plain = _checkpoint(pattern, size_bytes, folder)
    pages = plain / _PAGES
    memory = pages.read_bytes()
    loop = _Loop(folder)
    region, perpage, back = folder / "region", folder / "perpage", folder / "back"

    def alone(command: str) -> Callable[[], float]:
        arguments = [str(liblz4alone), command, str(pages), str(len(os.sched_getaffinity(0)))]
        return lambda: int(subprocess.check_output(arguments)) / 1e9

    # What each takes away before its turn, which does not count, and what returns its seconds.
    turns: dict[tuple[str, str], tuple[Path, Callable[[], float]]] = {
        ("compress", LOOP): (loop.packed, _timed(lambda: loop.compress(pages))),
        ("compress", PER_PAGE): (
            perpage,
            _timed(lambda: tools.compress(str(plain), output=str(perpage))),
        ),
        ("compress", REGIONS): (
            region,
            _timed(lambda: tools.compress(str(plain), output=str(region), region_bytes=256 << 10)),
        ),
        ("compress", LIMIT): (back, alone("compress")),
        ("decompress", LOOP): (loop.expanded, _timed(loop.decompress)),
        ("decompress", PER_PAGE): (
            back,
            _timed(lambda: tools.decompress(str(perpage), output=str(back))),
        ),
        ("decompress", REGIONS): (
            back,
            _timed(lambda: tools.decompress(str(region), output=str(back))),
        ),
        ("decompress", LIMIT): (back, alone("decompress")),
    }
    seconds: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
    for number in range(rounds + 1):
        for turn, (output, run) in turns.items():
            _remove(output)
            warm_memory(2 * size_bytes)
            elapsed = run()
            # The first round warms up, and is looked at.
            if number:
                seconds[turn].append(elapsed)
            elif turn[0] == "decompress" and turn[1] != LIMIT:
                expanded = loop.expanded if turn[1] == LOOP else back / _PAGES
                if expanded.read_bytes() != memory:
                    raise BenchError(f"{turn[1]} decompressed {pattern} wrongly")
    stored = {
        LOOP: os.path.getsize(loop.packed),
        PER_PAGE: os.path.getsize(perpage / _PAGES),
        REGIONS: os.path.getsize(region / _PAGES),
    }
    stored[LIMIT] = stored[LOOP]
    gigabytes = len(memory) / 1e9
    return [
        ToolCase(
            pattern=pattern,
            command=command,
            who=who,
            ratio=len(memory) / max(stored[who], 1),
            throughput=summarize([gigabytes / second for second in seconds[command, who]]),
        )
        for command, who in turns
    ]


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def _checkpoint(pattern: str, size_bytes: int, folder: Path) -> Path:
    """Make an uncompressed checkpoint of one process."""
    memory = make_memory(pattern, size_bytes, folder)
    plain = folder / "plain"
    plain.mkdir()
    # Copied, not moved: zeros that the pattern leaves out are dumped as data.
    (plain / _PAGES).write_bytes(memory.source.read_bytes())
    memory.source.unlink()
    with (plain / pagemap_name(pid=_PID)).open("wb") as stream:
        entries = [PagemapEntry(vaddr, n_pages) for vaddr, n_pages in memory.ranges]
        write_pagemap(stream, pagemap_pb2.Head(pages_id=1), entries, Schema.NONE)
    path = plain / INVENTORY_NAME
    path.write_bytes(Inventory(str(path), inventory_pb2.Inventory(img_version=2)).encode())
    return plain


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Loop:
    """One page at a time."""

    def __init__(self, folder: Path) -> None:
        self.packed = folder / "loop.packed"
        self.expanded = folder / "loop.expanded"
        self._sizes = array("I")

    def compress(self, pages: Path) -> None:
        self._sizes = array("I")
        threshold = blocks.raw_threshold(PAGE_SIZE)
        with pages.open("rb") as source, self.packed.open("wb") as target:
            while page := source.read(PAGE_SIZE):
                if page == _ZERO_PAGE:
                    self._sizes.append(0)
                    continue
                stored = lz4.block.compress(page, store_size=False)
                if len(stored) >= threshold:
                    stored = page
                self._sizes.append(len(stored))
                target.write(stored)

    def decompress(self) -> None:
        with self.packed.open("rb") as source, self.expanded.open("wb") as target:
            for size in self._sizes:
                if size == 0:
                    target.write(_ZERO_PAGE)
                elif size == PAGE_SIZE:
                    target.write(source.read(size))
                else:
                    stored = source.read(size)
                    target.write(lz4.block.decompress(stored, uncompressed_size=PAGE_SIZE))
