"""A worker that is forked before there is a session for it: no client waits for the fork."""

from __future__ import annotations

# What two processes of one program tell each other; nothing of it comes from anywhere else.
import marshal
import posix as os

from helperd.confined import broker
from helperd.confined.broker import BrokerClient
from helperd.confined.supervisor import Child
from helperd.helper.rehearsal import rehearse
from helperd.helper.session import serve
from helperd.kernel.descriptors import as_rights
from helperd.kernel.hints import name_process
from helperd.options import Options
from helperd.reports.log import TEXT, Log
from helperd.targets.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Of its process, until it serves.
NAME = "helperd-waiting"
#: The image and two pipes; a log; a pidfd and three files of /proc.
_N_PIPES, _MOST_FDS = 3, 8


class WaitingWorker:
    """A worker that waits, as its parent sees it.

    Args:
        be: what the worker does, called with its end of the socket; returns its exit code. See
            :func:`wait`.
        log: for all that happens, unless a session has one of its own.

    Attributes:
        identity: of whom the worker is to be; whoever gives ``be`` knows what it means.
        fd: of the parent's, by which it is told.

    Raises:
        ResourceError: the system cannot have it.
    """

    def __init__(self, be: Callable[[BrokerClient], int], log: Log) -> None:
        self.identity: list[int] = []
        self._log = log
        self._child = Child(be, NAME, (), log)
        self.fd = self._child.fd

    def begin(
        self, fds: Sequence[int], options: Options, spawner: int, pinned: Hold | None, log: Log
    ) -> Child | None:
        """Let it serve a session; None if it cannot any more. Arguments as of ``serve``."""
        log_fds = None if log is self._log else log.fds
        n_log = -1 if log_fds is None else len(log_fds)
        order = (vars(options), spawner, self.identity, n_log, log.level)
        pinned_fds = [] if pinned is None else pinned.fds
        if self._child.order(marshal.dumps(order), [*fds, *(log_fds or ()), *pinned_fds]):
            return self._child
        self.dismiss()
        return None

    def forget(self) -> None:
        """See :meth:`Child.forget`."""
        self._child.forget()

    def dismiss(self) -> None:
        """Let it end without ever having served."""
        self._child.kill()


def wait(client: BrokerClient, become: Callable[[list[int]], None], log: Log) -> int:
    """Wait for a session, and serve it; return the exit code.

    Args:
        client: of the parent.
        become: called before it serves, with what :attr:`WaitingWorker.identity` is by then.
        log: for all that happens, unless the session has one of its own.
    """
    rehearse()
    _rehearse_order(log)
    order = _receive(client, log)
    if order is None:
        return 0
    pipes, options, spawner, identity, pinned, log = order
    name_process("helperd-worker")
    return serve(pipes, client, options, spawner, pinned, log, prepare=lambda: become(identity))


def _receive(
    client: BrokerClient, log: Log
) -> tuple[list[int], Options, int, list[int], Hold | None, Log] | None:
    """Return what a session is to be, see :meth:`WaitingWorker.begin`; None if there is none."""
    order, fds = client.receive_order(_MOST_FDS)
    if not order:
        return None
    settings, spawner, identity, n_log, level = marshal.loads(order)
    options = Options()
    vars(options).update(settings)
    pipes, rest = fds[:_N_PIPES], fds[_N_PIPES:]
    if n_log >= 0:
        log = _log_to(rest.pop(0) if n_log else None, level, options.log_layout)
    pinned = Hold.from_fds(spawner, rest) if rest else None
    return pipes, options, spawner, identity, pinned, log


def _rehearse_order(log: Log) -> None:
    """Receive an order that is none, see :mod:`helperd.helper.rehearsal`."""
    pid = os.getpid()
    ours, theirs = broker.socket_pair()
    hold = Hold.open(pid)
    nobody: list[int] = []
    order = (vars(Options()), pid, nobody, -1, log.level)
    # Any descriptors do; they are closed again.
    fds = [ours.fileno()] * _N_PIPES
    ours.sendmsg([marshal.dumps(order)], as_rights([*fds, *hold.fds]))
    received = _receive(BrokerClient(theirs), log)
    for fd in received[0] if received else ():
        os.close(fd)
    ours.close()
    theirs.close()


def _log_to(fd: int | None, level: int, layout: str) -> Log:
    if layout == TEXT:
        return Log(level, fd, "-worker")
    from helperd.reports import logformats  # The server has imported it.

    return Log(level, fd, "-worker", logformats.LAYOUTS[layout])
