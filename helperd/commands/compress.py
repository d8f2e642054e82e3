"""``helperd compress``: compress the memory of an uncompressed checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

from helperd import errors
from helperd.commands.sizes import format_size, parse_size
from helperd.images.compress import MAX_ACCELERATION, CompressReport, compress_directory
from helperd.images.directory import PARENT_NAME


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "compress",
        help="compress the memory pages of checkpoints",
        description=(
            "Compress the memory pages of uncompressed checkpoints with LZ4, as criu dump"
            " --compress does. For a chain of pre-dumps, name all its directories."
        ),
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="image directory")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--output",
        metavar="OUT",
        help="write a copy: of one DIR to OUT, of several to OUT/<name of DIR>",
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="replace the files of DIR; it stays a complete checkpoint at every moment",
    )
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compress each directory and print what was saved; return the exit status.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    region_bytes = 0 if args.region is None else parse_size(args.region)
    if args.region is not None and region_bytes == 0:
        raise errors.UsageError("--region 0 is not possible; leave it out to compress per page")
    reports = []
    for path, output in _outputs(args.directories, args.output):
        report = compress_directory(
            path,
            output=output,
            in_place=args.in_place,
            region_bytes=region_bytes,
            acceleration=args.acceleration,
        )
        reports.append(report)
        _print_report(report, named=len(args.directories) > 1)
    files = [file for report in reports for file in report.files]
    print(
        _line(
            "total",
            sum(file.n_pages for file in files),
            sum(file.bytes_before for file in files),
            sum(file.bytes_after for file in files),
        )
    )
    if args.output is not None:
        _warn_of_parents(zip(args.directories, (report.path for report in reports), strict=True))
    return errors.EXIT_OK


def _outputs(directories: list[str], output: str | None) -> list[tuple[str, str | None]]:
    """Return each directory with the directory for its copy, made up to its last component."""
    if output is None or len(directories) == 1:
        return [(path, output) for path in directories]
    names = [os.path.basename(os.path.abspath(path)) for path in directories]
    for name in names:
        if not name or names.count(name) > 1:
            raise errors.UsageError(
                f"several directories are called {name!r}; compress them to an --output each"
            )
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as exc:
        raise errors.from_errno(exc.errno or 0, f"cannot make {output}") from exc
    return [
        (path, os.path.join(output, name)) for path, name in zip(directories, names, strict=True)
    ]


def _print_report(report: CompressReport, *, named: bool) -> None:
    for file in report.files:
        name = os.path.join(report.path, file.name) if named else file.name
        print(_line(name, file.n_pages, file.bytes_before, file.bytes_after))


def _line(name: str, n_pages: int, before: int, after: int) -> str:
    saved = 100 * (before - after) / before if before else 0.0
    sizes = f"{format_size(before)} -> {format_size(after)}"
    return f"{name}: {n_pages} pages ({sizes}, {saved:.1f}% saved)"


def _warn_of_parents(copies: Iterable[tuple[str, str]]) -> None:
    """Warn of copies whose parent link, kept as it was, leads to other images than before."""
    pairs = [(os.path.realpath(path), os.path.realpath(output)) for path, output in copies]
    copy_of = dict(pairs)
    for path, output in pairs:
        if not os.path.islink(os.path.join(output, PARENT_NAME)):
            continue
        parent = os.path.realpath(os.path.join(path, PARENT_NAME))
        link = os.path.join(output, PARENT_NAME)
        if os.path.realpath(link) not in (parent, copy_of.get(parent)):
            print(
                f"helperd: warning: {link} -> {os.readlink(link)} does not lead to the parent"
                f" {parent}, nor to a copy of it made now: put its images there before a restore",
                file=sys.stderr,
            )
