"""``helperd serve --socket PATH``: a warm helper for whoever connects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helperd.blocks import PAGE_SIZE
from helperd.commands import arguments as values
from helperd.errors import UsageError
from helperd.modes import ON, SANDBOX_MODES
from helperd.options import MAX_IDLE_SECONDS, MAX_REQUEST
from helperd.reports.log import DEBUG, DEFAULT_LEVEL, JOURNAL, JSON, TEXT
from helperd.reports.openlog import open_log

if TYPE_CHECKING:
    import argparse

_MAX_SESSIONS = 1 << 16
#: RLIMIT_DATA takes more, and with less no process of a session gets anywhere.
_MEMORY = ("32M", "1024T")


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
        type=values.mode,
        default=0o600,
        help="who may connect (default 600: the server's own user; 666 is safe: the kernel judges"
        " each client by its own rights)",
    )
    parser.add_argument(
        "--max-sessions",
        metavar="N",
        type=values.number(1, _MAX_SESSIONS),
        default=128,
        help="at once (default 128)",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=values.size(*_MEMORY),
        default="1G",
        help="of a session's process (default 1G)",
    )
    parser.add_argument(
        "--max-request",
        metavar="SIZE",
        type=values.size(str(PAGE_SIZE), MAX_REQUEST),
        default="256G",
        help="of one request (default 256G)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=values.threads,
        default=0,
        help="of a session (default: the CPUs)",
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=values.number(0, MAX_IDLE_SECONDS),
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
        type=values.number(0, DEBUG),
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
    from helperd.kernel.descriptors import close_all_but
    from helperd.server import systemd
    from helperd.server.endpoint import Endpoint
    from helperd.server.limits import Limits
    from helperd.server.listener import Server
    from helperd.server.metrics import Metrics

    if arguments.journal and arguments.log_file:
        raise UsageError("--journal and --log-file exclude each other")
    limits = Limits(
        sessions=arguments.max_sessions,
        memory_bytes=arguments.max_memory,
        max_pages=arguments.max_request // PAGE_SIZE,
        threads=arguments.threads,
        idle_seconds=arguments.idle_timeout,
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
    # What a spawner has let slip through is not the server's to keep open for years.
    close_all_but([*log.fds, *(() if passed is None else [passed.fileno()])])
    metrics = Metrics(arguments.metrics, log)
    metrics.begin()
    endpoint = (
        Endpoint.listen(arguments.socket, arguments.socket_mode)
        if passed is None
        else Endpoint(passed)
    )
    try:
        return Server(endpoint, limits, metrics, log).run()
    finally:
        endpoint.close()
