"""Cuts the power while helperd changes checkpoints, and looks at what is on the disk then.

In the virtual machine `compress`, `decompress`, `dedup` and the page server, which receives a dump,
work on an ext4 of its own, again and again. At random moments - of a whole job or, with `--aim
switch`, of its last steps, which put into effect what is new - the machine is stopped as by
SIGKILL, between two instructions, and its disk is copied: that is what a cut of the power would
leave, without a boot for every cut. Each copy gets its journal replayed by e2fsck and is read with
debugfs. Then

- what was being compressed or decompressed is all old or all new, and passes `check`,
- what was being received is there as a whole, or nothing of it is,
- what was being deduplicated gives the memory that it gave before,
- what was said to be done is done,
- and the next command cleans up.

::

    make power-cuts CUTS=50
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from criu.errors import SetupError
from criu.machine import SHARE, Machine
from criu.native import CHECKOUT
from criu.powerguest import receive
from criu.processes import wait_for
from criu.vm import FOLDER, ROOT, set_up_vm
from helperd import tools
from helperd.blocks import PAGE_SIZE
from helperd.images import arrivals
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.images.extent import read_pages

_JOBS = ("compress", "decompress", "dedup", "receive")
_DATA = CHECKOUT / "tests" / "data"
_ARCHIVE = _DATA / "incremental-dedup.tar.xz"
_RECEIVED = _DATA / "page-server-plain.tar.xz"
_DISK_MIB = 192
#: Longest time between two cuts; about what a turn of the guest takes.
_PAUSE_SECONDS = 4.0


@dataclass(frozen=True)
class Line:
    """What the guest said: that a job begins, is about to take effect, or is done.

    Attributes:
        word: begin, switch or done.
        turn: of the guest.
        job: one of ``_JOBS``.
        when: it was read, of the monotonic clock.
    """

    word: str
    turn: int
    job: str
    when: float


@dataclass
class Expected:
    """What a job's directory may hold.

    Attributes:
        old: digest of the image files before.
        new: digest of them afterwards.
        memory: digest of the memory that they are of.
    """

    old: str
    new: str
    memory: str


@dataclass
class Figures:
    """What was seen.

    Attributes:
        cuts: by the job that was going on.
        switching: those of them that came when it was about to take effect, or later.
        states: by job and state: old, new, between (dedup).
        leftovers: cuts after which something unfinished lay there.
        faults: what must not be.
    """

    cuts: Counter[str] = field(default_factory=Counter)
    switching: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    leftovers: int = 0
    faults: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut the power so many times in each job; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="powercuts", description="Cut the power of helperd.")
    parser.add_argument("--cuts", type=int, default=50, help="of each job (default 50)")
    parser.add_argument(
        "--aim", choices=("begin", "switch"), default="begin", help="which moments (default begin)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    parser.add_argument(
        "--forget-fsync", action="store_true", help="see that a missing fsync is noticed"
    )
    options = parser.parse_args(arguments)
    # However it is told to end, it ends the machine and says what it saw.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    figures = Figures()
    try:
        set_up_vm()
        for program in ("mkfs.ext4", "e2fsck", "debugfs"):
            if shutil.which(program) is None:
                raise SetupError(f"{program} is missing: install e2fsprogs")
        with tempfile.TemporaryDirectory(prefix="powercuts-") as folder:
            moments = random.Random(options.seed)
            aim = _Aim(options.aim, options.cuts, moments)
            _cut(Path(folder), aim, figures, options.forget_fsync)
    except KeyboardInterrupt:
        print("powercuts: interrupted, this is what was seen until then", file=sys.stderr)
    except SetupError as error:
        print(f"powercuts: {error}", file=sys.stderr)
        return 1
    print(f"seed {options.seed}")
    for job in _JOBS:
        states = ", ".join(
            f"{n} {name.partition(' ')[2]}"
            for name, n in sorted(figures.states.items())
            if name.startswith(f"{job} ")
        )
        print(f"{job}: {figures.cuts[job]} cuts, {figures.switching[job]} at its switch: {states}")
    print(f"unfinished folders found and cleaned up: {figures.leftovers}")
    print(f"faults: {len(figures.faults)}")
    for fault in figures.faults:
        print(f"  {fault}")
    return 1 if figures.faults else 0


@dataclass(frozen=True)
class _Aim:
    """At what moments the power is cut.

    Attributes:
        word: of the lines after which it is.
        n_cuts: of each job.
        moments: where random ones come from.
    """

    word: str
    n_cuts: int
    moments: random.Random


def _cut(folder: Path, aim: _Aim, figures: Figures, forget_fsync: bool) -> None:
    origin = folder / "origin"
    expected = _make_origin(folder, origin)
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    _run("mkfs.ext4", "-q", "-F", "-d", str(origin), str(disk))
    share = folder / "share"
    share.mkdir()
    read, write = os.pipe()
    guest = Path(__file__).with_name("powerguest.py")
    shutil.copy(folder / "page-server-plain" / "client.bin", share)
    stream = f"{SHARE}/client.bin"
    programs = [str(ROOT / "bin/busybox"), str(FOLDER / "modprobe")]
    command = [sys.executable, str(guest), *programs, stream]
    if forget_fsync:
        command.append("forget-fsync")
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(CHECKOUT)}
    lines: list[Line] = []
    others: list[str] = []
    reader = threading.Thread(target=_read_lines, args=(read, lines, others), daemon=True)
    reader.start()
    with Machine(command, share, write, disk=disk, environment=environment) as machine:
        os.close(write)
        wait_for(lambda: bool(lines) or bool(others), "the guest")
        while min(figures.cuts[job] for job in _JOBS) < aim.n_cuts:
            if others:
                raise SetupError(f"the guest has failed: {' | '.join(others[-5:])}")
            wanted = min(_JOBS, key=lambda job: figures.cuts[job])
            _wait_for(lines, aim.word, wanted)
            time.sleep(aim.moments.uniform(0, _typical_seconds(lines, aim.word, wanted)))
            copy = folder / "cut.img"
            with machine.stopped():
                known = list(lines)
                _run("cp", "--sparse=always", str(disk), str(copy))
            _judge(copy, known, expected, folder / "found", figures)
            done = sum(figures.cuts.values())
            last = f": {figures.faults[-1]}" if figures.faults else ""
            print(f"powercuts: {done} cuts, {len(figures.faults)} faults{last}", file=sys.stderr)
    reader.join()


def _make_origin(folder: Path, origin: Path) -> dict[str, Expected]:
    """Make what the guest works on, and find out what it has to become."""
    for archive in (_ARCHIVE, _RECEIVED):
        subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    chain = folder / "incremental-dedup" / "images"
    origin.mkdir()
    shutil.copytree(chain / "1", origin / "compress")
    shutil.copytree(chain / "1", origin / "decompress")
    tools.compress(str(origin / "decompress"), in_place=True)
    shutil.copytree(chain, origin / "dedup", symlinks=True)
    (origin / "receive").mkdir()
    expected = {}
    for job in _JOBS:
        done = folder / f"done-{job}"
        shutil.copytree(origin / job, done, symlinks=True)
        old = _digest_files(done)
        if job == "receive":
            receive(done, (folder / "page-server-plain" / "client.bin").read_bytes())
            expected[job] = Expected(old, _digest_files(done), _digest_memory(done))
            continue
        memory = _digest_memory(_last(done, job))
        if job == "compress":
            tools.compress(str(done), in_place=True)
        elif job == "decompress":
            tools.decompress(str(done), in_place=True)
        else:
            tools.dedup(str(_last(done, job)))
        expected[job] = Expected(old, _digest_files(done), memory)
        if expected[job].old == expected[job].new:
            raise SetupError(f"{job} changes nothing: there is nothing to see")
        if _digest_memory(_last(done, job)) != memory:
            raise SetupError(f"{job} changes the memory, without any cut")
    return expected


def _read_lines(read: int, lines: list[Line], others: list[str]) -> None:
    with os.fdopen(read) as output:
        for text in output:
            match text.split():
                case ["begin" | "switch" | "done" as word, turn, job] if job in _JOBS:
                    lines.append(Line(word, int(turn), job, time.monotonic()))
                case _:
                    others.append(text.strip())


def _wait_for(lines: list[Line], word: str, job: str) -> None:
    seen = len(lines)
    wait_for(
        lambda: any(line.word == word and line.job == job for line in lines[seen:]),
        f"{job} to say {word}",
    )


def _typical_seconds(lines: list[Line], word: str, job: str) -> float:
    """Return how long a job takes in the guest after it has said ``word``, and a little more."""
    begun = {line.turn: line.when for line in lines if line.job == job and line.word == word}
    times = [
        line.when - begun[line.turn]
        for line in lines
        if line.job == job and line.word == "done" and line.turn in begun
    ]
    return 1.1 * sorted(times)[len(times) // 2] if times else _PAUSE_SECONDS


def _judge(
    disk: Path, known: list[Line], expected: dict[str, Expected], found: Path, figures: Figures
) -> None:
    """Look at a disk as the power's cut has left it."""
    last: dict[str, Line] = {}
    for line in known:
        last[line.job] = line
    cut = known[-1] if known[-1].word != "done" else None
    if cut is not None:
        figures.cuts[cut.job] += 1
        figures.switching[cut.job] += cut.word == "switch"
    _run("e2fsck", "-f", "-y", str(disk), fine=(0, 1))
    for job, line in last.items():
        shutil.rmtree(found, ignore_errors=True)
        found.mkdir()
        _run("debugfs", "-R", f"rdump /{line.turn}/{job} {found}", str(disk))
        where = f"turn {line.turn}, {job} ({line.word})"
        try:
            if job == "receive":
                figures.leftovers += _recover(found / job)
            state = _state_of(found / job, job, expected[job])
            if line.word == "done" and state != "new" and job != "dedup":
                figures.faults.append(f"{where}: was said to be done, but is {state}")
            if line is cut:
                figures.states[f"{job} {state}"] += 1
            figures.leftovers += _clean_up(found / job, job, expected[job])
        except Exception as error:
            figures.faults.append(f"{where}: {type(error).__name__}: {error}")


