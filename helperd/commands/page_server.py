"""``helperd page-server``: receive a dump's pages in the place of ``criu page-server``."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from helperd.commands import arguments as values
from helperd.commands.criu_options import (
    add_address_options,
    add_daemon_options,
    listen,
    open_daemon_log,
    server_tls,
    work_path,
)
from helperd.commands.form import add_form
from helperd.errors import EXIT_OK, UsageError
from helperd.modes import ON, SANDBOX_MODES, SIZES
from helperd.options import MAX_IDLE_SECONDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from helperd.page_server.client import Door
    from helperd.page_server.storage import Storage
    from helperd.reports.log import Log

_PAGE, _NONE = "page", "none"
_MAX_SESSIONS = 1 << 16
_MOST_BYTES = "1024T"
#: How long a client may wait with its first bytes while it keeps others out; CRIU sends at once.
_FIRST_SECONDS = 300


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "page-server",
        help="receive the pages of dumps by any CRIU, and store them compressed",
        description="Take the place of criu page-server: criu dump --page-server, of any version"
        " since 3.15, sends the pages, and what is stored is compressed. With a COMMAND, such as"
        " criu dump -t PID -D images/, that is run with this server as its page server.",
    )
    parser.set_defaults(run=run)
    add_daemon_options(parser)
    add_address_options(parser)
    parser.add_argument(
        "--ps-socket",
        metavar="FD",
        type=values.descriptor,
        help="serve one client, connected at this descriptor",
    )
    parser.add_argument(
        "--once", action="store_true", help="serve one client, then exit with its status, as criu"
    )
    parser.add_argument(
        "--prev-images-dir",
        metavar="DIR",
        help="images of the dump before, relative to the image directory",
    )
    parser.add_argument(
        "--auto-dedup",
        action="store_true",
        help="free in the images of the dumps before what the new ones supersede",
    )
    parser.add_argument(
        "--lazy-pages",
        action="store_true",
        help="serve the pages of the image directory to criu lazy-pages --page-server, to any"
        " number of clients; nothing is received",
    )
    parser.add_argument(
        "--compress",
        choices=(_PAGE, _NONE),
        default=_PAGE,
        help="page: with LZ4, each page by itself (default); none: as criu writes it, to the byte",
    )
    add_form(parser, schema=SIZES)
    parser.add_argument(
        "--wire",
        choices=("auto", "24", "32"),
        default="auto",
        help="bytes of the client's headers: 24 up to CRIU 4.1, 32 from 4.2 on (default auto)",
    )
    parser.add_argument(
        *("--threads",),
        metavar="N",
        type=values.threads,
        default=0,
        help="of a session (default: the CPUs)",
    )
    parser.add_argument(
        *("--max-sessions",),
        metavar="N",
        type=values.number(1, _MAX_SESSIONS),
        default=16,
        help="at once (default 16)",
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=values.number(0, MAX_IDLE_SECONDS),
        default=0,
        help="end a session from which nothing comes for so long (default 0: never, but"
        f" {_FIRST_SECONDS} for its first message where there are several)",
    )
    parser.add_argument(
        "--max-bytes",
        metavar="SIZE",
        type=values.size("1M", _MOST_BYTES),
        help="what the images of a session may take on the disk (default: no limit)",
    )
    parser.add_argument(
        "--keep-free",
        metavar="SIZE",
        type=values.size("1M", _MOST_BYTES),
        default=0,
        help="what stays free on the disk, whatever all sessions send (default: nothing)",
    )
    parser.add_argument(
        "--sandbox",
        choices=SANDBOX_MODES,
        default=ON,
        help="how to confine a session (default on: as far as the kernel can)",
    )
    parser.add_argument(
        "--stats", metavar="FILE", help="at the end write to FILE what was done, as JSON"
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="keep this file up to date, in Prometheus' text format"
    )
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="behind --: the dump to run")


def run(arguments: argparse.Namespace) -> int:
    """Serve; return the exit code.

    Raises:
        HelperdError: the options make no sense, or a session of its own has failed.
    """
    from helperd.images.directory import ImageDirectory
    from helperd.page_server.client import COUNTERS, Door
    from helperd.reports.statsfile import open_stats, write_stats
    from helperd.server import systemd

    try:
        passed = systemd.listening_socket(stream=True)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _check(arguments, passed)
    storage = storage_of(arguments)
    ImageDirectory(storage.path)  # Or else every client would be told in its turn.
    log = open_daemon_log(arguments)
    idle_seconds = arguments.idle_timeout
    tls = server_tls(arguments)
    door = Door(
        storage,
        tls,
        idle_seconds,
        log,
        lazy_pages=arguments.lazy_pages,
        sandbox=arguments.sandbox,
        first_seconds=_FIRST_SECONDS if _is_crowded(arguments) else 0,
    )
    stats_fd = open_stats(arguments.stats)
    totals: dict[str, int | float] = dict.fromkeys(COUNTERS, 0)

    def ended(_code: int, numbers: dict[str, int | float]) -> None:
        for name in COUNTERS:
            totals[name] += max(0, numbers.get(name, 0))

    code = _serve(arguments, door, passed, ended, log)
    if stats_fd is not None:
        write_stats(stats_fd, json.dumps({**totals, "exit_code": code}, indent=2) + "\n")
    return code


def _serve(
    arguments: argparse.Namespace,
    door: Door,
    passed: socket.socket | None,
    ended: Callable[[int, dict[str, int | float]], None],
    log: Log,
) -> int:
    from helperd.page_server.client import COUNTERS
    from helperd.page_server.listener import Listener
    from helperd.server import daemon
    from helperd.server.metrics import Metrics

    if arguments.command:
        from helperd.page_server import command

        code, numbers = command.run(door, arguments.command)
        ended(code, numbers)
        return code
    if arguments.ps_socket is not None:
        try:
            client = socket.socket(fileno=arguments.ps_socket)
        except OSError as error:
            raise UsageError(f"--ps-socket {arguments.ps_socket}: {error.strerror}") from error
        code, numbers = door.serve(client)
        ended(code, numbers)
        return code
    listener = passed or listen(arguments)
    if arguments.daemon and not daemon.detach():
        return EXIT_OK
    if arguments.pidfile is not None:
        daemon.write_pidfile(work_path(arguments, arguments.pidfile))
    if passed is None:
        host, port = listener.getsockname()[:2]
        log.info(f"waiting for connections at {host} port {port}", event="listening", port=port)
    daemon.say_ready(arguments.status_fd)
    if arguments.once:
        with listener:
            client, _ = listener.accept()
        code, numbers = door.serve(client)
        ended(code, numbers)
        return code
    metrics = Metrics(arguments.metrics, log, counters=COUNTERS, prefix="helperd_page_server_")
    metrics.begin()
    return Listener(
        listener,
        door.serve,
        max_sessions=arguments.max_sessions,
        metrics=metrics,
        ended=ended,
        log=log,
    ).run()


def storage_of(arguments: argparse.Namespace) -> Storage:
    """Return what becomes of the pages, as the options say.

    Raises:
        UsageError: they make no sense.
    """
    import os

    from helperd.images.inventory import Schema
    from helperd.offline.compress import checked_acceleration, region_pages_of
    from helperd.page_server.storage import Storage
    from helperd.wire.page_messages import Layout

    compresses = arguments.compress != _NONE
    if arguments.region is not None and not compresses:
        raise UsageError("--region and --compress none exclude each other")
    return Storage(
        path=os.path.abspath(arguments.images_dir),
        schema=Schema(arguments.schema) if compresses else Schema.NONE,
        region_pages=region_pages_of(arguments.region) or 0,
        acceleration=checked_acceleration(arguments.acceleration),
        threads=arguments.threads,
        replace=_has_one_client(arguments),
        parent=arguments.prev_images_dir,
        layout=None if arguments.wire == "auto" else Layout(int(arguments.wire)),
        dedup=arguments.auto_dedup,
        max_bytes=arguments.max_bytes,
        keep_free=arguments.keep_free,
    )


def _has_one_client(arguments: argparse.Namespace) -> bool:
    return arguments.once or arguments.ps_socket is not None or bool(arguments.command)


def _is_crowded(arguments: argparse.Namespace) -> bool:
    """Return whether a client may keep others out. Who fetches pages may think before it asks."""
    return not _has_one_client(arguments) and not arguments.lazy_pages


def _check(arguments: argparse.Namespace, passed: socket.socket | None) -> None:
    ways = (arguments.port is not None, arguments.ps_socket is not None, bool(arguments.command))
    if sum(ways) + (passed is not None) != 1:
        raise UsageError(
            "give one of --port, --ps-socket and -- COMMAND, unless systemd passes a socket"
        )
    if not ways[0] and arguments.daemon:
        raise UsageError("--daemon goes with --port")
    if arguments.lazy_pages and arguments.command:
        raise UsageError("--lazy-pages and a COMMAND exclude each other")
