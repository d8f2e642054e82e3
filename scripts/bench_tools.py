#!/usr/bin/env python3
"""Measure helperd compress and decompress beside a plain loop over pages, in turns.

The loop is what `crit compress` and `crit decompress` do, one page at a time with python-lz4; it
keeps neither pagemaps nor checks anything, which is in its favour. Usage::

    scripts/bench_tools.py [SIZE_MIB]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
from bench.patterns import make_memory

from helperd import blocks, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.directory import pagemap_name
from helperd.images.inventory import INVENTORY_NAME, Inventory, Schema
from helperd.images.pagemap import PagemapEntry, pages_name, write_pagemap
from helperd.images.pb import inventory_pb2, pagemap_pb2

_PATTERNS = ("text", "elf", "mixed", "random")
_ROUNDS = 5
_PID = 7
_PAGES = pages_name(1)
_ZERO_PAGE = bytes(PAGE_SIZE)


def measure_tools(
    size_bytes: int, patterns: tuple[str, ...] = _PATTERNS, rounds: int = _ROUNDS
) -> list[dict[str, Any]]:
    """Return one row for each pattern and command; speeds are medians, in GB/s of memory.

    Args:
        size_bytes: of memory.
        patterns: names of :mod:`bench.patterns`.
        rounds: how often each is measured, in turns.
    """
    rows = []
    for pattern in patterns:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="helperd-bench-") as folder:
            rows += _measure(pattern, size_bytes, Path(folder), rounds)
    return rows


def _measure(pattern: str, size_bytes: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    plain = _checkpoint(pattern, size_bytes, folder)
    memory = (plain / _PAGES).read_bytes()
    loop = _Loop(folder)
    region, perpage = folder / "region", folder / "perpage"
    commands: dict[tuple[str, str], Callable[[], object]] = {
        ("compress", "loop"): lambda: loop.compress(plain / _PAGES),
        ("compress", "helperd"): lambda: tools.compress(str(plain), output=str(_fresh(perpage))),
        ("compress", "helperd --region 256K"): lambda: tools.compress(
            str(plain), output=str(_fresh(region)), region_bytes=256 << 10
        ),
        ("decompress", "loop"): loop.decompress,
        ("decompress", "helperd"): lambda: tools.decompress(
            str(perpage), output=str(_fresh(folder / "back"))
        ),
        ("decompress", "helperd --region 256K"): lambda: tools.decompress(
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
            elif key[0] == "decompress" and key[1] != "loop":
                assert (folder / "back" / _PAGES).read_bytes() == memory
        assert loop.expanded.read_bytes() == memory
    stored = {
        "loop": os.path.getsize(loop.packed),
        "helperd": os.path.getsize(perpage / _PAGES),
        "helperd --region 256K": os.path.getsize(region / _PAGES),
    }
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return [
        {
            "pattern": pattern,
            "command": command,
            "who": who,
            "gb_per_s": len(memory) / medians[command, who] / 1e9,
            "times_the_loop": medians[command, "loop"] / medians[command, who],
            "ratio": len(memory) / max(stored[who], 1),
        }
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


def main() -> int:
    """Print the table."""
    size_mib = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    for row in measure_tools(size_mib << 20):
        print(
            f"{row['pattern']:8} {row['command']:11} {row['who']:22} {row['gb_per_s']:6.2f} GB/s"
            f"  x{row['times_the_loop']:5.2f}  ratio {row['ratio']:8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
