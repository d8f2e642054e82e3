"""What the commands on many checkpoints have in common: options, one line each, a summary."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from helperd.commands.progress import ProgressBar
from helperd.commands.sizes import format_size
from helperd.errors import UsageError
from helperd.fleet.find import Checkpoint, find_checkpoints, in_shard
from helperd.fleet.jobs import DONE, FAILED, NOTHING, Outcome, Wish
from helperd.fleet.pool import run_pool
from helperd.offline.parallel import n_threads

#: The exit status says how many checkpoints failed, up to this.
MOST_FAILED = 99


def add_recursive(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that can go through folders of checkpoints."""
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="take all checkpoints below DIR, chains as chains, archives too; a bad one does not"
        f" stop the others, and the exit status is how many there were ({MOST_FAILED} at the most)",
    )
    add_shard(parser)


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Add --shard."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="of many checkpoints take the I-th of N parts only, from 0 on: for arrays of jobs",
    )


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(count) <= 9):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: two numbers such as 0/4")
    if not int(index) < int(count):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: the first from 0 to before the second")
    return int(index), int(count)


def run_below(arguments: argparse.Namespace, folders: Sequence[str], wish: Wish) -> int:
    """Do with all checkpoints below some folders what is wished; return the exit status.

    Raises:
        HelperdError: a folder cannot be read.
    """
    found: dict[str, Checkpoint] = {}
    for folder in folders:
        found.update((item.path, item) for item in find_checkpoints(folder))
    checkpoints = chosen(found.values(), arguments.shard)
    bar = ProgressBar(wish.verb, 1)
    try:
        outcomes = run_pool(checkpoints, wish, n_threads(arguments.threads), bar.update)
        return report(outcomes, len(checkpoints), as_json=arguments.json)
    finally:
        bar.finish()


def chosen(checkpoints: Iterable[Checkpoint], shard: tuple[int, int] | None) -> list[Checkpoint]:
    """Return the checkpoints that belong to a part of them."""
    return [item for item in checkpoints if shard is None or in_shard(item.path, *shard)]


def refuse(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse options that make no sense for many checkpoints.

    Raises:
        UsageError: one was given.
    """
    for name in names:
        if getattr(arguments, name.replace("-", "_")):
            raise UsageError(f"--{name} does not go with --recursive")


def report(outcomes: Iterable[Outcome], total: int, *, as_json: bool) -> int:
    """Print a line for each checkpoint as it ends, and a summary; return the exit status.

    Args:
        outcomes: as they come.
        total: how many there will be.
        as_json: print JSON objects, one in a line.
    """
    counts = dict.fromkeys((DONE, NOTHING, FAILED), 0)
    before = after = 0
    for outcome in outcomes:
        counts[outcome.verdict] += 1
        before += outcome.bytes_before
        after += outcome.bytes_after
        print(json.dumps(outcome.to_json()) if as_json else _line(outcome), flush=True)
    summary: dict[str, Any] = {"checkpoints": total, **counts, "bytes_before": before}
    if after:
        summary["bytes_after"] = after
    if as_json:
        print(json.dumps({"summary": summary}))
    else:
        sizes = f", {format_size(before)}" + (f" -> {format_size(after)}" if after else "")
        verdicts = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"total: {total} checkpoints: {verdicts}{sizes}")
    return min(counts[FAILED], MOST_FAILED)


def _line(outcome: Outcome) -> str:
    path = outcome.path if outcome.path.isprintable() else repr(outcome.path)
    return f"{path}: {'FAILED: ' if not outcome.ok else ''}{outcome.message}"
