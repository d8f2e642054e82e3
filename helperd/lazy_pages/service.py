"""The daemon from start to end: images opened, a stand-in made, a worker forked, a command run."""

from __future__ import annotations

import _signal as signal
import _socket
import contextlib
import os

from helperd.errors import (
    EXIT_OK,
    EXIT_RESOURCES,
    HelperdError,
    ResourceError,
    UsageError,
    describe_bug,
    describe_errno,
)
from helperd.kernel import sockets
from helperd.kernel.descriptors import close_all_but
from helperd.kernel.hints import stay_on
from helperd.kernel.syscalls import current_cpu
from helperd.lazy_pages import link
from helperd.lazy_pages.guard import Guard, listen
from helperd.lazy_pages.standin import (
    Images,
    is_readable_by_criu,
    leave_parents_pages,
    make_stand_in,
    open_images,
    remove_stand_in,
)
from helperd.reports.statsfile import open_stats, write_stats
from helperd.server import daemon
from helperd.wire.lazy import SOCKET_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from helperd.lazy_pages.link import Link
    from helperd.lazy_pages.settings import Settings
    from helperd.reports.log import Log

#: Stands in a command for the directory to be restored from.
PLACE = "{}"


class Request:
    """What is to be done.

    Attributes:
        images: the image directory.
        work: where the socket is; None for the images directory, or the stand-in.
        stand_in: make it here and leave it; None for one that is removed at the end.
        command: to be run, with PLACE for the directory; empty for none.
        many: serve one restore after another.
        background: go to the background once restores can connect, or once the command has ended.
        pidfile: file to write the pid to; None for none.
        streamed: CRIU gets the images over a stream, flattened and without what is left to the
            daemon, so it needs no stand-in.
        stats: file to write the report to; None for none.
        svg: file to draw the report into; None for none.
        progress: told of pages that are there, and of all.
        status_fd: gets a zero byte once restores can connect; None for none.
        settings: of the worker.
    """

    def __init__(
        self,
        images: str,
        *,
        work: str | None = None,
        stand_in: str | None = None,
        command: list[str] | None = None,
        many: bool = False,
        streamed: bool = False,
        background: bool = False,
        pidfile: str | None = None,
        stats: str | None = None,
        svg: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        status_fd: int | None = None,
        settings: Settings,
    ) -> None:
        self.images = images
        self.work = work
        self.stand_in = stand_in
        self.command = command or []
        self.many = many
        self.streamed = streamed
        self.background = background
        self.pidfile = pidfile
        self.stats = stats
        self.svg = svg
        self.progress = progress
        self.status_fd = status_fd
        self.settings = settings


def run(request: Request, log: Log) -> int:
    """Serve restores as ``request`` says; return the exit code.

    Raises:
        HelperdError: nothing was served.
    """
    images = open_images(request.images)
    with contextlib.ExitStack() as stack:
        place, temporary = _place(request, images)
        if temporary:
            stack.callback(remove_stand_in, place)
        path = os.path.join(request.work or place, SOCKET_NAME)
        listener, bound = listen(path)

        def close_listener() -> None:
            sockets.unbind(listener, path, bound)

        stack.callback(close_listener)
        answer_fd = -1
        if request.background:
            code, answer_fd = daemon.split()
            if code is not None:
                stack.pop_all()  # All of it is the other process's now.
                return code
        return _serve(request, images, place, listener, close_listener, answer_fd, log)


def _place(request: Request, images: Images) -> tuple[str, bool]:
    """Return the directory to restore from, and whether it is to be removed at the end."""
    if request.stand_in is not None:
        make_stand_in(images, request.stand_in)
        return request.stand_in, False
    if request.streamed:
        leave_parents_pages(images)
        return request.images, False
    if is_readable_by_criu(images):
        return request.images, False
    base = request.work or os.environ.get("TMPDIR") or "/tmp"
    place = os.path.join(base, f"helperd-stand-in-{os.getpid()}")
    make_stand_in(images, place)
    return place, True


def _serve(
    request: Request,
    images: Images,
    place: str,
    listener: _socket.socket,
    close_listener: Callable[[], None],
    answer_fd: int,
    log: Log,
) -> int:
    stats_fd, svg_fd = open_stats(request.stats), open_stats(request.svg)
    guards_end, workers_end = link.link_pair()
    cpu = current_cpu()
    pid = _fork()
    if pid == 0:
        code = EXIT_RESOURCES
        try:
            _leave(cpu)
            close_all_but((*images.fds, *request.settings.fds, workers_end.fd, *log.fds))
            code = _work(images, workers_end, request.settings, log)
        finally:
            os._exit(code)
    workers_end.close()
    images.close()
    guard = Guard(
        listener,
        guards_end,
        pid,
        log,
        frozenset(images.lookups),
        many=request.many,
        close_listener=close_listener,
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        guard.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if request.pidfile is not None:
        daemon.write_pidfile(request.pidfile)
    daemon.say_ready(request.status_fd)
    if request.command:
        guard.on_command_end = lambda code: daemon.answer(answer_fd, code)
        guard.command(_spawn([word.replace(PLACE, place) for word in request.command]))
    else:
        daemon.answer(answer_fd, EXIT_OK)
    if request.progress is not None:
        guard.on_progress = request.progress
    code = guard.run()
    if guard.report:
        _report(guard.report, request, stats_fd, svg_fd)
    return code


def _report(report: str, request: Request, stats_fd: int | None, svg_fd: int | None) -> None:
    if stats_fd is not None:
        write_stats(stats_fd, report + "\n")
    if svg_fd is not None:
        import json

        from helperd.lazy_pages.picture import draw

        write_stats(svg_fd, draw(json.loads(report), request.images))


def _work(images: Images, guard: Link, settings: Settings, log: Log) -> int:
    import threading

    from helperd.lazy_pages.worker import Worker

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # The guard's to act on.
    log.role = "-lazy"

    def give_up(how: threading.ExceptHookArgs) -> None:
        # What the thread was bringing nobody else would: the guard sees to it that nobody waits.
        log.error(describe_bug(how.exc_value or how.exc_type()), event="failed")
        os._exit(EXIT_RESOURCES)

    threading.excepthook = give_up
    try:
        return Worker(images, guard, settings, log).serve()
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        return error.exit_code
    except Exception as error:
        log.error(describe_bug(error), event="failed")
        return EXIT_RESOURCES


def _leave(cpu: int) -> None:
    """Leave a CPU to who has forked this process: it is about to start a restore there.

    The kernel sees too late that both are busy. From then on this one may be anywhere again.
    """
    cpus = os.sched_getaffinity(0)
    if cpus - {cpu}:
        stay_on(cpus - {cpu})
        stay_on(cpus)


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise ResourceError(f"cannot fork: {describe_errno(error.errno or 0)}") from error


def _spawn(command: list[str]) -> int:
    try:
        return os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {describe_errno(error.errno or 0)}") from error
