"""Compressing a checkpoint in an archive, beside unpacking, compressing and packing it again."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from bench.bench import Bench, timed
from bench.rows import TIMES, BenchError
from bench.tools import make_checkpoint
from helperd.offline.archived import ArchivedCheckpoints

SECTION = "archives"
#: Who does it: on the archive itself; by way of a directory.
ARCHIVE, UNPACKED = "helperd compress ARCHIVE", "tar x, helperd compress, tar c"
_FOLDER = "checkpoint"


def archives(bench: Bench) -> None:
    """Compress checkpoints page by page in archives that are not compressed as a whole."""
    for pattern in ("text",) if bench.scale.quick else ("text", "elf", "mixed"):
        bench.say(f"{pattern}, an archive compressed")
        with tempfile.TemporaryDirectory(dir=bench.folder, prefix="archives-") as scratch:
            _measure(bench, pattern, Path(scratch))


def _measure(bench: Bench, pattern: str, folder: Path) -> None:
    work = folder / _FOLDER
    make_checkpoint(pattern, bench.scale.size, folder).rename(work)
    archive, packed = folder / "checkpoint.tar", folder / "packed.tar"
    tar = ("tar", "-C", str(folder))
    subprocess.check_call([*tar, "-cf", str(archive), _FOLDER])
    shutil.rmtree(work)
    found: dict[str, int] = {}

    def unpacked() -> None:
        subprocess.check_call([*tar, "-xf", str(archive)])
        _compress(bench, "--in-place", str(work))
        subprocess.check_call([*tar, "-cf", str(packed), _FOLDER])

    def direct() -> None:
        _compress(bench, "--output", str(packed), str(archive))

    def run(who: str) -> float:
        packed.unlink(missing_ok=True)
        seconds = timed(unpacked if who == UNPACKED else direct)()
        shutil.rmtree(work, ignore_errors=True)
        found[who] = _payload(packed)
        return seconds

    turns = {who: partial(run, who) for who in (UNPACKED, ARCHIVE)}
    case = f"{pattern}, per page"
    bench.in_turns(SECTION, case, turns, warm=2 * bench.scale.size)
    if found[UNPACKED] != found[ARCHIVE]:
        raise BenchError(f"{pattern}: the archives hold {found} bytes of pages")
    bench.results.add(SECTION, case, "bytes, of what it was", TIMES, [_share(packed, archive)])


def _compress(bench: Bench, *words: str) -> None:
    subprocess.check_call([*bench.helperd, "compress", *words], stdout=subprocess.DEVNULL)


def _payload(archive: Path) -> int:
    """Return the bytes of all pages files in an archive."""
    with ArchivedCheckpoints(str(archive)) as archived:
        return sum(found.size for found in archived.pages.values())


def _share(packed: Path, archive: Path) -> float:
    return packed.stat().st_size / archive.stat().st_size
