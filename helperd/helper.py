"""The helper process: opens what was asked for, forks the worker, reports how it ended."""

from __future__ import annotations

import errno
import os
import signal
import stat

import prctl

from helperd import worker
from helperd.errors import (
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    HelperdError,
    ImageError,
    ResourceError,
    UsageError,
    describe_errno,
    from_errno,
)
from helperd.log import Log, open_log
from helperd.release import NEVER
from helperd.targets import Spawner, Targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from helperd.options import Options

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(options: Options) -> int:
    """Serve as ``options`` say, in a worker process; return the exit code.

    When this returns, no process of the helper but the caller is left.
    """
    spawner = Spawner()
    try:
        log = open_log(options.verbosity, options.log_file)
    except OSError as error:
        raise UsageError(
            f"cannot open the log file {options.log_file}: {describe_errno(error.errno or 0)}"
        ) from error
    prctl.set_name("helperd")
    request_fd, reply_fd = _pipe_fds(options)
    try:
        pages_fd = _open_pages(options)
        parent = os.getpid()
        pid = _fork()
    except HelperdError as error:
        log.error(str(error))
        # Whatever the restorer has begun to write is not read: it may be in the middle of it.
        worker.answer_failure(request_fd, reply_fd, error, mid_request=True)
        return error.exit_code
    if pid == 0:
        code = EXIT_RESOURCES
        try:
            log.role = "-worker"
            code = _be_worker(options, log, spawner, parent, pages_fd, request_fd, reply_fd)
        finally:
            os._exit(code)
    # The worker alone holds the pipes: if it dies, the restorer sees their end at once.
    for fd in (pages_fd, request_fd, reply_fd):
        _let_go(fd)
    return _wait_for(pid, log)


def _pipe_fds(options: Options) -> tuple[int, int]:
    if options.stdin_pipes:
        fds = (0, 1)
    else:
        assert options.request_fd is not None
        assert options.reply_fd is not None
        fds = (options.request_fd, options.reply_fd)
    for name, fd in zip(("request", "reply"), fds, strict=True):
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(f"the {name} descriptor {fd} is not open") from error
    return fds


def _open_pages(options: Options) -> int:
    """Return a descriptor of the pages image, after a look at what it is."""
    if options.pages_fd is not None:
        fd, name = options.pages_fd, f"--pages-fd {options.pages_fd}"
    else:
        name = str(options.pages)
        try:
            fd = _open_image(name, writable=options.punch != NEVER)
        except OSError as error:
            raise _image_error(error, f"cannot open the pages image {name}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(f"{name} is not a file that can be read at an offset")
        os.pread(fd, 0, 0)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError as error:
        raise _image_error(error, f"cannot read the pages image {name}") from error
    return fd


def _open_image(path: str, *, writable: bool) -> int:
    # Not blocking: a FIFO would wait for a writer. Regular files do not care.
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if writable:
        try:
            return os.open(path, flags | os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                raise
    return os.open(path, flags | os.O_RDONLY)


def _image_error(error: OSError, what: str) -> ImageError:
    number = error.errno or errno.EIO
    return ImageError(f"{what}: {describe_errno(number)}", errno=number)


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise ResourceError(f"cannot fork: {describe_errno(error.errno or 0)}") from error


def _be_worker(
    options: Options,
    log: Log,
    spawner: Spawner,
    parent: int,
    pages_fd: int,
    request_fd: int,
    reply_fd: int,
) -> int:
    prctl.set_name("helperd-worker")
    prctl.set_pdeathsig(signal.SIGKILL)
    prctl.set_no_new_privs(1)
    if os.getppid() != parent:
        return EXIT_RESOURCES  # The parent died before it could take us along.
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    try:
        targets = Targets(spawner, (parent, os.getpid()), options.targets, log)
    except HelperdError as error:
        log.error(str(error))
        worker.answer_failure(request_fd, reply_fd, error, mid_request=True)
        return error.exit_code
    return worker.serve(
        pages_fd,
        request_fd,
        reply_fd,
        targets=targets,
        max_pages=options.max_pages,
        threads=options.threads or len(os.sched_getaffinity(0)),
        thp=options.thp,
        punch=options.punch,
        log=log,
    )


def _let_go(fd: int) -> None:
    """Close a descriptor; a standard one is pointed at /dev/null, so nothing takes its place."""
    if fd > 2:
        os.close(fd)
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


def _wait_for(pid: int, log: Log) -> int:
    """Wait for the worker, passing signals on to it; return the helper's exit code."""
    pidfd = os.pidfd_open(pid)

    def forward(number: int, _frame: FrameType | None) -> None:
        signal.pidfd_send_signal(pidfd, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    try:
        _, status = os.waitpid(pid, 0)
    except OSError as error:
        raise from_errno(error.errno or errno.ECHILD, f"waiting for worker {pid}") from error
    finally:
        os.close(pidfd)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    log.error(f"worker {pid} was killed by {signal.Signals(-code).name}")
    return EXIT_SIGNAL_BASE - code
