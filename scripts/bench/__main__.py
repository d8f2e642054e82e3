"""Command line of the benchmark: ``make bench``, or with scripts/ on the path ``-m bench``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench import restore
from bench.archives import archives
from bench.bench import FULL, QUICK, Bench, Section
from bench.competitors import NAMES, make_competitors
from bench.dedup import dedup
from bench.goals import GOALS
from bench.images import MODES
from bench.machine import describe_machine
from bench.measure import warm_memory
from bench.ondemand import on_demand
from bench.patterns import MIB, PATTERNS
from bench.programs import compile_programs
from bench.received import received
from bench.report import insert, render
from bench.rows import BenchError, Results
from bench.share import share
from bench.streams import streams
from bench.tools import offline
from bench.waiting import waiting
from bench.whole import whole
from helperd.errors import EXIT_SIGNAL_BASE, HelperdError
from helperd.options import parse_size
from helperd.restorer.helper import COMMAND

#: The parts of the benchmark, in the order in which they are measured.
SECTIONS: dict[str, Section] = {
    "waiting": waiting,
    "whole": whole,
    "share": share,
    "throughput": restore.throughput,
    "cold": restore.cold,
    "peak": restore.peak,
    "auto-dedup": dedup,
    "sandbox": restore.sandbox,
    "offline": offline,
    "archives": archives,
}
#: Those that are measured only with a real CRIU beside them.
WITH_CRIU: dict[str, Section] = {
    "on-demand": on_demand,
    "page-server": received,
    "streams": streams,
}

ROOT = Path(__file__).resolve().parents[2]
_BUILD = ROOT / "build" / "bench"
_DOCUMENT = ROOT / "docs" / "performance.md"
_CHART = ROOT / "docs" / "performance.svg"
_WHOLE_CHART = ROOT / "docs" / "whole.svg"
_DATA = ROOT / "docs" / "performance.csv"
_IN_MEMORY = Path("/dev/shm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    try:
        options = _parse(arguments)
        results = _run(options)
        _BUILD.mkdir(parents=True, exist_ok=True)
        (_BUILD / "results.csv").write_text(results.to_csv())
        report = render(results, GOALS)
        print(report)
        if options.write_docs:
            _write_docs(results, report)
        print(f"bench: wrote {_BUILD / 'results.csv'}", file=sys.stderr)
    except (BenchError, HelperdError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_SIGNAL_BASE + signal.SIGINT
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure helperd beside a C helper and beside decoding without a helper.",
    )
    parser.add_argument("--quick", action="store_true", help="less than two minutes, less to trust")
    parser.add_argument("--size", type=parse_size, help="memory to restore (default 512M)")
    parser.add_argument("--rounds", type=int, help="restores that count, for each competitor")
    parser.add_argument("--patterns", type=_choices(PATTERNS), help=", ".join(PATTERNS))
    parser.add_argument("--modes", type=_choices(tuple(MODES)), help=", ".join(MODES))
    parser.add_argument("--competitors", type=_choices(NAMES), default=NAMES, help=", ".join(NAMES))
    parser.add_argument(
        "--sections",
        type=_choices((*SECTIONS, *WITH_CRIU)),
        default=(*SECTIONS, *WITH_CRIU),
        help=", ".join((*SECTIONS, *WITH_CRIU)),
    )
    parser.add_argument(
        "--helperd",
        type=lambda text: tuple(shlex.split(text)),
        default=_executable(),
        metavar="COMMAND",
        help="how to start helperd, to measure another version",
    )
    parser.add_argument(
        "--criu", type=Path, metavar="PATH", help=f"a real CRIU, for {', '.join(WITH_CRIU)}"
    )
    parser.add_argument("--write-docs", action="store_true", help="put tables and chart into docs/")
    options = parser.parse_args(arguments)
    if options.size is not None and (not options.size or options.size % MIB):
        parser.error("--size has to be whole MiB")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds has to be 1 or more")
    if options.quick and options.write_docs:
        parser.error("--write-docs wants the figures of a full run")
    if options.write_docs and find_spec("matplotlib") is None:
        parser.error("--write-docs needs matplotlib: use make bench ARGS=--write-docs")
    return options


def _executable() -> tuple[str, ...]:
    """Return the executable that is installed beside this Python; else how a restorer starts it."""
    path = Path(sys.executable).with_name("helperd")
    return (str(path),) if path.exists() else COMMAND


def _choices(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def choose(text: str) -> tuple[str, ...]:
        chosen = tuple(word.strip() for word in text.split(","))
        for word in chosen:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return chosen

    return choose


def _run(options: argparse.Namespace) -> Results:
    scale = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in ("size", "rounds", "patterns", "modes")}
    scale = dataclasses.replace(
        scale, **{name: value for name, value in given.items() if value is not None}
    )
    programs = compile_programs(_BUILD)
    everybody = make_competitors(programs, options.helperd)
    machine = {
        **describe_machine(),
        "run": "quick" if options.quick else "full",
        "restored memory": f"{scale.size >> 20} MiB",
        "measurements that count": str(scale.rounds),
    }
    in_memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="helperd-bench-", dir=in_memory) as memory_folder,
        tempfile.TemporaryDirectory(prefix="image-", dir=_BUILD) as disk_folder,
    ):
        bench = Bench(
            scale=scale,
            programs=programs,
            competitors={name: everybody[name] for name in options.competitors},
            helperd=tuple(options.helperd),
            criu=options.criu,
            folder=Path(memory_folder),
            disk_folder=Path(disk_folder),
            pictures=_DOCUMENT.parent if options.write_docs else None,
            results=Results(machine),
        )
        warm_memory(scale.warm_bytes)
        sections = SECTIONS if options.criu is None else SECTIONS | WITH_CRIU
        for name in sections:
            if name in options.sections:
                sections[name](bench)
    return bench.results


def _write_docs(results: Results, report: str) -> None:
    from bench.chart import (  # matplotlib is not needed for anything else
        draw_throughput,
        draw_whole,
    )

    _DOCUMENT.write_text(insert(_DOCUMENT.read_text(), report))
    _DATA.write_text(results.to_csv())
    draw_throughput(results, _CHART)
    draw_whole(results, _WHOLE_CHART)
    names = ", ".join(path.name for path in (_CHART, _WHOLE_CHART, _DATA))
    print(f"bench: wrote {_DOCUMENT}, {names}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
