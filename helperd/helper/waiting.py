"""A worker that is forked before there is a session for it: no client waits for the fork."""

from __future__ import annotations

# What two processes of one program tell each other; nothing of it comes from anywhere else.
import marshal

from helperd.confined.supervisor import Child
from helperd.helper.rehearsal import rehearse
from helperd.helper.session import serve
from helperd.kernel.hints import name_process
from helperd.options import Options
from helperd.reports.log import TEXT, Log
from helperd.targets.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.confined.broker import BrokerClient

#: Of its process, until it serves.
NAME = "helperd-waiting"
#: The image and two pipes; a log; a pidfd and three files of /proc.
_N_PIPES, _MOST_FDS = 3, 8


class WaitingWorker:
    """A worker that waits, as its parent sees it.

    Args:
        become: called in the worker before it serves, with what :attr:`identity` is by then.
        log: for all that happens, unless a session has one of its own.

    Attributes:
        identity: what is to be passed to ``become``.
        fd: of the parent's, by which it is told.

    Raises:
        ResourceError: the system cannot have it.
    """

    def __init__(self, become: Callable[[list[int]], None], log: Log) -> None:
        self.identity: list[int] = []
        self._log = log

        def work(client: BrokerClient) -> int:
            return _wait(client, become, log)

        self._child = Child(work, NAME, (), log)
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

    def dismiss(self) -> None:
        """Let it end without ever having served."""
        self._child.kill()


def _wait(client: BrokerClient, become: Callable[[list[int]], None], log: Log) -> int:
    """Wait for a session, and serve it; return the exit code."""
    rehearse()
    order, fds = client.receive_order(_MOST_FDS)
    if not order:
        return 0
    settings, spawner, identity, n_log, level = marshal.loads(order)
    options = Options()
    vars(options).update(settings)
    pipes, rest = fds[:_N_PIPES], fds[_N_PIPES:]
    if n_log >= 0:
        log = _log_to(rest.pop(0) if n_log else None, level, options.log_layout)
    pinned = Hold.from_fds(spawner, rest) if rest else None
    name_process("helperd-worker")
    return serve(pipes, client, options, spawner, pinned, log, prepare=lambda: become(identity))


def _log_to(fd: int | None, level: int, layout: str) -> Log:
    if layout == TEXT:
        return Log(level, fd, "-worker")
    from helperd.reports import logformats  # The server has imported it.

    return Log(level, fd, "-worker", logformats.LAYOUTS[layout])
