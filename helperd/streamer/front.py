"""What ``helperd stream`` does, from its options to its exit status."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from helperd.errors import (
    EXIT_OK,
    EXIT_SIGNAL_BASE,
    HelperdError,
    InternalError,
    PeerGone,
    UsageError,
    describe_errno,
)
from helperd.images.directory import chain_paths
from helperd.images.records import os_failure
from helperd.offline.parallel import n_threads
from helperd.streamer.capture import Capture
from helperd.streamer.child import in_child
from helperd.streamer.confinement import confine
from helperd.streamer.endpoint import (
    CAPTURE_SOCKET,
    HOLD_SOCKET,
    SERVE_SOCKET,
    Connection,
    Listener,
    connect,
)
from helperd.streamer.flat import FlatImage
from helperd.streamer.hold import hold_script
from helperd.streamer.lazy import Daemon, daemon, left_to_daemon
from helperd.streamer.packer import Compression, Packer
from helperd.streamer.program import Program, check_status
from helperd.streamer.progress import Progress
from helperd.streamer.remap import FILES_NAME
from helperd.streamer.serve import Serving
from helperd.streamer.shards import External, Extraction, ShardSink
from helperd.streamer.sinks import DirectorySink, Sink


@dataclass(frozen=True)
class Options:
    """What ``helperd stream`` was told.

    Attributes:
        operation: capture, serve, extract or wait.
        directory: that CRIU is told of.
        program: to be run, with its arguments; empty for none.
        shards: descriptors; empty for the operation's default.
        externals: descriptors of further files, by name.
        progress_fd: where to report progress; None for the default.
        ports: new ports of listening sockets, by the old ones.
        target: directory that a capture goes to; None for the default.
        source: directory that is served; None for the default.
        compression: of what is captured or extracted; None for none.
        spool: directory for what must wait.
        clients: restores to serve; 0 for no end.
        lazy: bring the memory of a restored process behind it.
        hold: whether dumped processes are held until the images are on disk.
        threads: 0 for one for each CPU.
    """

    operation: str
    directory: str
    program: list[str]
    shards: list[int]
    externals: dict[str, int]
    progress_fd: int | None
    ports: dict[int, int]
    target: str | None
    source: str | None
    compression: Compression | None
    spool: str
    clients: int
    lazy: bool
    hold: bool
    threads: int


#: Threads with which a daemon fills; more of them would wait for the memory, and for each other.
_MOST_FILLING = 4


class Terminated(BaseException):
    """SIGTERM has come."""


class _Resources(contextlib.ExitStack):
    """What is given back at the end; SIGTERM does not disturb that."""

    def __exit__(self, *exception: Any) -> bool | None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().__exit__(*exception)


def run(options: Options) -> int:
    """Do it; return the exit status.

    Raises:
        HelperdError: it failed.
    """
    _check(options)
    operations: dict[str, Callable[[Options], None]] = {
        "capture": _capture,
        "serve": _serve,
        "extract": _extract,
        "wait": _wait,
    }
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        operations[options.operation](options)
    except Terminated:
        return EXIT_SIGNAL_BASE + signal.SIGTERM
    except OSError as error:
        raise os_failure(error, f"cannot {options.operation} {options.directory}") from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    return EXIT_OK


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _check(options: Options) -> None:
    operation = options.operation
    for is_given, name, operations in (
        (options.ports, "--tcp-listen-remap", ("serve",)),
        (options.source, "--from", ("serve",)),
        (options.lazy, "--lazy-pages", ("serve",)),
        (options.target, "--to", ("capture",)),
        (options.program, "a program", ("capture", "serve")),
        (options.compression, "--compress and --region", ("capture", "extract")),
    ):
        if is_given and operation not in operations:
            raise UsageError(f"{name}: only to {' and '.join(operations)}")
    if (options.source or options.target) and options.shards:
        raise UsageError("--to and --from take the place of shards; leave out -s")
    if options.lazy and options.clients != 1:
        raise UsageError("--lazy-pages serves one restore; start one helperd for each")
    if options.clients < 0:
        raise UsageError("--clients: 0 or more")
    for fd in (*options.shards, *options.externals.values(), *(_given(options.progress_fd))):
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(f"descriptor {fd}: {describe_errno(error.errno or 0)}") from error
    n_threads(options.threads)


def _given(fd: int | None) -> tuple[int, ...]:
    return () if fd is None else (fd,)


def _progress(options: Options) -> Progress:
    if options.progress_fd is None and options.program:
        return Progress(None)
    return Progress(2 if options.progress_fd is None else options.progress_fd)


def _shards(options: Options, default: int) -> list[int]:
    """Return descriptors of the shards that are ours to close."""
    return [os.dup(fd) for fd in options.shards or (default,)]


@contextlib.contextmanager
def _program(options: Options, words: list[str]) -> Iterator[Program | None]:
    if not options.program:
        yield None
        return
    with Program([word.replace("{}", options.directory) for word in words]) as program:
        yield program


def _capture(options: Options) -> None:
    progress = _progress(options)
    target = options.target
    if target is None and options.program and not options.shards:
        target = options.directory
    with _Resources() as stack:
        listener = stack.enter_context(Listener(options.directory, CAPTURE_SOCKET))
        hold = None
        scripts: list[str] = []
        words = list(options.program)
        if target is not None and options.hold and {"dump", "--stream"} <= set(words):
            hold = stack.enter_context(Listener(options.directory, HOLD_SOCKET))
            script = stack.enter_context(hold_script(options.directory))
            words += ["--action-script", script]
            scripts = [os.path.dirname(script)]
        shards: ShardSink | None = None
        if target is None:
            shards = ShardSink(_shards(options, default=1))
        sink: Sink = shards or DirectorySink(target or options.directory)
        threads = n_threads(options.threads)
        packer = Packer(sink, options.compression, options.spool, threads, in_order=True)
        stack.callback(packer.close)
        program = stack.enter_context(_program(options, words))
        confine(
            [options.directory, target or options.directory, options.spool, *scripts],
            emptied=[os.path.dirname(folder) for folder in scripts],
            pids=_pids(program),
        )
        progress.listening()
        connection = _accept(listener, program, replies=False)
        listener.close()
        capture = Capture(packer, connection, hold, progress.dump_started)
        stack.callback(capture.close)
        for name, fd in options.externals.items():
            capture.add(name, os.dup(fd))
        capture.run()
        if program is not None and not capture.held:
            # A dump that CRIU calls failed is none.
            check_status(program.wait())
        capture.finish()
        progress.transferred(shards.sizes if shards is not None else [capture.n_bytes])
        if program is not None:
            check_status(program.wait())


def _wait(options: Options) -> None:
    connection = connect(options.directory, HOLD_SOCKET)
    with connection:
        if connection.recv(1) != b"\0":
            raise PeerGone("the images could not be stored")


def _pids(*running: Program | Daemon | None) -> list[int]:
    return [it.pid for it in running if it is not None]


def _accept(listener: Listener, program: Program | None, *, replies: bool) -> Connection:
    if program is None:
        return listener.accept(replies=replies)
    return program.accept(listener, replies=replies)


def _serve(options: Options) -> None:
    progress = _progress(options)
    with _Resources() as stack:
        source, spooled = options.source, []
        if source is None and options.program and not options.shards:
            source = options.directory
        if source is None:
            source = stack.enter_context(_spooled(options, progress))
            spooled = [options.spool]
        checked = source
        in_child(lambda: _check_image(checked, options), f"look at {source}")
        bringer: Daemon | None = None
        if options.lazy:
            threads = min(n_threads(options.threads), _MOST_FILLING)
            bringer = stack.enter_context(daemon(source, options.directory, threads))
        listener = stack.enter_context(Listener(options.directory, SERVE_SOCKET))
        program = stack.enter_context(_program(options, options.program))
        confine(
            # Sockets and what was spooled have to go at the end.
            [options.directory, *spooled],
            chain_paths(source),
            pids=_pids(program, bringer),
        )
        lazy = left_to_daemon(source) if bringer is not None else {}
        progress.listening()
        try:
            _serve_clients(options, _Source(source, options.ports, lazy), listener, program)
        except PeerGone:
            # CRIU knows better whether it had all that it needs.
            if program is None or program.wait():
                raise
        if program is not None:
            check_status(program.wait())
        if bringer is not None:
            bringer.wait()


class _Source(NamedTuple):
    """What is served: FlatImage's arguments."""

    path: str
    ports: dict[int, int]
    lazy: dict[int, bytearray]


