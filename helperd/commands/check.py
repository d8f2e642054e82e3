"""``helperd check``: say before a restore whether images are whole."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from helperd.commands.arguments import add_threads
from helperd.commands.collection import add_recursive, run_below
from helperd.commands.progress import ProgressBar
from helperd.commands.sizes import format_size
from helperd.errors import EXIT_IMAGE, EXIT_OK
from helperd.fleet.jobs import CHECK, Wish
from helperd.offline.check import check_directories
from helperd.offline.findings import CheckReport


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "check",
        help="say whether checkpoints are whole",
        description=(
            "Read everything that a restore of each DIR needs, its parents included, decode every"
            " block, and say what is wrong. Exit status: 0 all is well, 4 there are problems."
        ),
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="image directory, or archive")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_recursive(parser)
    add_hole_option(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def add_hole_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what a needed page in a hole is."""
    parser.add_argument(
        "--holes-are-zeros",
        action="store_true",
        help="a needed page in a hole of its file is a zero page, not a lost one: for files that"
        " were copied by a tool which leaves zeros out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the directories and print what was found; return the exit status.

    Raises:
        HelperdError: the system, not the images, is in the way.
    """
    if arguments.recursive:
        wish = Wish(CHECK, holes_are_zeros=arguments.holes_are_zeros)
        return run_below(arguments, arguments.directories, wish)
    bar = ProgressBar("check", 1)
    try:
        report = check_directories(
            arguments.directories,
            holes_are_zeros=arguments.holes_are_zeros,
            threads=arguments.threads,
            progress=bar.update,
        )
    finally:
        bar.finish()
    print(_as_json(report) if arguments.json else _as_text(report))
    return EXIT_OK if report.ok else EXIT_IMAGE


def _as_text(report: CheckReport) -> str:
    lines = [f"{finding.severity}: {finding.message}" for finding in report.findings]
    speed = report.payload_bytes / max(report.seconds, 1e-9) / 1e9
    n_problems = len(report.problems)
    verdict = "whole" if report.ok else f"{n_problems} problem{'s' if n_problems > 1 else ''}"
    lines.append(
        f"{verdict}: {len(report.directories)} directories, {report.n_pagemaps} pagemaps,"
        f" {report.n_pages} pages in {report.n_blocks} blocks,"
        f" {format_size(report.payload_bytes)} read ({speed:.2f} GB/s)"
    )
    return "\n".join(lines)


def _as_json(report: CheckReport) -> str:
    return json.dumps({"ok": report.ok, **asdict(report)}, indent=2)
