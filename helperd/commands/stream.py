"""``helperd stream``: the other end of ``criu dump --stream`` and ``criu restore --stream``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helperd import __version__
from helperd.commands import arguments as values
from helperd.commands.form import add_form
from helperd.errors import UsageError
from helperd.modes import SIZES

if TYPE_CHECKING:
    import argparse

#: What stands behind ``--`` is a program to be run.
RUNS_PROGRAM = True

_MOST_CLIENTS = 1 << 20
_OPERATIONS = {
    "capture": "take in what criu dump --stream sends",
    "serve": "give criu restore --stream what it asks for",
    "extract": "put the files of shards into the images directory",
    "wait": "wait until what is captured is on disk (as a post-dump --action-script)",
}


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "stream",
        help="capture and serve CRIU's image streams, compressing and decoding on the way",
        usage="helperd stream -D DIR [options] {capture,serve,extract,wait} [-- CRIU ...]",
        description="The other end of criu dump --stream and criu restore --stream, with the"
        " options and the shards of criu-image-streamer. With a program behind -- (in which {}"
        " stands for DIR) images are kept in DIR and served from it; without, they go to and come"
        " from shards.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "operation",
        choices=_OPERATIONS,
        help="; ".join(f"{name}: {what}" for name, what in _OPERATIONS.items()),
    )
    parser.add_argument(
        *("-D", "--images-dir"), metavar="DIR", required=True, help="what CRIU is told with -D"
    )
    parser.add_argument("--version", action="version", version=f"helperd {__version__}")
    _add_shard_options(parser)
    _add_storage_options(parser)


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("-s", "--shard-fds"),
        metavar="FD,...",
        action="append",
        default=[],
        help="descriptors of the shards (default: stdout to capture, stdin to serve and extract)",
    )
    parser.add_argument(
        *("-e", "--ext-file-fds"),
        metavar="NAME:FD,...",
        action="append",
        default=[],
        help="further files of the image: read from FD when captured, written to FD else",
    )
    parser.add_argument(
        *("-p", "--progress-fd"),
        metavar="FD",
        type=values.descriptor,
        help="where progress is reported (default: stderr; nowhere with a program)",
    )
    parser.add_argument(
        "--tcp-listen-remap",
        metavar="OLD:NEW,...",
        action="append",
        default=[],
        help="serve: other ports for TCP sockets that listen",
    )


def _add_storage_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", metavar="DIR", help="capture: put the images into DIR, not into shards"
    )
    parser.add_argument(
        "--from", metavar="DIR", dest="source", help="serve: the images of DIR, not of shards"
    )
    parser.add_argument(
        "--compress",
        metavar="page",
        choices=["page"],
        help="capture, extract: compress each page by itself",
    )
    add_form(parser, schema=SIZES, who="capture, extract: ")
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="where files wait that cannot be passed on at once (default: the images directory)",
    )
    parser.add_argument(
        "--clients",
        metavar="N",
        type=values.number(0, _MOST_CLIENTS),
        default=1,
        help="serve: restores to serve before ending, several at once; 0: until SIGTERM",
    )
    parser.add_argument(
        "--lazy-pages",
        action="store_true",
        help="serve: bring the memory behind a process that criu restore --stream --lazy-pages"
        " starts",
    )
    parser.add_argument(
        "--no-hold",
        action="store_true",
        help="capture: do not hold the dumped processes until the images are on disk",
    )
    values.add_threads(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked for; return the exit status, the program's own if it has failed."""
    from helperd.streamer import front

    return front.run(
        front.Options(
            operation=arguments.operation,
            directory=arguments.images_dir,
            program=arguments.program,
            shards=[_number(word) for word in _words(arguments.shard_fds)],
            externals=dict(_pair(word) for word in _words(arguments.ext_file_fds)),
            progress_fd=arguments.progress_fd,
            ports=dict(_ports(word) for word in _words(arguments.tcp_listen_remap)),
            target=arguments.to,
            source=arguments.source,
            compression=_compression(arguments),
            spool=arguments.spool or arguments.images_dir,
            clients=arguments.clients,
            lazy=arguments.lazy_pages,
            hold=not arguments.no_hold,
            threads=arguments.threads,
        )
    )


def _compression(arguments: argparse.Namespace) -> Any:
    from helperd.images.inventory import Schema
    from helperd.offline.compress import region_pages_of
    from helperd.streamer.packer import Compression

    if arguments.compress is None and arguments.region is None:
        return None
    if arguments.compress is not None and arguments.region is not None:
        raise UsageError("--compress page and --region SIZE exclude each other")
    pages = region_pages_of(arguments.region) or 0
    # A region of one page is the per-page mode by another name.
    region_pages = 0 if pages == 1 else pages
    return Compression(Schema(arguments.schema), region_pages, arguments.acceleration)


def _words(lists: list[str]) -> list[str]:
    return [word for words in lists for word in words.split(",")]


def _number(word: str) -> int:
    if not word.isdecimal() or len(word) > 9:
        raise UsageError(f"{word!r} is no file descriptor")
    return int(word)


def _pair(word: str) -> tuple[str, int]:
    from helperd.errors import MalformedStream
    from helperd.wire.stream import check_name

    name, colon, fd = word.partition(":")
    try:
        check_name(name)
    except MalformedStream as error:
        raise UsageError(f"--ext-file-fds {word}: {error}") from error
    if not colon:
        raise UsageError(f"--ext-file-fds {word}: NAME:FD is expected")
    return name, _number(fd)


def _ports(word: str) -> tuple[int, int]:
    old, _, new = word.partition(":")
    numbers = [int(part) if part.isdecimal() and len(part) < 6 else -1 for part in (old, new)]
    if not all(0 < number < 1 << 16 for number in numbers):
        raise UsageError(f"--tcp-listen-remap {word}: OLD:NEW, two ports, is expected")
    return numbers[0], numbers[1]
