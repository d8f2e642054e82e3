"""A session process: becomes the client, receives what it wants, and has a worker serve it.

What it and its worker import only when they need it is imported here already: for the client they
have no time, and as the client they may not be allowed to read our files.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from helperd.errors import (
    MalformedRequest,
    NotPermitted,
    PeerGone,
    ProtocolError,
    describe_errno,
    printable,
)
from helperd.helper import answers, worker  # noqa: F401
from helperd.helper.descriptors import check_pages, prepare_pages
from helperd.helper.session import run_session
from helperd.kernel import privileges, procfs
from helperd.kernel.descriptors import as_rights, close_all_but, from_rights, room_for_rights
from helperd.kernel.hints import name_process
from helperd.reports import logformats  # noqa: F401
from helperd.reports.end import End
from helperd.reports.failures import as_helperd_error
from helperd.reports.openlog import log_to
from helperd.server.pb.session_pb2 import SessionReply, SessionRequest
from helperd.wire.session import MAX_FDS, MAX_REQUEST, N_FDS, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from helperd.helper.waiting import WaitingWorker
    from helperd.reports.log import Log
    from helperd.server.limits import Limits
    from helperd.server.peer import Peer

#: Of the process.
NAME = "helperd-session"
#: A client that has connected says at once what it wants.
_HELLO_SECONDS = 10


class Session:
    """What runs in a freshly forked process of the server.

    Args:
        connection: to the client; nothing has been read from it yet.
        peer: the client.
        limits: of the server.
        log: of the server, for sessions that bring none of their own.
        waiting: a worker that is there already; it is gone when :meth:`run` returns.
    """

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        limits: Limits,
        log: Log,
        waiting: WaitingWorker | None = None,
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._limits = limits
        self._log = log
        self._waiting = waiting

    def run(self, report_fd: int) -> int:
        """Serve the client; return the exit code. Leaves the end's numbers at ``report_fd``."""
        waiting_fds = () if self._waiting is None else (self._waiting.fd,)
        close_all_but((self._connection.fileno(), report_fd, *waiting_fds, *self._log.fds))
        name_process(NAME)
        server = os.getppid()
        end, number = End(0, "", {}), 0
        try:
            identity = self._peer.become()
            if self._waiting is not None:
                self._waiting.identity = identity
            # Only now: a change of identity takes the death signal away.
            privileges.die_with_parent(signal.SIGKILL)
            if os.getppid() != server:
                raise PeerGone("the server is gone")
            self._limits.restrain()
            end = self._serve()
        except Exception as error:
            failure = as_helperd_error(error, self._log)
            self._log.error(f"{self._peer}: {failure}", event="refused", errno=failure.errno)
            end, number = End(failure.exit_code, str(failure), {}), failure.errno
        if self._waiting is not None:
            self._waiting.dismiss()
        self._say_goodbye(end, number)
        os.write(report_fd, json.dumps(end.numbers).encode())
        return end.exit_code

    def rehearse(self) -> None:
        """Do what :meth:`run` does, but for what could not be undone."""
        self._peer.rehearse()
        end = self._serve()
        json.dumps(end.numbers)
        self._say_goodbye(end, 0)

    def _serve(self) -> End:
        request, fds = self._receive()
        options = self._limits.grant(request)
        log = self._log
        if len(fds) == MAX_FDS:
            log = log_to(options.verbosity, fds.pop(), options.log_layout)
        pages_fd, request_fd, reply_fd = fds
        check_pages(pages_fd, "the passed image")
        prepare_pages(pages_fd, "that was passed")
        spawner, is_spawner = self._spawner(for_parent=request.for_parent)
        waiting, self._waiting = self._waiting, None
        return run_session(
            pages_fd,
            request_fd,
            reply_fd,
            spawner=spawner,
            is_spawner=is_spawner,
            options=options,
            log=log,
            peer_fd=self._connection.fileno(),
            on_start=self._say_hello,
            begin=None if waiting is None else waiting.begin,
        )

    def _receive(self) -> tuple[SessionRequest, list[int]]:
        """Return what the client wants, and the descriptors it has passed."""
        if not self._wait_for_client():
            raise ProtocolError(f"you said nothing for {_HELLO_SECONDS} seconds")
        try:
            message, ancillary, flags, _ = self._connection.recvmsg(
                MAX_REQUEST,
                room_for_rights(MAX_FDS),
                socket.MSG_CMSG_CLOEXEC,
            )
        except OSError as error:
            raise PeerGone(f"the client is gone: {describe_errno(error.errno or 0)}") from error
        fds = from_rights(ancillary)
        if not message and not fds:
            raise PeerGone("the client is gone without a word")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) not in (N_FDS, MAX_FDS):
            raise MalformedRequest(
                f"a SessionRequest with {len(fds)} descriptors: it takes the pages image, the"
                " request pipe, the reply pipe and maybe a log"
            )
        try:
            request = SessionRequest.FromString(message)
        except DecodeError as error:
            raise MalformedRequest(f"not a SessionRequest: {error}") from error
        if request.version != VERSION:
            raise MalformedRequest(
                f"version {request.version} of the session protocol: this server speaks {VERSION}"
            )
        return request, fds

    def _wait_for_client(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(_HELLO_SECONDS * 1000))

    def _spawner(self, *, for_parent: bool) -> tuple[int, Callable[[], bool]]:
        """Return the restorer, and what tells whether it still is.

        That is the client, or its parent, as for a helper that it has spawned.
        """
        client = self._peer.pid
        if not for_parent:
            return client, self._is_connected
        parent = procfs.parent_in_proc(client)
        if parent is None:
            raise NotPermitted("your process is gone or has no parent")
        return parent, lambda: procfs.parent_in_proc(client) == parent

    def _is_connected(self) -> bool:
        """Return whether the client is there: then its pid is its own."""
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return not poll.poll(0)

    def _say_hello(self, worker_pid: int) -> None:
        pidfd = os.pidfd_open(worker_pid)
        reply = SessionReply()
        reply.started.worker_pid = worker_pid
        try:
            self._connection.sendmsg(
                [reply.SerializeToString()], as_rights([pidfd]), socket.MSG_DONTWAIT
            )
        except OSError:
            pass  # A client that is gone is noticed by the end of its connection.
        finally:
            os.close(pidfd)

    def _say_goodbye(self, end: End, number: int) -> None:
        reply = SessionReply()
        reply.ended.exit_code = end.exit_code
        reply.ended.errno = number
        reply.ended.reason = printable(end.reason)
        reply.ended.stats = end.to_json()
        try:
            self._connection.send(reply.SerializeToString(), socket.MSG_DONTWAIT)
        except OSError:
            return