def _state_of(folder: Path, job: str, expected: Expected) -> str:
    """Return what a directory is: old or new, for dedup maybe between them.

    Raises:
        ValueError: it is none of them.
        HelperdError: it is broken.
    """
    digest = _digest_files(folder)
    if job == "receive":
        # There is no memory before, and no check without the dumper's images.
        states = {expected.old: "old", expected.new: "new"}
        if digest not in states:
            raise ValueError("neither nothing nor all that was received")
        return states[digest]
    if _digest_memory(_last(folder, job)) != expected.memory:
        raise ValueError("the memory is not what it was")
    # Holes do not survive debugfs; what they hold does, which was just looked at.
    report = tools.check([str(_last(folder, job))], holes_are_zeros=True)
    if not report.ok:
        raise ValueError(f"check: {report.problems[0]}")
    if digest == expected.old:
        return "old"
    if digest == expected.new:
        return "new"
    if job == "dedup":
        return "between"
    raise ValueError("neither the old files nor the new ones")


def _clean_up(folder: Path, job: str, expected: Expected) -> int:
    """Run the command again, as a user would; return 1 if it has found something unfinished.

    Raises:
        ValueError: it does not lead to the new state.
        HelperdError: it fails.
    """
    if job in ("dedup", "receive"):
        return 0
    leftover = (folder / ".helperd").exists()
    if job == "compress":
        tools.compress(str(folder), in_place=True)
    else:
        tools.decompress(str(folder), in_place=True)
    if (folder / ".helperd").exists() or _digest_files(folder) != expected.new:
        raise ValueError("the next command has not cleaned up")
    return int(leftover)


