"""The worker: reads requests, has them carried out, answers."""

from __future__ import annotations

import resource

from helperd import pipes
from helperd.engine import Engine
from helperd.errors import EXIT_OK, HelperdError, InternalError, PeerGone, ResourceError
from helperd.protocol import RequestReader, pack_answer
from helperd.release import Release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.log import Log
    from helperd.protocol import Request
    from helperd.targets import Targets

#: How long a restorer may pause while it still writes a request that has already failed.
_DRAIN_MS = 200


def serve(
    pages_fd: int,
    request_fd: int,
    reply_fd: int,
    *,
    targets: Targets,
    max_pages: int,
    threads: int,
    thp: str,
    punch: str,
    log: Log,
) -> int:
    """Serve requests until the pipe ends or one fails.

    A failure is answered with its negative errno, logged in one line, and ends the session:
    the restorer cannot go on without the memory it asked for.

    Returns:
        The exit code.
    """
    reader = RequestReader(max_pages)
    release = Release(pages_fd, punch, log)
    engine = Engine(pages_fd, targets, release, threads=threads, thp=thp)
    where = "request 1"
    try:
        while (request := _next_request(request_fd, reader)) is not None:
            log.debug(f"{where}: {_describe(request)}")
            answer = engine.execute(request)
            pipes.write_all(reply_fd, pack_answer(answer))
            release.answered(request.offs, request.offs + request.total_compressed_size)
            log.debug(f"{where}: answered {answer}")
            where = f"request {engine.totals.requests + 1}"
        release.finish()
    except Exception as error:
        failure = as_helperd_error(error, log)
        log.error(f"{where}: {failure}")
        answer_failure(request_fd, reply_fd, failure, mid_request=reader.mid_request)
        return failure.exit_code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log.info(
        f"{engine.totals}, {engine.collapsed} huge pages,"
        f" {release.punched} bytes punched, peak RSS {peak} KiB"
    )
    return EXIT_OK


def as_helperd_error(error: Exception, log: Log) -> HelperdError:
    """Return ``error`` as one of ours; what nobody expected becomes an InternalError."""
    if isinstance(error, HelperdError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("out of memory")
    import traceback

    for line in traceback.format_exception(error):
        log.debug(line)
    return InternalError(
        f"internal error: {type(error).__name__}: {error} (a bug: run with -v4 and report it)"
    )


def answer_failure(
    request_fd: int, reply_fd: int, failure: HelperdError, *, mid_request: bool
) -> None:
    """Send the failed answer, if somebody is there to read it.

    When the request is not complete yet the restorer is still writing, with SIGPIPE at its
    default: a pipe closed under it would kill it before it could read why. So the rest is read
    and thrown away, until the restorer closes the pipe or pauses.
    """
    if isinstance(failure, PeerGone):
        return
    try:
        pipes.write_all(reply_fd, pack_answer(-failure.errno))
    except HelperdError:
        return
    if mid_request:
        pipes.drain(request_fd, _DRAIN_MS)


def _next_request(fd: int, reader: RequestReader) -> Request | None:
    while (request := reader.next_request()) is None:
        data = pipes.read_some(fd, reader.bytes_wanted)
        if not data:
            reader.receive_eof()
            return None
        reader.receive_data(data)
    return request


def _describe(request: Request) -> str:
    mode = f"regions of {request.region_pages}" if request.region_pages else "per page"
    return (
        f"pid {request.remote_pid}, {request.n_pages} pages, {request.n_blocks} blocks ({mode}),"
        f" {request.nr_iovs} iovecs, {request.total_compressed_size} bytes at {request.offs}"
    )
