"""``helperd complete``: make a directory whole whose pages came through the page server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helperd.errors import EXIT_OK

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add the command and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "complete",
        help="make image directories whole that the page server has filled",
        description="The other images of a dump are written by criu, which does not know what the"
        " page server has made of the pages. When they are all in one DIR, this lets its inventory"
        " say how the pages are compressed; before, nothing can be restored from it. It also mends"
        " any other inventory that check finds to disagree with the pagemaps.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="image directory")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Complete each directory; return the exit status.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    from helperd.images.inventory import Schema
    from helperd.offline.complete import complete_directory

    for path in arguments.directories:
        report = complete_directory(path)
        if report.changed and report.schema is Schema.NONE:
            print(f"{path}: complete; not compressed")
        elif report.changed:
            print(f"{path}: complete; compressed, schema {report.schema.value}")
        elif report.schema is Schema.NONE:
            print(f"{path}: nothing to do, it is not compressed")
        else:
            print(f"{path}: nothing to do, its inventory is right")
    return EXIT_OK
