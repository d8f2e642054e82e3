"""``helperd serve --socket PATH``: a warm helper for whoever connects."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from helperd.errors import UsageError
from helperd.modes import ON, SANDBOX_MODES
from helperd.options import MAX_THREADS, parse_size
from helperd.reports.log import DEBUG, DEFAULT_LEVEL, JOURNAL, JSON, TEXT
from helperd.reports.openlog import open_log

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="serve restorers from a warm process, each in a session of its own",
        description="Listen on a Unix socket. Each client gets a worker process with its own"
        " user, group and rights, which serves it as a directly spawned helper would.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--socket", metavar="PATH", help="where to listen (default: the socket that systemd passes)"
    )
    parser.add_argument(
        "--socket-mode",
        metavar="OCTAL",
        default="600",
        help="who may connect (default 600: the server's own user; 666 is safe: the kernel judges"
        " each client by its own rights)",
    )
    parser.add_argument(
        "--max-sessions", metavar="N", type=int, default=128, help="at once (default 128)"
    )
    parser.add_argument(
        "--max-memory", metavar="SIZE", default="1G", help="of a session's process (default 1G)"
    )
    parser.add_argument(
        "--max-request", metavar="SIZE", default="256G", help="of one request (default 256G)"
    )
    parser.add_argument(
        *("--threads",), metavar="N", type=int, default=0, help="of a session (default: the CPUs)"
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=int,
        default=300,
        help="end sessions from which nothing comes for so long (default 300; 0: never)",
    )
    parser.add_argument(
        "--sandbox",
        choices=SANDBOX_MODES,
        default=ON,
        help="the least confinement of workers (default on)",
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="keep this file up to date, in Prometheus' text format"
    )
    parser.add_argument(
        *("-v", "--verbosity"),
        metavar="0..4",
        type=int,
        choices=range(DEBUG + 1),
        default=DEFAULT_LEVEL,
        help="of the server's log (default 2: warnings)",
    )
    parser.add_argument("--log-file", metavar="FILE", help="append the log to FILE, not stderr")
    parser.add_argument("--log-json", action="store_true", help="log JSON objects, one in a line")
    parser.add_argument("--journal", action="store_true", help="log to journald")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    # Imported here: other commands and --help need none of it.
    from helperd.server import systemd
    from helperd.server.limits import Limits
    from helperd.server.listener import Server, listen
    from helperd.server.metrics import Metrics

    if arguments.journal and arguments.log_file:
        raise UsageError("--journal and --log-file exclude each other")
    if arguments.max_sessions < 1 or not 0 <= arguments.threads <= MAX_THREADS:
        raise UsageError(f"--max-sessions from 1, --threads up to {MAX_THREADS}")
    limits = Limits(
        sessions=arguments.max_sessions,
        memory_bytes=parse_size(arguments.max_memory),
        max_pages=pages_of(arguments.max_request),
        threads=arguments.threads,
        idle_seconds=max(0, arguments.idle_timeout),
        sandbox=arguments.sandbox,
    )
    limits.make_room()
    layout = JOURNAL if arguments.journal else JSON if arguments.log_json else TEXT
    log = open_log(arguments.verbosity, arguments.log_file, layout)
    try:
        passed = systemd.listening_socket()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if (passed is None) == (arguments.socket is None):
        raise UsageError("--socket PATH, unless systemd passes the socket; one of the two")
    listener = passed or listen(arguments.socket, socket_mode(arguments.socket_mode))
    try:
        return Server(listener, limits, Metrics(arguments.metrics), log).run()
    finally:
        if passed is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(arguments.socket)


def pages_of(size: str) -> int:
    """Return the pages of a size.

    Raises:
        UsageError: it is less than one.
    """
    from helperd.blocks import PAGE_SIZE

    pages = parse_size(size) // PAGE_SIZE
    if not pages:
        raise UsageError(f"--max-request {size}: less than a page")
    return pages


def socket_mode(octal: str) -> int:
    """Return file permissions from their usual spelling.

    Raises:
        UsageError: they are not octal permissions.
    """
    try:
        mode = int(octal, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise UsageError(f"--socket-mode {octal!r}: permissions such as 600 or 666")
    return mode
