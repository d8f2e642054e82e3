"""``helperd lazy-pages``: restore on demand with a stock CRIU, from images of any kind."""

from __future__ import annotations

import os
import sys

from helperd.commands import arguments as values
from helperd.commands.criu_options import (
    add_address_options,
    add_daemon_options,
    client_tls,
    open_daemon_log,
    work_path,
)
from helperd.errors import UsageError, describe_errno
from helperd.modes import ON, SANDBOX_MODES

# Not from typing, here and in all that is imported before a restore begins: that takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from helperd.lazy_pages.channel import Channel
    from helperd.lazy_pages.settings import Settings

_MOST_PORT = 65535
_FILL_MODES = ("now", "idle", "never")
_BLOCK = "block"
_MOST_AROUND = 1024
#: More threads than this fill no faster: they would wait for the memory, and for each other.
_MOST_THREADS = 4


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "lazy-pages",
        help="bring the memory of a process that any CRIU restores with --lazy-pages",
        description="Take the place of criu lazy-pages: a process that criu restore --lazy-pages"
        " starts runs at once, and its memory arrives behind it, what it touches first. The images"
        " may be compressed, and have parents. With a COMMAND, such as criu restore -D {}"
        " --lazy-pages, that is run, with {} for a directory that a stock CRIU can read.",
    )
    parser.set_defaults(run=run)
    add_daemon_options(parser)
    add_address_options(parser)
    parser.add_argument(
        "--page-server",
        metavar="HOST:PORT",
        nargs="?",
        const="",
        help="fetch the pages that are in no image from criu dump --lazy-pages there (alone: at"
        " --address and --port)",
    )
    parser.add_argument(
        "--wire",
        choices=("auto", "24", "32"),
        default="auto",
        help="bytes of the page server's headers: 24 up to CRIU 4.1, 32 from 4.2 on (default auto:"
        " as the images tell)",
    )
    parser.add_argument(
        "--stand-in",
        metavar="OUT",
        help="make the directory that a stock CRIU can restore from as OUT, and leave it there"
        " (default: one that is removed at the end, where the images need it)",
    )
    parser.add_argument(
        "--listen", action="store_true", help="serve one restore after another, and several at once"
    )
    parser.add_argument(
        "--around",
        metavar=f"{_BLOCK}|PAGES",
        default=_BLOCK,
        help="what to bring with a page that is asked for: its block (default; 64 pages where"
        " blocks are single pages), or so many pages",
    )
    parser.add_argument(
        "--fill",
        choices=_FILL_MODES,
        default=_FILL_MODES[0],
        help="when to bring what nobody has asked for (default now; idle: while nobody asks)",
    )
    parser.add_argument(
        "--rate",
        metavar="SIZE",
        type=values.size("4K", "1024T"),
        help="bring no more than SIZE in a second unasked",
    )
    parser.add_argument(
        "--record", metavar="FILE", help="write to FILE what was asked for, in order"
    )
    parser.add_argument(
        "--prefetch", metavar="FILE", help="bring first what --record has written to FILE"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=values.threads,
        default=0,
        help=f"that fill (default: the CPUs, up to {_MOST_THREADS})",
    )
    parser.add_argument(
        "--sandbox",
        choices=SANDBOX_MODES,
        default=ON,
        help="how to confine the worker (default on: as far as the kernel can)",
    )
    parser.add_argument(
        "--stats", metavar="FILE", help="at the end write to FILE what was done, as JSON"
    )
    parser.add_argument(
        "--svg", metavar="FILE", help="at the end draw it into FILE: memory and faults over time"
    )
    parser.add_argument(
        "command", metavar="COMMAND", nargs="*", help="behind --: the restore to run"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve; return the exit code.

    Raises:
        HelperdError: the options make no sense, or the images are not whole.
    """
    from helperd.lazy_pages.service import Request, run

    log = open_daemon_log(arguments)
    bar = None
    if sys.stderr is not None and sys.stderr.isatty() and not arguments.daemon:
        from helperd.blocks import PAGE_SIZE
        from helperd.commands.progress import ProgressBar

        bar = ProgressBar("restore", PAGE_SIZE)
    pidfile = None if arguments.pidfile is None else work_path(arguments, arguments.pidfile)
    request = Request(
        arguments.images_dir,
        work=arguments.work_dir,
        stand_in=arguments.stand_in,
        command=arguments.command,
        many=arguments.listen,
        background=arguments.daemon,
        pidfile=pidfile,
        stats=arguments.stats,
        svg=arguments.svg,
        progress=None if bar is None else bar.update,
        status_fd=arguments.status_fd,
        settings=_settings(arguments, progress=bar is not None),
    )
    try:
        return run(request, log)
    finally:
        if bar is not None:
            bar.finish()


def _settings(arguments: argparse.Namespace, *, progress: bool) -> Settings:
    from helperd.lazy_pages.settings import Settings

    around = 0
    if arguments.around != _BLOCK:
        around = int(arguments.around) if arguments.around.isdecimal() else 0
        if not 1 <= around <= _MOST_AROUND:
            raise UsageError(f"--around {arguments.around}: {_BLOCK}, or 1 to {_MOST_AROUND} pages")
    record_fd = -1
    prefetch = []
    if arguments.prefetch is not None:
        from helperd.lazy_pages.workingset import read_working_set

        prefetch = read_working_set(arguments.prefetch)
    if arguments.record is not None:
        record_fd = _open_record(arguments.record)
    return Settings(
        fill=arguments.fill,
        rate=arguments.rate or 0,
        around=around,
        prefetch=prefetch,
        record_fd=record_fd,
        page_server=_connect(arguments),
        header_bytes=0 if arguments.wire == "auto" else int(arguments.wire),
        sandbox=arguments.sandbox,
        progress=progress,
        threads=arguments.threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS),
    )


def _open_record(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--record {path}: {describe_errno(error.errno or 0)}") from error


def _connect(arguments: argparse.Namespace) -> Channel | None:
    if arguments.page_server is None:
        return None
    from helperd.lazy_pages.channel import connect

    address, port = arguments.address, arguments.port
    if arguments.page_server:
        address, _, number = arguments.page_server.rpartition(":")
        port = int(number) if number.isdecimal() else None
    if not address or port is None or not 0 < port <= _MOST_PORT:
        raise UsageError("--page-server HOST:PORT, or with --address and --port: from 1 to 65535")
    return connect(address.strip("[]"), port, client_tls(arguments))
