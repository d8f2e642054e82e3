"""A session: one restorer's pipes, served by a confined worker of this process."""

from __future__ import annotations

import os
import struct

from helperd.confined.supervisor import run_child
from helperd.errors import HelperdError, NotPermitted
from helperd.helper.answers import answer_failure
from helperd.helper.worker import Worker
from helperd.kernel.descriptors import raise_limit
from helperd.modes import STRICT
from helperd.reports import stats
from helperd.reports.failures import as_helperd_error
from helperd.reports.stats import End
from helperd.targets.hold import Hold
from helperd.targets.targets import Permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.confined.broker import BrokerClient
    from helperd.options import Options
    from helperd.reports.log import Log
    from helperd.targets.targets import Spawner

#: What a worker asks its parent for: a hold on the process of this number.
_PIN = b"P"
_PID = struct.Struct("<i")


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
    fds = (pages_fd, request_fd, reply_fd)
    raise_limit()
    try:
        permissions = Permissions(
            spawner, os.getpid(), options.targets, descendants=options.sandbox != STRICT
        )

        def work(client: BrokerClient) -> int:
            return _work(fds, client, options, permissions.known_pids, log)

        def start(pid: int) -> None:
            permissions.own_pids.add(pid)
            on_start(pid)

        return run_child(
            work,
            name="helperd-worker",
            fds=fds,
            answers={_PIN: lambda question: _pin(permissions, question)},
            log=log,
            peer_fd=peer_fd,
            on_start=start,
        )
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        # Whatever the restorer has begun to write is not read: it may be in the middle of it.
        answer_failure(request_fd, reply_fd, error, mid_request=True)
        return End(error.exit_code, str(error), {})


def _pin(permissions: Permissions, question: bytes) -> Hold:
    """Return a hold on the process that a worker asks for."""
    if len(question) != _PID.size:
        raise NotPermitted("the worker asks for something that is no process")
    return permissions.pin(*_PID.unpack(question))


def _work(
    fds: tuple[int, int, int],
    client: BrokerClient,
    options: Options,
    known_pids: Sequence[int],
    log: Log,
) -> int:
    def pin(pid: int) -> Hold:
        return Hold.from_fds(pid, client.ask(_PIN, _PID.pack(pid), f"process {pid}"))

    pages_fd, request_fd, reply_fd = fds
    try:
        worker = Worker(pages_fd, request_fd, reply_fd, pin, client.leave, options, log)
    except Exception as error:
        failure = as_helperd_error(error, log)
        log.error(str(failure), event="failed", errno=failure.errno)
        answer_failure(request_fd, reply_fd, failure, mid_request=True)
        client.leave(stats.pack({}, str(failure)))
        return failure.exit_code
    return worker.serve(options.sandbox, known_pids)
