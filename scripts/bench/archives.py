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
from helperd.images.outer import NONE, ZSTD
from helperd.offline.archived import ArchivedCheckpoints

SECTION = "archives"
#: Who does it: on the archive itself; by way of a directory.
ARCHIVE, UNPACKED = "helperd compress ARCHIVE", "tar x, helperd compress, tar c"
_FOLDER = "checkpoint"
#: Patterns, and how the archive is compressed as a whole before and after: Podman's are with zstd.
_QUICK = (("text", NONE, NONE),)
_FULL = (
    *((pattern, NONE, NONE) for pattern in ("text", "elf", "mixed")),
    ("text", ZSTD, ZSTD),
    ("text", ZSTD, NONE),
)
_SUFFIXES = {NONE: "", ZSTD: ".zst"}
#: At the level that is written, too.
_TAR_WORDS: dict[str, tuple[str, ...]] = {NONE: (), ZSTD: ("--use-compress-program", "zstd -1")}


def archives(bench: Bench) -> None:
    """Compress checkpoints page by page in archives, compressed as a whole or not."""
    for pattern, old, new in _QUICK if bench.scale.quick else _FULL:
        if ZSTD in (old, new) and shutil.which("zstd") is None:
            bench.say(f"{pattern}, .tar{_SUFFIXES[old]}: left out, for tar has no zstd")
            continue
        bench.say(f"{pattern}, .tar{_SUFFIXES[old]} to .tar{_SUFFIXES[new]}")
        with tempfile.TemporaryDirectory(dir=bench.folder, prefix="archives-") as scratch:
            _measure(bench, pattern, old, new, Path(scratch))


def _measure(bench: Bench, pattern: str, old: str, new: str, folder: Path) -> None:
    work = folder / _FOLDER
    make_checkpoint(pattern, bench.scale.size, folder).rename(work)
    archive, packed = folder / "checkpoint.tar", folder / "packed.tar"
    tar = ("tar", "-C", str(folder))
    subprocess.check_call([*tar, *_TAR_WORDS[old], "-cf", str(archive), _FOLDER])
    shutil.rmtree(work)
    found: dict[str, int] = {}

    def unpacked() -> None:
        subprocess.check_call([*tar, *_TAR_WORDS[old], "-xf", str(archive)])
        _compress(bench, "--in-place", str(work))
        subprocess.check_call([*tar, *_TAR_WORDS[new], "-cf", str(packed), _FOLDER])

    def direct() -> None:
        _compress(bench, "--outer", new, "--output", str(packed), str(archive))

    def run(who: str) -> float:
        packed.unlink(missing_ok=True)
        seconds = timed(unpacked if who == UNPACKED else direct)()
        shutil.rmtree(work, ignore_errors=True)
        found[who] = _payload(packed)
        return seconds

    turns = {who: partial(run, who) for who in (UNPACKED, ARCHIVE)}
    case = f"{pattern}, per page, .tar{_SUFFIXES[old]} to .tar{_SUFFIXES[new]}"
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
