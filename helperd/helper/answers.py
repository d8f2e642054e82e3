"""Answers to the restorer: what was restored, or why not."""

from __future__ import annotations

from helperd.errors import HelperdError, PeerGone
from helperd.kernel import pipes
from helperd.wire.pipe import pack_answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.reports.end import End
    from helperd.reports.log import Log

#: How long a restorer may pause, and go on in all, while it still writes a request that has
#: already failed.
_DRAIN_IDLE_SECONDS = 0.2
_DRAIN_SECONDS = 10.0


def answer(reply_fd: int, n_bytes: int) -> None:
    """Tell the restorer how many bytes are not all zero.

    Raises:
        PeerGone, ProtocolError: the answer cannot be written.
    """
    pipes.write_all(reply_fd, pack_answer(n_bytes))


def fail(request_fd: int, reply_fd: int, failure: HelperdError, log: Log) -> End:
    """Say why there is no session, to the log and to the restorer; return its end."""
    from helperd.reports.end import End

    log.error(str(failure), event="failed", errno=failure.errno)
    # Whatever the restorer has begun to write is not read: it may be in the middle of it.
    answer_failure(request_fd, reply_fd, failure, mid_request=True)
    return End(failure.exit_code, str(failure), {})


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
        answer(reply_fd, -failure.errno)
    except HelperdError:
        return
    if mid_request:
        pipes.drain(request_fd, _DRAIN_IDLE_SECONDS, _DRAIN_SECONDS)
