"""``helperd unpack``: an archive of a container engine, ready for a restore."""

from __future__ import annotations

import argparse

from helperd.commands.arguments import add_threads
from helperd.commands.progress import ProgressBar
from helperd.commands.sizes import format_size
from helperd.errors import EXIT_OK
from helperd.offline.unpack import unpack_archive


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "unpack",
        help="unpack a checkpoint archive, its pages decompressed if wanted",
        description="Unpack the archive that a container engine has made of a checkpoint. Its pages"
        " go straight to their place, decompressed on the way with --decompress.",
    )
    parser.add_argument("archive", metavar="ARCHIVE", help="a tar, as it is or compressed")
    parser.add_argument("output", metavar="DIR", help="a new folder, or an empty one")
    parser.add_argument(
        "--decompress", action="store_true", help="the pages, so that every CRIU can restore them"
    )
    add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Unpack the archive and print what is where; return the exit status.

    Raises:
        HelperdError: what went wrong.
    """
    bar = ProgressBar(arguments.archive, 1)
    try:
        report = unpack_archive(
            arguments.archive,
            arguments.output,
            decompress=arguments.decompress,
            threads=arguments.threads,
            progress=bar.update,
        )
    finally:
        bar.finish()
    for checkpoint in report.checkpoints:
        print(checkpoint)
    print(f"total: {report.n_files} files, {format_size(report.n_bytes)}")
    return EXIT_OK