def _recover(folder: Path) -> int:
    """Do what the next page server does first; return 1 if it has found something unfinished.

    Raises:
        HelperdError: it fails.
    """
    leftover = any(path.name.startswith(".") for path in folder.iterdir())
    arrivals.recover(str(folder))
    if any(path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError("the next page server has not cleaned up")
    return int(leftover)


def _last(folder: Path, job: str) -> Path:
    return folder / "3" if job == "dedup" else folder


def _digest_files(folder: Path) -> str:
    """Return a digest of the image files, through whatever links lead to them."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.img")):
        if ".helperd" not in path.parts and not path.parent.is_symlink():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _digest_memory(folder: Path) -> str:
    """Return a digest of the memory of all processes of a dump."""
    digest = hashlib.sha256()
    directory = ImageDirectory(str(folder))
    for pid in directory.pids:
        for address, content in read_pages(resolve(directory, pid=pid)):
            # Page by page: where an extent ends depends on how it is stored.
            for offset in range(0, len(content), PAGE_SIZE):
                digest.update(f"{address + offset:x}\0".encode())
                digest.update(content[offset : offset + PAGE_SIZE])
    return digest.hexdigest()


def _run(*command: str, fine: tuple[int, ...] = (0,)) -> None:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode not in fine:
        raise SetupError(f"{' '.join(command)}: {result.stdout} {result.stderr}")


if __name__ == "__main__":
    sys.exit(main())
