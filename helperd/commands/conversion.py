"""What ``helperd compress`` and ``helperd decompress`` have in common on the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

from helperd.commands.arguments import add_threads
from helperd.commands.output import note
from helperd.commands.progress import ProgressBar
from helperd.commands.sizes import format_size
from helperd.errors import EXIT_OK, UsageError, from_errno
from helperd.images.chain import with_parents
from helperd.images.directory import PARENT_NAME
from helperd.images.outer import OUTERS
from helperd.offline.convert_directory import ConvertReport

#: Converts one directory: called with its path and the keywords of ``carry_out``, and with_parents.
Convert = Callable[..., ConvertReport]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which directories are converted, and to where."""
    parser.add_argument(
        "directories", nargs="+", metavar="DIR", help="image directory, or checkpoint archive"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output",
        metavar="OUT",
        help="leave DIR as it is and write a copy: of one DIR to OUT, of several to"
        " OUT/<name of DIR>",
    )
    where.add_argument(
        "--in-place", action="store_true", help="keep no backups (default: NAME.img.bak)"
    )
    parser.add_argument(
        "--outer",
        choices=OUTERS,
        help="how a new archive is compressed as a whole (default: as the old one)",
    )
    parser.add_argument("--chain", action="store_true", help="take the parents of each DIR along")
    add_threads(parser)


def run(arguments: argparse.Namespace, convert: Convert, already: str) -> int:
    """Convert the directories and print what was saved; return the exit status.

    All are looked at before the first is changed.

    Args:
        arguments: of :func:`add_options`.
        convert: does it.
        already: what a directory is in which nothing is to be done.

    Raises:
        HelperdError: what went wrong; the directories before were done.
    """
    directories = (
        with_parents(arguments.directories) if arguments.chain else list(arguments.directories)
    )
    pairs = _outputs(directories, arguments.output)
    for path, output in pairs if len(pairs) > 1 else ():
        convert(
            path,
            output=output,
            in_place=arguments.in_place,
            outer=arguments.outer,
            with_parents=arguments.chain,
            threads=arguments.threads,
            dry_run=True,
        )
    if arguments.output is not None and len(pairs) > 1:
        _make(arguments.output)
    reports = []
    for path, output in pairs:
        bar = ProgressBar(path, 1)
        try:
            report = convert(
                path,
                output=output,
                in_place=arguments.in_place,
                outer=arguments.outer,
                with_parents=arguments.chain,
                threads=arguments.threads,
                progress=bar.update,
            )
        finally:
            bar.finish()
        reports.append(report)
        for line in report.notes:
            note(f"helperd: note: {line}\n")
        _print_report(report, path, already, named=len(pairs) > 1)
    files = [file for report in reports for file in report.files]
    print(
        _line(
            "total",
            sum(file.n_pages for file in files),
            sum(file.bytes_before for file in files),
            sum(file.bytes_after for file in files),
        )
    )
    if arguments.output is not None:
        _warn_of_parents(zip(directories, (report.path for report in reports), strict=True))
    return EXIT_OK


def _outputs(directories: list[str], output: str | None) -> list[tuple[str, str | None]]:
    """Return each directory with the directory for its copy."""
    if output is None or len(directories) == 1:
        return [(path, output) for path in directories]
    names = [os.path.basename(os.path.abspath(path)) for path in directories]
    for name in names:
        if not name or names.count(name) > 1:
            raise UsageError(
                f"several directories are called {name!r}; convert them to an --output each"
            )
    return [
        (path, os.path.join(output, name)) for path, name in zip(directories, names, strict=True)
    ]


def _make(output: str) -> None:
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise from_errno(error.errno or 0, f"cannot make {output}") from error


def _print_report(report: ConvertReport, path: str, already: str, *, named: bool) -> None:
    if not report.changed:
        print(f"Checkpoint in {path} is {already}")
    for file in report.files:
        name = os.path.join(report.path, file.name) if named else file.name
        print(_line(name, file.n_pages, file.bytes_before, file.bytes_after))


def _line(name: str, n_pages: int, before: int, after: int) -> str:
    sizes = f"{format_size(before)} -> {format_size(after)}"
    if after > before:
        return f"{name}: {n_pages} pages ({sizes})"
    saved = 100 * (before - after) / before if before else 0.0
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
            note(
                f"helperd: warning: {link} -> {os.readlink(link)} does not lead to the parent"
                f" {parent}, nor to a copy of it made now: put its images there before a restore\n"
            )
