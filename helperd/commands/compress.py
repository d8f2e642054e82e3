"""``helperd compress``: compress the memory of a checkpoint."""

from __future__ import annotations

import argparse
import functools
import sys

from helperd.codec import libblosc
from helperd.commands import conversion
from helperd.errors import UsageError
from helperd.images.inventory import Schema
from helperd.offline.compress import MAX_ACCELERATION, compress_directory
from helperd.options import parse_size


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
    parser.add_argument(
        "--region",
        metavar="SIZE",
        help="compress SIZE bytes at once, 4K to 4M (default: each page by itself)",
    )
    parser.add_argument(
        "--acceleration",
        metavar="N",
        type=int,
        default=1,
        help=f"LZ4 acceleration, 1 (smallest, default) to {MAX_ACCELERATION} (fastest)",
    )
    parser.add_argument(
        "--schema",
        choices=[Schema.SIZES.value, Schema.BLOCKS.value],
        help="how pagemaps describe blocks: sizes, of CRIU's pull request 2895 (default), or"
        " blocks, of merged CRIU",
    )
    parser.add_argument(
        "--force", action="store_true", help="compress again what is compressed already"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress each directory and print what was saved; return the exit status.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    region_bytes = None if arguments.region is None else parse_size(arguments.region)
    if region_bytes == 0:
        raise UsageError("--region 0 is not possible; leave it out to compress per page")
    if region_bytes is None and libblosc.in_use() is None:
        print(
            "helperd: libblosc is not there, so pages are compressed one by one: slower, no worse"
            " (pip install helperd[fast])",
            file=sys.stderr,
        )
    compress = functools.partial(
        compress_directory,
        region_bytes=region_bytes,
        acceleration=arguments.acceleration,
        schema=None if arguments.schema is None else Schema(arguments.schema),
        force=arguments.force,
    )
    return conversion.run(arguments, compress, "already compressed")
