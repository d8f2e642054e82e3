"""``helperd dedup``: free what the parents of a dump keep and no restore needs."""

from __future__ import annotations

import argparse

from helperd.commands.arguments import add_threads
from helperd.commands.check import add_hole_option
from helperd.commands.collection import add_recursive, refuse, run_below
from helperd.commands.progress import ProgressBar
from helperd.commands.sizes import format_size
from helperd.errors import EXIT_OK
from helperd.fleet.jobs import DEDUP, Wish
from helperd.offline.dedup import DedupReport, dedup_directory


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "dedup",
        help="free what the parents of a dump keep but a restore does not need",
        description=(
            "Punch every page out of the parents of DIR, the last dump of a chain, that a restore"
            " of DIR does not take from there. Sizes and pagemaps stay. The chain is checked"
            " before and afterwards. The parents cannot be restored by themselves any more."
        ),
    )
    parser.add_argument("directory", metavar="DIR", help="image directory of the last dump")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    add_recursive(parser)
    parser.add_argument("--json", action="store_true", help="with --recursive: print JSON objects")
    add_hole_option(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Free what can be freed and print how much; return the exit status.

    Raises:
        HelperdError: the chain is broken, or cannot be punched.
    """
    if arguments.recursive:
        refuse(arguments, "dry-run")
        wish = Wish(DEDUP, holes_are_zeros=arguments.holes_are_zeros)
        return run_below(arguments, [arguments.directory], wish)
    bar = ProgressBar("dedup", 1)
    try:
        report = dedup_directory(
            arguments.directory,
            dry_run=arguments.dry_run,
            holes_are_zeros=arguments.holes_are_zeros,
            threads=arguments.threads,
            progress=bar.update,
        )
    finally:
        bar.finish()
    for line in _lines(report):
        print(line)
    return EXIT_OK


def _lines(report: DedupReport) -> list[str]:
    verb = "would be freed" if report.dry_run else "freed"
    lines = [
        f"{file.path}: {file.n_superseded} of {file.n_pages} pages superseded,"
        f" {format_size(file.freed_bytes)} {verb}"
        for file in report.files
    ]
    return [*lines, f"total: {format_size(report.freed_bytes)} {verb}"]
