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
from array import array
from collections.abc import Callable
from pathlib import Path

import lz4.block

from bench.bench import Bench, timed
from bench.patterns import make_memory
from bench.rows import BenchError
from helperd import blocks, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.directory import pagemap_name
from helperd.images.inventory import INVENTORY_NAME, Inventory, Schema
from helperd.images.pagemap import PagemapEntry, pages_name
from helperd.images.pagemap_writer import write_pagemap
from helperd.images.pb import inventory_pb2, pagemap_pb2

LOOP, PER_PAGE, REGIONS = "per-page loop", "helperd", "helperd --region 256K"
LIMIT = "liblz4 alone, per page"
_PID = 7
_PAGES = pages_name(1)
_ZERO_PAGE = bytes(PAGE_SIZE)


def offline(bench: Bench) -> None:
    """Compress and decompress checkpoints of one process, in turns with the loop and the limit."""
    for pattern in ("text",) if bench.scale.quick else ("text", "elf", "mixed"):
        bench.say(f"{pattern}, compress and decompress")
        with tempfile.TemporaryDirectory(dir=bench.folder, prefix="tools-") as scratch:
            _measure(bench, pattern, Path(scratch))


def _measure(bench: Bench, pattern: str, folder: Path) -> None:
    size_bytes = bench.scale.size
    plain = make_checkpoint(pattern, size_bytes, folder)
    pages = plain / _PAGES
    memory = pages.read_bytes()
    loop = _Loop(folder)
    packed = {PER_PAGE: folder / "perpage", REGIONS: folder / "region"}
    back = folder / "back"
    alone = [str(bench.programs.liblz4alone), "compress", str(pages)]
    alone.append(str(len(os.sched_getaffinity(0))))

    def run(output: Path, work: Callable[[], object], *, check: Path | None = None) -> float:
        _remove(output)
        seconds = timed(work)()
        if check is not None and check not in checked:
            checked.add(check)
            if check.read_bytes() != memory:
                raise BenchError(f"{check.name} of {pattern} is not what was compressed")
        return seconds

    def limit(command: str) -> float:
        alone[1] = command
        return int(subprocess.check_output(alone)) / 1e9

    def compress(who: str) -> float:
        output, region = packed[who], 256 << 10 if who == REGIONS else None
        return run(
            output, lambda: tools.compress(str(plain), output=str(output), region_bytes=region)
        )

    def decompress(who: str) -> float:
        checked.discard(back / _PAGES)
        source = str(packed[who])
        return run(back, lambda: tools.decompress(source, output=str(back)), check=back / _PAGES)

    checked: set[Path] = set()
    for command, turns in (
        (
            "compress",
            {
                LOOP: lambda: run(loop.packed, lambda: loop.compress(pages)),
                PER_PAGE: lambda: compress(PER_PAGE),
                REGIONS: lambda: compress(REGIONS),
                LIMIT: lambda: limit("compress"),
            },
        ),
        (
            "decompress",
            {
                LOOP: lambda: run(loop.expanded, loop.decompress, check=loop.expanded),
                PER_PAGE: lambda: decompress(PER_PAGE),
                REGIONS: lambda: decompress(REGIONS),
                LIMIT: lambda: limit("decompress"),
            },
        ),
    ):
        bench.in_turns("offline", f"{pattern}, {command}", turns, warm=2 * size_bytes)


def make_checkpoint(pattern: str, size_bytes: int, folder: Path) -> Path:
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
