"""``helperd fleet``: the checkpoints of many machines, on the workers of a Dask scheduler."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

from helperd.commands.arguments import number
from helperd.commands.check import add_hole_option
from helperd.commands.collection import MOST_FAILED, add_shard, chosen, report
from helperd.commands.form import add_form
from helperd.commands.progress import ProgressBar
from helperd.errors import UsageError
from helperd.fleet.cluster import connected, find_on, run_on
from helperd.fleet.jobs import VERBS, Outcome, Wish
from helperd.fleet.table import Table

_MAX_WORKERS = 256


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "fleet",
        help="check, compress or deduplicate the checkpoints of many machines",
        description="Work on all checkpoints below every SOURCE, each a task of a Dask scheduler,"
        " or of processes on this machine. What a run has left undone, the next one with the same"
        " --results does. The exit status is how many have failed"
        f" ({MOST_FAILED} at the most).",
    )
    parser.add_argument("verb", choices=VERBS, help="what to do with each")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder that all workers see, or with --by-host HOST:FOLDER",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of Dask (default: processes of our own)"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=number(1, _MAX_WORKERS),
        default=len(os.sched_getaffinity(0)),
        help="processes of our own (default: one for each CPU)",
    )
    parser.add_argument(
        "--by-host",
        action="store_true",
        help="what lies on a machine's own disk is worked on by the workers there",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="append what became of each to FILE, as JSON lines, and leave out what went well",
    )
    parser.add_argument("--json", action="store_true", help="print JSON objects, one in a line")
    parser.add_argument("--in-place", action="store_true", help="compress without backups")
    add_shard(parser)
    add_form(parser)
    add_hole_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do it and print what became of each checkpoint; return the exit status.

    Raises:
        HelperdError: no scheduler, no Dask, a source that cannot be read.
    """
    wish = Wish(
        arguments.verb,
        region_bytes=arguments.region,
        acceleration=arguments.acceleration,
        schema=arguments.schema,
        in_place=arguments.in_place,
        holes_are_zeros=arguments.holes_are_zeros,
    )
    sources = [_source(text, by_host=arguments.by_host) for text in arguments.sources]
    bar = ProgressBar(f"fleet {wish.verb}", 1)
    with contextlib.ExitStack() as stack:
        stack.callback(bar.finish)
        table = stack.enter_context(Table(arguments.results)) if arguments.results else None
        client = stack.enter_context(connected(arguments.scheduler, arguments.workers))
        found = {(host, item.path): item for host, item in find_on(client, sources)}
        left = chosen(found.values(), arguments.shard)
        if table is not None:
            left = table.left(left, wish.verb)
        wanted = {id(item) for item in left}
        tasks = [(host, item) for (host, _), item in found.items() if id(item) in wanted]
        outcomes = run_on(client, tasks, wish, bar.update)
        return report(_noted(outcomes, table), len(tasks), as_json=arguments.json)


def _source(text: str, *, by_host: bool) -> tuple[str | None, str]:
    if not by_host:
        return None, os.path.abspath(text)
    host, colon, folder = text.partition(":")
    if not (host and colon and folder.startswith("/")):
        raise UsageError(f"{text}: with --by-host a source is HOST:FOLDER, with an absolute path")
    return host, folder


def _noted(outcomes: Iterator[Outcome], table: Table | None) -> Iterator[Outcome]:
    for outcome in outcomes:
        if table is not None:
            table.add(outcome)
        yield outcome
