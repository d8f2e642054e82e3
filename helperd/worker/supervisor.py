"""The two processes of a session: the worker, and its parent.

The parent forks the worker, opens for it what it may have, and knows how it ended.
"""

from __future__ import annotations

# Not the signal module: it imports enum, which takes longer than all of ours.
import _signal as signal
import os
import select

import prctl

from helperd.errors import (
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    HelperdError,
    ResourceError,
    describe_errno,
    from_errno,
)
from helperd.reports import stats
from helperd.reports.stats import End
from helperd.sandbox import STRICT
from helperd.targets.targets import Permissions
from helperd.worker import broker
from helperd.worker.answers import answer_failure
from helperd.worker.broker import Broker, BrokerClient
from helperd.worker.descriptors import close_all_but, let_go
from helperd.worker.worker import Worker, as_helperd_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from helperd.options import Options
    from helperd.reports.log import Log
    from helperd.targets.targets import Spawner

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def run_session(
    pages_fd: int,
    request_fd: int,
    reply_fd: int,
    *,
    spawner: Spawner,
    options: Options,
    log: Log,
    peer_fd: int | None = None,
    on_start: Callable[[int], None] = lambda _pid: None,
) -> End:
    """Serve one restorer in a worker process. No process but the caller is left afterwards.

    Args:
        pages_fd: the pages image; taken over, as the two pipes are.
        request_fd: where requests come from.
        reply_fd: where answers go.
        spawner: who may be written to, with its descendants and ``options.targets``.
        options: of the session; where its pipes come from does not matter here.
        log: for all that happens.
        peer_fd: a connection whose end is to end the session.
        on_start: called with the worker's pid.
    """
    parent = os.getpid()
    try:
        permissions = Permissions(
            spawner, parent, options.targets, descendants=options.sandbox != STRICT
        )
        parents_end, workers_end = broker.socket_pair()
        pid = _fork()
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        # Whatever the restorer has begun to write is not read: it may be in the middle of it.
        answer_failure(request_fd, reply_fd, error, mid_request=True)
        return End(error.exit_code, str(error), {})
    if pid == 0:
        code = EXIT_RESOURCES
        try:
            log.role = "-worker"
            close_all_but((pages_fd, request_fd, reply_fd, workers_end.fileno(), *log.fds))
            if _is_orphan_proof(parent):
                client = BrokerClient(workers_end)
                code = _work(pages_fd, request_fd, reply_fd, client, options, permissions, log)
        finally:
            os._exit(code)
    permissions.own_pids.add(pid)
    workers_end.close()
    # The worker alone holds the pipes: if it dies, the restorer sees their end at once.
    for fd in (pages_fd, request_fd, reply_fd):
        let_go(fd)
    pidfd = os.pidfd_open(pid)
    _forward_signals(pidfd)
    on_start(pid)
    mediator = Broker(parents_end, permissions)
    _attend(pidfd, mediator, peer_fd)
    return _reap(pid, mediator, log)


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise ResourceError(f"cannot fork: {describe_errno(error.errno or 0)}") from error


def _is_orphan_proof(parent: int) -> bool:
    """See to it that the worker dies with its parent; return False if that has died already."""
    prctl.set_name("helperd-worker")
    prctl.set_pdeathsig(signal.SIGKILL)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    return os.getppid() == parent


def _work(
    pages_fd: int,
    request_fd: int,
    reply_fd: int,
    client: BrokerClient,
    options: Options,
    permissions: Permissions,
    log: Log,
) -> int:
    try:
        worker = Worker(pages_fd, request_fd, reply_fd, client, options, log)
    except Exception as error:
        failure = as_helperd_error(error, log)
        log.error(str(failure), event="failed", errno=failure.errno)
        answer_failure(request_fd, reply_fd, failure, mid_request=True)
        client.leave(stats.pack({}, str(failure)))
        return failure.exit_code
    return worker.serve(options.sandbox, permissions.known_pids)


def _forward_signals(pidfd: int) -> None:
    def forward(number: int, _frame: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return  # It is gone already, and about to be reaped.

    for number in _FORWARDED:
        signal.signal(number, forward)


def _attend(pidfd: int, mediator: Broker, peer_fd: int | None) -> None:
    """Answer the worker until it ends; end it when the peer is gone."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(mediator.fd, select.POLLIN)
    if peer_fd is not None:
        poll.register(peer_fd, select.POLLRDHUP)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if mediator.fd in ready and not mediator.answer():
            poll.unregister(mediator.fd)
            mediator.close()
        elif pidfd in ready:
            return
        if peer_fd in ready:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.unregister(peer_fd)


def _reap(pid: int, mediator: Broker, log: Log) -> End:
    try:
        _, status, usage = os.wait4(pid, 0)
    except OSError as error:
        raise from_errno(error.errno or 0, f"waiting for worker {pid}") from error
    numbers, reason = stats.unpack(mediator.last_words)
    numbers["peak_rss_kib"] = usage.ru_maxrss
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return End(code, reason or f"the worker exited with {code}", numbers)
    reason = f"worker {pid} was killed by signal {-code}, {signal.strsignal(-code)}"
    log.error(reason, event="killed", signal=-code)
    return End(EXIT_SIGNAL_BASE - code, reason, numbers)
