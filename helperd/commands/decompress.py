"""``helperd decompress``: decompress the memory of a checkpoint."""

from __future__ import annotations

import argparse

from helperd.commands import conversion
from helperd.offline.decompress import decompress_directory


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "decompress",
        help="decompress the memory pages of checkpoints",
        description=(
            "Decompress the memory pages of checkpoints, so that a CRIU without compression can"
            " restore them. A directory changes all at once, as with compress."
        ),
    )
    conversion.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decompress each directory and print what it took; return the exit status.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    return conversion.run(arguments, decompress_directory, "not compressed")
