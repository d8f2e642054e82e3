"""What compressed pages are to look like: the options of every command that compresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helperd.commands.arguments import number, size
from helperd.modes import BLOCKS, MAX_ACCELERATION, SIZES

if TYPE_CHECKING:
    import argparse


def add_form(parser: argparse.ArgumentParser, *, schema: str | None = None, who: str = "") -> None:
    """Add the options.

    Args:
        parser: of the command.
        schema: that is meant if none is named; None for the command to choose.
        who: which of several operations understand them, for their help: ``capture: ``.
    """
    parser.add_argument(
        "--region",
        metavar="SIZE",
        type=size("4K", "4M"),
        help=f"{who}compress SIZE bytes at once, 4K to 4M (default: each page by itself)",
    )
    parser.add_argument(
        "--acceleration",
        metavar="N",
        type=number(1, MAX_ACCELERATION),
        default=1,
        help=f"LZ4 acceleration, 1 (smallest, default) to {MAX_ACCELERATION} (fastest)",
    )
    parser.add_argument(
        "--schema",
        choices=[SIZES, BLOCKS],
        default=schema,
        help="how pagemaps describe blocks: sizes, of CRIU's pull request 2895 (default), or"
        " blocks, of merged CRIU",
    )
