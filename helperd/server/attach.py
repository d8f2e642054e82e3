"""``helperd attach``: a session of a server that is warm, for a restorer that spawns helpers.

It takes the options of the helper and has its exit status, and it lasts as long: until no process
of the session is left. Nothing is imported that it can do without: starting is all its work.
"""

from __future__ import annotations

# Not socket: its enums take longer to import than all of ours.
import _socket

from helperd.errors import (
    HelperdError,
    InternalError,
    ProtocolError,
    describe_errno,
    from_errno,
)
from helperd.helper.descriptors import check_outputs, open_pages, pipe_fds
from helperd.kernel.descriptors import (
    as_rights,
    close_all_but,
    from_rights,
    let_go,
    room_for_rights,
)
from helperd.kernel.signals import EXIT_STOPPED, Forwarding
from helperd.reports.openlog import open_log
from helperd.reports.statsfile import empty_stats, open_stats, write_stats
from helperd.wire import protobuf, session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.options import Options


class NoSession(HelperdError):
    """The server could not or would not serve; nobody has used the pipes."""


class Session:
    """A session with a server, whose worker has the passed descriptors.

    Args:
        path: of the server's socket.
        fds: the pages image, the request pipe, the reply pipe, and maybe a log; they stay ours.
        options: for the session.
        for_parent: whether the restorer is our parent, and not this process.

    Attributes:
        worker_pid: the process that serves; 0 if the session has ended at once.
        worker_pidfd: of that process, to be closed by the caller; or -1.

    Raises:
        NoSession: with the errno and exit code of the reason.
    """

    def __init__(
        self, path: str, fds: list[int], options: Options, *, for_parent: bool = False
    ) -> None:
        self.worker_pid, self.worker_pidfd = 0, -1
        self._end: dict[int, int | bytes] | None = None
        self._connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            self._begin(path, fds, _session_request(options, for_parent=for_parent))
        except HelperdError as error:
            self._connection.close()
            if isinstance(error, NoSession):
                raise
            raise _no_session(error) from error

    def _begin(self, path: str, fds: list[int], request: bytes) -> None:
        try:
            self._connection.connect(path)
            self._connection.sendmsg([request], as_rights(fds))
        except BrokenPipeError:
            pass  # A refusal, which can be read all the same.
        except OSError as error:
            raise from_errno(error.errno or 0, f"no helperd serve answers at {path}") from error
        reply, pidfds = self._receive()
        if session.REPLY_STARTED not in reply:
            self._check_refusal(reply)
            self._end = reply  # It ended at once, having answered by itself.
            return
        self.worker_pid = int(
            protobuf.decode(bytes_of(reply, session.REPLY_STARTED)).get(
                session.STARTED_WORKER_PID, 0
            )
        )
        if not pidfds:
            raise InternalError("the server has passed no pidfd")
        self.worker_pidfd = pidfds[0]

    def wait(self) -> tuple[int, str]:
        """Wait until nothing of the session is left; return its exit code and its statistics.

        Raises:
            InternalError: the session was killed, with its server perhaps.
        """
        end = self._end or self._receive()[0]
        # The server holds the connection until it has reaped the session.
        while self._receive()[0]:
            pass
        self.close()
        if session.REPLY_ENDED not in end:
            raise InternalError("the session was killed without a word")
        ended = protobuf.decode(bytes_of(end, session.REPLY_ENDED))
        return int(ended.get(session.ENDED_EXIT_CODE, 0)), bytes_of(
            ended, session.ENDED_STATS
        ).decode()

    def close(self) -> None:
        """Close the connection, which ends the session if it has not ended."""
        self._connection.close()

    def _receive(self) -> tuple[dict[int, int | bytes], list[int]]:
        try:
            message, ancillary, _, _ = self._connection.recvmsg(
                session.MAX_REPLY, room_for_rights(1), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise ProtocolError(
                f"the server's connection failed: {describe_errno(error.errno or 0)}"
            ) from error
        return protobuf.decode(message), from_rights(ancillary)

    def _check_refusal(self, reply: dict[int, int | bytes]) -> None:
        if session.REPLY_ENDED not in reply:
            raise InternalError("the server has ended before the session began")
        ended = protobuf.decode(bytes_of(reply, session.REPLY_ENDED))
        number = int(ended.get(session.ENDED_ERRNO, 0))
        if number:
            refusal = NoSession(
                f"the server says: {bytes_of(ended, session.ENDED_REASON).decode()}"
            )
            refusal.errno = number
            refusal.exit_code = int(ended.get(session.ENDED_EXIT_CODE, 0))
            raise refusal


def run(options: Options) -> int:
    """Have the options' descriptors served by a server; return the exit code."""
    log = open_log(options.verbosity, options.log_file, options.log_layout)
    stats_fd = open_stats(options.stats)
    request_fd, reply_fd = pipe_fds(options)
    try:
        pages_fd = open_pages(options)
    except HelperdError as error:
        from helperd.helper.answers import fail

        return fail(request_fd, reply_fd, error, log).exit_code
    check_outputs(pages_fd, (("--stats", stats_fd), ("the log", log.fd)))
    empty_stats(stats_fd)
    stats_fds = [] if stats_fd is None else [stats_fd]
    # The other ends of the pipes, if they have slipped through to us, would stay open with us.
    close_all_but((pages_fd, request_fd, reply_fd, *log.fds, *stats_fds))
    try:
        assert options.socket is not None
        served = Session(
            options.socket, [pages_fd, request_fd, reply_fd, *log.fds], options, for_parent=True
        )
    except HelperdError as error:
        from helperd.helper.answers import fail

        return fail(request_fd, reply_fd, error, log).exit_code
    forwarding = None
    if served.worker_pidfd >= 0:
        forwarding = Forwarding(served.worker_pidfd, lambda why: log.error(why, event="stopped"))
    # The worker alone holds the pipes: if it dies, the restorer sees their end at once.
    for fd in (pages_fd, request_fd, reply_fd):
        let_go(fd)
    try:
        code, document = served.wait()
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        return error.exit_code
    if forwarding is not None and forwarding.insisted:
        forwarding.end()
        code = EXIT_STOPPED
    if stats_fd is not None:
        write_stats(stats_fd, document)
    return code


def bytes_of(fields: dict[int, int | bytes], number: int) -> bytes:
    """Return a field that is a string or a message; empty if it is not there."""
    value = fields.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _session_request(options: Options, *, for_parent: bool) -> bytes:
    return protobuf.encode(
        {
            session.REQUEST_VERSION: session.VERSION,
            session.REQUEST_FOR_PARENT: int(for_parent),
            session.REQUEST_TARGETS: options.targets,
            session.REQUEST_MAX_PAGES: options.max_pages,
            session.REQUEST_THREADS: options.threads,
            session.REQUEST_THP: options.thp,
            session.REQUEST_PUNCH: options.punch,
            session.REQUEST_SANDBOX: options.sandbox,
            session.REQUEST_IDLE_SECONDS: options.idle_seconds,
            session.REQUEST_VERBOSITY: options.verbosity,
            session.REQUEST_LOG_LAYOUT: options.log_layout,
            session.REQUEST_HOLES_ARE_ZEROS: int(options.holes_are_zeros),
        }
    )


def _no_session(error: HelperdError) -> NoSession:
    refusal = NoSession(str(error), errno=error.errno)
    refusal.exit_code = error.exit_code
    return refusal
