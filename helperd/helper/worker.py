"""The worker: reads requests, has them carried out, answers."""

from __future__ import annotations

# Not the signal module: it imports enum, which takes longer than all of ours.
import _signal as signal
import errno
import gc
import posix as os
import select
import time

from helperd.confined.confine import confine
from helperd.engine.engine import Engine
from helperd.engine.release import Release
from helperd.errors import EXIT_OK, ProtocolError
from helperd.helper import answers, statistics
from helperd.kernel import pipes
from helperd.kernel.signals import EXIT_STOPPED
from helperd.reports.end import pack
from helperd.reports.failures import as_helperd_error
from helperd.reports.log import DEBUG
from helperd.targets.targets import Targets
from helperd.wire.pipe import RequestReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from helperd.options import Options
    from helperd.reports.log import Log
    from helperd.targets.hold import Hold
    from helperd.wire.pipe import Request

_SIGNALS_AT_ONCE = 64


class Stopped(Exception):
    """SIGTERM came, and no request is under way."""


class Worker:
    """One session: the requests of one restorer, until its pipe ends or one of them fails.

    Args:
        pages_fd: the pages image.
        request_fd: where requests come from.
        reply_fd: where answers go.
        pin: returns a hold on a process, see :class:`helperd.targets.targets.Targets`.
        leave: takes the last words, for the parent.
        options: what the session was started with.
        log: for all that happens.
    """

    def __init__(
        self,
        pages_fd: int,
        request_fd: int,
        reply_fd: int,
        pin: Callable[[int], Hold],
        leave: Callable[[str], None],
        options: Options,
        log: Log,
    ) -> None:
        # A signal between a look and the wait that follows must not be missed.
        self._wake_fd, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        threads = options.threads or len(os.sched_getaffinity(0))
        self._request_fd = request_fd
        self._reply_fd = reply_fd
        self._leave_words = leave
        self._idle_seconds = options.idle_seconds
        self._log = log
        self._reader = RequestReader(options.max_pages)
        self._release = Release(pages_fd, options.punch, log)
        self._engine = Engine(
            pages_fd,
            Targets(pin, log),
            self._release,
            threads=threads,
            thp=options.thp,
            holes_are_zeros=options.holes_are_zeros,
        )
        self._statistics = statistics.Statistics(self._engine, self._release, threads)
        self._stopping = False
        self._poll = select.poll()
        self._poll.register(request_fd, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)

    def serve(self, sandbox: str, known_pids: Sequence[int]) -> int:
        """Serve requests until the pipe ends or one fails; return the exit code.

        A failure is answered with its negative errno, logged in one line, and ends the session:
        the restorer cannot go on without the memory it asked for. SIGTERM lets a request that
        has begun be finished.

        Args:
            sandbox: how to confine this process before anything is read.
            known_pids: the targets known by now.
        """
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGUSR1, self._tell)
        try:
            confine(sandbox, known_pids, self._log)
            gc.freeze()
            gc.enable()
            self._serve_requests()
            self._release.finish()
        except Stopped:
            reason = f"stopped by SIGTERM after {self._engine.totals.requests} requests"
            self._log.error(reason, event="stopped")
            return self._leave(EXIT_STOPPED, reason)
        except Exception as error:
            failure = as_helperd_error(error, self._log)
            reason = f"request {self._engine.totals.requests + 1}: {failure}"
            self._log.error(reason, event="failed", errno=failure.errno)
            self._leave(failure.exit_code, reason)
            mid_request = self._reader.mid_request
            answers.answer_failure(
                self._request_fd, self._reply_fd, failure, mid_request=mid_request
            )
            return failure.exit_code
        return self._leave(EXIT_OK, "all requests served")

    def close(self) -> None:
        """Close what this opened itself; not needed where the process ends."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake_fd)
        os.close(self._wake_write)
        self._engine.close()

    def _serve_requests(self) -> None:
        while (request := self._next_request()) is not None:
            number = self._engine.totals.requests + 1
            told = self._log.level >= DEBUG
            if told:
                self._log.debug(f"request {number}: {_describe(request)}", event="request")
            start = time.monotonic()
            n_bytes = self._engine.execute(request)
            answers.answer(self._reply_fd, n_bytes)
            self._release.answered(request.offs, request.offs + request.total_compressed_size)
            self._statistics.serving_seconds += time.monotonic() - start
            if told:
                what = f"request {number}: answered {n_bytes}"
                self._log.debug(what, event="answer", bytes=n_bytes)

    def _next_request(self) -> Request | None:
        while (request := self._reader.next_request()) is None:
            data = self._receive()
            if not data:
                self._reader.receive_eof()
                return None
            self._reader.receive_data(data)
        return request

    def _receive(self) -> bytes:
        if self._idle_seconds or not self._reader.mid_request:
            self._wait()
        return pipes.read_some(self._request_fd, self._reader.bytes_wanted)

    def _wait(self) -> None:
        """Wait for the request pipe, but for no new request once this is to stop."""
        timeout = self._idle_seconds * 1000 or None
        while self._reader.mid_request or not self._stopping:
            ready = dict(self._poll.poll(timeout))
            if not ready:
                raise ProtocolError(
                    f"nothing came for {self._idle_seconds} seconds (--idle-timeout)",
                    errno=errno.ETIMEDOUT,
                )
            if self._request_fd in ready:
                return
            os.read(self._wake_fd, _SIGNALS_AT_ONCE)
        raise Stopped

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        # Once or more often: a whole process group may be told, and the parent tells us as well.
        # It kills us if it is asked twice.
        self._stopping = True

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        numbers = self._statistics.collect()
        self._log.answer(statistics.in_words(numbers), event="statistics", **numbers)

    def _leave(self, code: int, reason: str) -> int:
        numbers = self._statistics.collect()
        self._log.info(statistics.in_words(numbers), event="session-end", exit_code=code, **numbers)
        self._leave_words(pack(numbers, reason))
        return code


def _describe(request: Request) -> str:
    mode = f"regions of {request.region_pages}" if request.region_pages else "per page"
    return (
        f"pid {request.remote_pid}, {request.n_pages} pages, {request.n_blocks} blocks ({mode}),"
        f" {request.nr_iovs} iovecs, {request.total_compressed_size} bytes at {request.offs}"
    )
