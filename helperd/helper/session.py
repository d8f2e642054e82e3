"""A session: one restorer's pipes, served by a confined worker of this process.

The worker is forked when all is imported that it needs: pages that are shared after a fork have to
be copied as soon as anything is done with them. What its parent needs it imports afterwards, while
the worker gets ready.
"""

from __future__ import annotations

import posix as os
from _struct import Struct

from helperd.confined.supervisor import run_child
from helperd.errors import HelperdError, NotPermitted
from helperd.helper.worker import Worker
from helperd.kernel.syscalls import raise_limit
from helperd.modes import STRICT
from helperd.targets.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.confined.broker import Answer, BrokerClient
    from helperd.options import Options
    from helperd.reports.end import End
    from helperd.reports.log import Log
    from helperd.targets.permissions import Permissions

#: What a worker asks its parent for: a hold on the process of this number.
_PIN = b"P"
_PID = Struct("<i")


def run_session(
    pages_fd: int,
    request_fd: int,
    reply_fd: int,
    *,
    spawner: int,
    is_spawner: Callable[[], bool],
    options: Options,
    log: Log,
    name: str = "",
    peer_fd: int | None = None,
    on_start: Callable[[int], None] = lambda _pid: None,
) -> End:
    """Serve one restorer in a worker process. No process but the caller is left afterwards.

    Args:
        pages_fd: the pages image; taken over, as the two pipes are.
        request_fd: where requests come from.
        reply_fd: where answers go.
        spawner: who may be written to, with its descendants and ``options.targets``.
        is_spawner: asked once it is pinned: whether that pid is the spawner's, still.
        options: of the session; where its pipes come from does not matter here.
        log: for all that happens.
        name: for this process; empty to leave it as it is.
        peer_fd: a connection whose end is to end the session.
        on_start: called with the worker's pid.
    """
    fds = (pages_fd, request_fd, reply_fd)
    answers: dict[bytes, Answer] = {}
    raise_limit()

    def work(client: BrokerClient) -> int:
        return _work(fds, client, options, [spawner, *options.targets], log)

    def start(pid: int) -> None:
        # Here, while the worker gets ready: what only this process needs.
        from helperd.kernel.hints import name_process
        from helperd.targets.permissions import Permissions, Spawner

        permissions = Permissions(
            Spawner(spawner, is_spawner),
            os.getpid(),
            options.targets,
            descendants=options.sandbox != STRICT,
        )
        permissions.own_pids.add(pid)
        answers[_PIN] = lambda question: _pin(permissions, question)
        if name:
            name_process(name)
        on_start(pid)

    try:
        return run_child(
            work,
            name="helperd-worker",
            fds=fds,
            answers=answers,
            log=log,
            peer_fd=peer_fd,
            on_start=start,
        )
    except HelperdError as error:
        from helperd.helper.answers import fail

        return fail(request_fd, reply_fd, error, log)


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
        from helperd.helper.answers import fail
        from helperd.reports.end import pack
        from helperd.reports.failures import as_helperd_error

        failure = as_helperd_error(error, log)
        end = fail(request_fd, reply_fd, failure, log)
        client.leave(pack({}, end.reason))
        return end.exit_code
    return worker.serve(options.sandbox, known_pids)