def _check_image(source: str, options: Options) -> None:
    """Find out what is wrong with an image before CRIU is started."""
    confine([], chain_paths(source))
    with contextlib.closing(FlatImage(source, options.ports)) as image:
        if options.ports:
            content = image.open(FILES_NAME)
            assert isinstance(content, int)
            os.close(content)


@contextlib.contextmanager
def _spooled(options: Options, progress: Progress) -> Iterator[str]:
    """Give a directory with the image of the shards, gone afterwards.

    CRIU asks first for what comes last, so all of it has to wait; it does so on disk.
    """
    os.makedirs(options.spool, mode=0o700, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".helperd-spool.", dir=options.spool)
    try:
        in_child(lambda: _take_out(options, folder, progress), "take in the shards")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve_clients(
    options: Options, source: _Source, listener: Listener, program: Program | None
) -> None:
    """Serve as many restores as are wanted, each in a thread of its own if there are several."""
    if options.clients == 1:
        connection = _accept(listener, program, replies=True)
        listener.close()
        _serve_one(options, source, connection)
        return
    failures: list[HelperdError] = []
    clients: list[threading.Thread] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    if program is not None:
        poll.register(program, select.POLLIN)

    def serve(connection: Connection) -> None:
        try:
            _serve_one(options, source, connection)
        except HelperdError as error:
            failures.append(error)
        except Exception as error:
            failures.append(InternalError(f"{type(error).__name__}: {error}"))

    while len(clients) != options.clients or not options.clients:
        if not any(fd == listener.fileno() for fd, _ in poll.poll()):
            break
        connection = listener.accept(replies=True)
        clients.append(threading.Thread(target=serve, args=(connection,)))
        clients[-1].start()
        for failure in failures:
            print(f"helperd: {failure}", file=sys.stderr)
        failures.clear()
        clients = [c for c in clients if c.is_alive()] if not options.clients else clients
    listener.close()
    for client in clients:
        client.join()
    for failure in failures:
        raise failure


def _serve_one(options: Options, source: _Source, connection: Connection) -> None:
    image = FlatImage(*source)
    with contextlib.closing(image):
        Serving(image, connection, n_threads(options.threads)).run()


def _extract(options: Options) -> None:
    os.makedirs(options.directory, mode=0o700, exist_ok=True)
    _take_out(options, options.directory, _progress(options))


def _take_out(options: Options, directory: str, progress: Progress) -> None:
    """Put the files of the shards into a directory, with nothing else open to this process."""
    confine([directory, options.spool])
    packer = Packer(
        DirectorySink(directory),
        options.compression,
        options.spool,
        n_threads(options.threads),
        in_order=False,
    )
    externals = {name: External(name, os.dup(fd)) for name, fd in options.externals.items()}
    extraction = Extraction(_shards(options, default=0), packer, externals)
    with contextlib.ExitStack() as stack:
        stack.callback(packer.close)
        stack.callback(extraction.close)
        extraction.run()
        packer.finish()
    progress.transferred(extraction.sizes, extraction.millis)
