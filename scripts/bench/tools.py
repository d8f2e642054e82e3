"""helperd compress and decompress beside a plain loop over pages, in turns.

The loop is what ``crit compress`` and ``crit decompress`` do, one page at a time with python-lz4;
it writes no pagemaps and checks nothing, which is in its favour.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import lz4.block

from bench.errors import BenchError
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
_PID = 7
_PAGES = pages_name(1)
_ZERO_PAGE = bytes(PAGE_SIZE)


def measure_tools(pattern: str, size_bytes: int, folder: Path, rounds: int) -> list[ToolCase]:
    """Return a case for each command and who does it.

    Args:
        pattern: a name of :mod:`bench.patterns`.
        size_bytes: of memory.
        folder: on a tmpfs.
        rounds: how often each is measured, in turns.

    Raises:
        BenchError: what was decompressed is not what was compressed.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="tools-") as scratch:
        return _measure(pattern, size_bytes, Path(scratch), rounds)


def _measure(pattern: str, size_bytes: int, folder: Path, rounds: int) -> list[ToolCase]:
    plain = _checkpoint(pattern, size_bytes, folder)
    memory = (plain / _PAGES).read_bytes()
    loop = _Loop(folder)
    region, perpage = folder / "region", folder / "perpage"
    commands: dict[tuple[str, str], Callable[[], object]] = {
        ("compress", LOOP): lambda: loop.compress(plain / _PAGES),
        ("compress", PER_PAGE): lambda: tools.compress(str(plain), output=str(_fresh(perpage))),
        ("compress", REGIONS): lambda: tools.compress(
            str(plain), output=str(_fresh(region)), region_bytes=256 << 10
        ),
        ("decompress", LOOP): loop.decompress,
        ("decompress", PER_PAGE): lambda: tools.decompress(
            str(perpage), output=str(_fresh(folder / "back"))
        ),
        ("decompress", REGIONS): lambda: tools.decompress(
            str(region), output=str(_fresh(folder / "back"))
        ),
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
    for number in range(rounds + 1):
        for key, command in commands.items():
            started = time.perf_counter()
            command()
            # The first round warms up, and is looked at.
            if number:
                seconds[key].append(time.perf_counter() - started)
            elif key[0] == "decompress":
                expanded = loop.expanded if key[1] == LOOP else folder / "back" / _PAGES
                if expanded.read_bytes() != memory:
                    raise BenchError(f"{key[1]} decompressed {pattern} wrongly")
    stored = {
        LOOP: os.path.getsize(loop.packed),
        PER_PAGE: os.path.getsize(perpage / _PAGES),
        REGIONS: os.path.getsize(region / _PAGES),
    }
    gigabytes = len(memory) / 1e9
    return [
        ToolCase(
            pattern=pattern,
            command=command,
            who=who,
            ratio=len(memory) / max(stored[who], 1),
            throughput=summarize([gigabytes / second for second in seconds[command, who]]),
        )
        for command, who in commands
    ]


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


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


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
