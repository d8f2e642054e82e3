"""Dumps over the page server: CRIU's own, and helperd in its place, by a real CRIU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from criu.dumper import Criu
from criu.workload import Workload

from bench.bench import Bench
from bench.patterns import MIB
from bench.rows import MIB as MIB_UNIT
from bench.rows import BenchError
from helperd import tools
from helperd.offline.complete import complete_directory

SECTION = "page-server"
OWN, NONE, PAGE, REGION = "criu page-server", "--compress none", "per page", "--region 256K"
_KIB_IN_MIB = 1024


def received(bench: Bench) -> None:
    """Dump a process in turns over each of the servers; it runs on in between."""
    assert bench.criu is not None
    criu = Criu(bench.criu)
    third = bench.scale.size // 3 // MIB
    ours = (*bench.helperd, "page-server", "--once")
    servers: dict[str, tuple[str, ...]] = {
        OWN: (str(bench.criu), "page-server"),
        NONE: (*ours, "--compress", "none"),
        PAGE: ours,
        REGION: (*ours, "--region", "256K"),
    }
    case = f"dump, {3 * third}M of text, random and zero pages"
    bench.say(f"{SECTION}: {case}")
    folder = bench.folder / "received"
    folder.mkdir()
    peaks = dict.fromkeys(servers, 0.0)
    memory = ("memory", f"text={third}", f"random={third}", f"zero={third}")
    with Workload(folder / "workload", *memory) as process:

        def turn(who: str) -> float:
            shutil.rmtree(folder / "images", ignore_errors=True)
            (folder / "images").mkdir()
            seconds, peak = _dump(criu, process.pid, folder / "images", servers[who])
            peaks[who] = max(peaks[who], peak)
            if who != OWN:
                complete_directory(str(folder / "images"))
            return seconds

        turns = {who: partial(turn, who) for who in servers}
        bench.in_turns(SECTION, case, turns, warm=bench.scale.size)
        problems = tools.check([str(folder / "images")]).problems
        if problems:
            raise BenchError(f"what was received is broken: {problems[0].message}")
    for who, peak in peaks.items():
        bench.results.add(SECTION, f"{case}, peak RSS", who, MIB_UNIT, [peak])
    shutil.rmtree(folder)


def _dump(criu: Criu, pid: int, images: Path, server: Sequence[str]) -> tuple[float, float]:
    """Dump over a server; return the seconds until both have ended, and the server's peak RSS."""
    port = _free_port()
    ready, told = os.pipe()
    # With a preexec_fn it is forked: of a vfork it would have our own peak of memory.
    process = subprocess.Popen(
        [*server, "-D", str(images), "--port", str(port), "--status-fd", str(told)],
        stdin=subprocess.DEVNULL,
        pass_fds=[told],
        preexec_fn=os.getpid,
    )
    os.close(told)
    if os.read(ready, 1) != b"\0":
        raise BenchError(f"{server[0]} page-server does not start")
    os.close(ready)
    options = ("--leave-running", "--page-server", "--address", "127.0.0.1", "--port", str(port))
    start = time.perf_counter()
    criu.dump(pid, images, *options)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise BenchError(f"{server[0]} page-server has ended with {process.returncode}")
    return seconds, usage.ru_maxrss / _KIB_IN_MIB


def _free_port() -> int:
    """Return a port that nobody listens at; CRIU 3.17 takes no 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
