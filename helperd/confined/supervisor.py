"""The two processes of a service: a confined child that does the work, and its parent.

The parent forks the child, opens for it what it may have, and knows how it ended. What the child
does, and what it may ask for, is the service's: see :mod:`helperd.helper.session`.
"""

from __future__ import annotations

# Not the signal module: it imports enum, which takes longer than all of ours.
import _signal as signal

# Not the socket module, for the same reason.
import _socket
import posix as os
import select

from helperd.confined import broker
from helperd.confined.broker import Broker, BrokerClient
from helperd.errors import (
    EXIT_RESOURCES,
    ResourceError,
    describe_errno,
    from_errno,
    shell_status,
)
from helperd.kernel.descriptors import as_rights, close_all_but, let_go
from helperd.kernel.hints import name_process
from helperd.kernel.signals import EXIT_STOPPED, FORWARDED, Forwarding
from helperd.kernel.syscalls import wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from helperd.confined.broker import Answer
    from helperd.reports.end import End
    from helperd.reports.log import Log


class Child:
    """A child process that is to be confined, and its parent's end of the socket between them.

    It has no descriptors but the standard ones, ``fds``, the log's, and its end of the socket. It
    dies with its parent.

    Args:
        work: what the child does; returns its exit code. It is to confine itself first.
        name: of the child's process, at most 15 bytes.
        fds: what the child works with; they stay ours, too.
        log: for all that happens.

    Attributes:
        pid: of the process.

    Raises:
        ResourceError: the system cannot have it.
    """

    def __init__(
        self, work: Callable[[BrokerClient], int], name: str, fds: Sequence[int], log: Log
    ) -> None:
        parent = os.getpid()
        self._pidfd = -1
        self._end, childs_end = broker.socket_pair()
        try:
            self.pid = os.fork()
        except OSError as error:
            self._end.close()
            childs_end.close()
            raise ResourceError(f"cannot fork: {describe_errno(error.errno or 0)}") from error
        if self.pid == 0:
            code = EXIT_RESOURCES
            try:
                log.role = "-worker"
                close_all_but((*fds, childs_end.fileno(), *log.fds))
                if _die_with(parent, name):
                    code = work(BrokerClient(childs_end))
            finally:
                os._exit(code)
        childs_end.close()

    @property
    def fd(self) -> int:
        """Our end of the socket."""
        return self._end.fileno()

    def order(self, order: bytes, fds: Sequence[int]) -> bool:
        """Tell a child that waits for it what to do, and pass descriptors; return if it can be.

        See :meth:`BrokerClient.receive_order`.
        """
        try:
            self._end.sendmsg([order], as_rights(fds), _socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it, whatever it does."""
        self._end.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """Pass no signals on any more to a child that was attended to until its end."""
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def attend(
        self,
        answers: Mapping[bytes, Answer],
        fds: Sequence[int],
        log: Log,
        *,
        peer_fd: int | None = None,
        on_start: Callable[[int], None] = lambda _pid: None,
    ) -> End:
        """Answer what it asks until it has ended; return its end.

        Signals that this process gets are passed on to it.

        Args:
            answers: what the child may ask for, see :class:`Broker`.
            fds: those of its descriptors that are to be let go of here, so that whoever is at the
                other ends sees at once when the child has died.
            log: for what happens now.
            peer_fd: a connection whose end is to end the child.
            on_start: called with the child's pid.
        """
        self._pidfd = pidfd = os.pidfd_open(self.pid)
        forwarding = Forwarding(pidfd, lambda why: log.error(why, event="stopped"))
        for fd in fds:
            let_go(fd)
        on_start(self.pid)
        mediator = Broker(self._end, answers)
        _attend(pidfd, mediator, peer_fd)
        return _reap(self.pid, mediator, forwarding, log)


def _die_with(parent: int, name: str) -> bool:
    """Name this child, and let it die with its parent; return False if that has died already."""
    from helperd.kernel import privileges

    name_process(name)
    privileges.die_with_parent(signal.SIGKILL)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    return os.getppid() == parent


def _attend(pidfd: int, mediator: Broker, peer_fd: int | None) -> None:
    """Answer the child until it ends; end it when the peer is gone."""
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


def _reap(pid: int, mediator: Broker, forwarding: Forwarding, log: Log) -> End:
    from helperd.reports.end import End, unpack

    try:
        status, peak_rss_kib = wait_for(pid)
    except OSError as error:
        raise from_errno(error.errno or 0, f"waiting for worker {pid}") from error
    forwarding.end()
    numbers, reason = unpack(mediator.last_words)
    numbers["peak_rss_kib"] = peak_rss_kib
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return End(code, reason or f"the worker exited with {code}", numbers)
    if forwarding.insisted and code == -signal.SIGKILL:
        reason = "stopped by a second signal, in the middle of a request perhaps"
        log.error(reason, event="stopped")
        return End(EXIT_STOPPED, reason, numbers)
    reason = f"worker {pid} was killed by signal {-code}, {signal.strsignal(-code)}"
    log.error(reason, event="killed", signal=-code)
    return End(shell_status(code), reason, numbers)
