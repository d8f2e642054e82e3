"""A session: one restorer's pipes, served by a confined worker of this process.

The worker is forked when all is imported that it needs: pages that are shared after a fork have to
be copied as soon as anything is done with them. Or it has been forked before there was a session
for it, and waits, see :mod:`helperd.helper.waiting`.
"""

from __future__ import annotations

import posix as os
from _struct import Struct

from helperd.confined.supervisor import Child
from helperd.errors import HelperdError, NotPermitted
from helperd.helper.worker import Worker
from helperd.kernel.hints import name_process
from helperd.kernel.syscalls import has_first_word, raise_limit
from helperd.modes import STRICT
from helperd.targets.hold import Hold
from helperd.targets.permissions import Permissions, Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.confined.broker import BrokerClient
    from helperd.options import Options
    from helperd.reports.end import End
    from helperd.reports.log import Log

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
    begin: Callable[[Sequence[int], Options, int, Hold | None, Log], Child | None] | None = None,
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
        begin: lets a worker serve that has been forked before, called with the arguments of
            :func:`serve`; one is forked now if there is none, or it is dead.
    """
    fds = (pages_fd, request_fd, reply_fd)
    raise_limit()
    try:
        permissions = Permissions(
            Spawner(spawner, is_spawner),
            os.getpid(),
            options.targets,
            descendants=options.sandbox != STRICT,
        )
        pinned = _pin_first(permissions, spawner)
        child = None if begin is None else begin(fds, options, spawner, pinned, log)
        if child is None:

            def work(client: BrokerClient) -> int:
                return serve(fds, client, options, spawner, pinned, log)

            kept = fds if pinned is None else (*fds, *pinned.fds)
            child = Child(work, "helperd-worker", kept, log)
    except HelperdError as error:
        from helperd.helper.answers import fail

        return fail(request_fd, reply_fd, error, log)
    permissions.own_pids.add(child.pid)
    if name:
        name_process(name)
    answers = {_PIN: lambda question: _pin(permissions, question)}
    return child.attend(answers, fds, log, peer_fd=peer_fd, on_start=on_start)


def serve(
    fds: Sequence[int],
    client: BrokerClient,
    options: Options,
    spawner: int,
    pinned: Hold | None,
    log: Log,
    *,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Be the worker of a session; return its exit code.

    Args:
        fds: the pages image, where requests come from, where answers go.
        client: of the parent.
        options: of the session.
        spawner: the process that most requests name.
        pinned: a hold on it, if it may be written to.
        log: for all that happens.
        prepare: called first; what it raises is answered, too.
    """
    first = [] if pinned is None else [pinned]

    def pin(pid: int) -> Hold:
        if first and pid == spawner:
            hold = first.pop()
            # It may have executed another program since.
            if hold.pagemap is None or has_first_word(hold.pagemap):
                return hold
        return Hold.from_fds(pid, client.ask(_PIN, _PID.pack(pid), f"process {pid}"))

    pages_fd, request_fd, reply_fd = fds
    try:
        prepare()
        worker = Worker(pages_fd, request_fd, reply_fd, pin, client.leave, options, log)
    except Exception as error:
        from helperd.helper.answers import fail
        from helperd.reports.end import pack
        from helperd.reports.failures import as_helperd_error

        failure = as_helperd_error(error, log)
        end = fail(request_fd, reply_fd, failure, log)
        client.leave(pack({}, end.reason))
        return end.exit_code
    return worker.serve(options.sandbox, [spawner, *options.targets])


def _pin_first(permissions: Permissions, spawner: int) -> Hold | None:
    """Return a hold on the process that requests will name, so that nobody waits for it then.

    None if there is none to be had: why not is for a request that does name it.
    """
    try:
        return permissions.pin(spawner)
    except HelperdError:
        return None


def _pin(permissions: Permissions, question: bytes) -> Hold:
    """Return a hold on the process that a worker asks for."""
    if len(question) != _PID.size:
        raise NotPermitted("the worker asks for something that is no process")
    return permissions.pin(*_PID.unpack(question))
