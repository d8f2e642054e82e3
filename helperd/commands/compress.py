"""``helperd compress``: compress the memory of a checkpoint."""

from __future__ import annotations

import argparse
import functools

from helperd.codec import libblosc
from helperd.commands import conversion
from helperd.commands.collection import add_recursive, refuse, run_below
from helperd.commands.form import add_form
from helperd.commands.output import note
from helperd.fleet.jobs import COMPRESS, Wish
from helperd.images.inventory import Schema
from helperd.offline.compress import compress_directory


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "compress",
        help="compress the memory pages of checkpoints",
        description=(
            "Compress the memory pages of checkpoints with LZ4, as criu dump --compress does."
            " A directory changes all at once: killed at any moment, it is a complete checkpoint,"
            " the old one or the new one."
        ),
    )
    conversion.add_options(parser)
    add_recursive(parser)
    parser.add_argument("--json", action="store_true", help="with --recursive: print JSON objects")
    add_form(parser)
    parser.add_argument(
        "--force", action="store_true", help="compress again what is compressed already"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress each directory and print what was saved; return the exit status.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    if arguments.region is None and libblosc.in_use() is None:
        note(
            "helperd: libblosc is not there, so pages are compressed one by one: slower, no worse"
            " (pip install helperd[fast])\n"
        )
    if arguments.recursive:
        refuse(arguments, "output", "outer", "chain", "force")
        wish = Wish(
            COMPRESS,
            region_bytes=arguments.region,
            acceleration=arguments.acceleration,
            schema=arguments.schema,
            in_place=arguments.in_place,
        )
        return run_below(arguments, arguments.directories, wish)
    compress = functools.partial(
        compress_directory,
        region_bytes=arguments.region,
        acceleration=arguments.acceleration,
        schema=None if arguments.schema is None else Schema(arguments.schema),
        force=arguments.force,
    )
    return conversion.run(arguments, compress, "already compressed")
