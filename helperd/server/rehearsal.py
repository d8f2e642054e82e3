"""What a server and its spare sessions do for nobody, so that a client need not wait for it.

What a process writes to for the first time after a fork is copied then, page by page, and Python
writes to all that it uses; so both go their whole ways once with clients of their own making. See
:mod:`helperd.helper.rehearsal` for the worker's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

from helperd.errors import HelperdError
from helperd.helper.waiting import WaitingWorker
from helperd.kernel.descriptors import as_rights
from helperd.reports.end import pack
from helperd.reports.log import SILENT, Log
from helperd.server.metrics import Metrics
from helperd.server.pb.session_pb2 import SessionRequest
from helperd.server.peer import Peer, keep_identity
from helperd.server.session import Session
from helperd.server.spare import Spare, wait_for_client
from helperd.wire.session import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helperd.confined.broker import BrokerClient
    from helperd.server.limits import Limits

#: As many as an order to a worker has: what it serves with, and a hold on a process.
_MOST_FDS = 16


def rehearse_server() -> None:
    """Do what a server does for a client."""
    with _pair() as (ours, _theirs), _pair() as (channel, _):
        peer = Peer(ours)
        Spare(os.getpid(), channel, -1).hand_over(ours)
        metrics = Metrics(None, Log(SILENT, None))
        metrics.started()
        metrics.ended(0, json.loads(json.dumps({"requests": 0, "seconds": 0.5})))
        str(peer)


def rehearse_session(limits: Limits, pid: int) -> None:
    """Do what a session does, in a spare one, with a worker that says at once that all is done.

    Args:
        limits: of the server.
        pid: any process that can be looked at.
    """
    with contextlib.suppress(OSError, HelperdError):
        limits.restrain()
        _serve(limits, pid)


def rehearse_becoming(limits: Limits) -> None:
    """Do what a worker that has waited does to become one for a client."""
    with contextlib.suppress(OSError, HelperdError):
        keep_identity()
        limits.restrain()


def _serve(limits: Limits, pid: int) -> None:
    log = Log(SILENT, None)
    with _pair() as (client, theirs), _pair() as (channel, theirs_too):
        image = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
        requests, asking = os.pipe()
        answers, answering = os.pipe()
        request = SessionRequest(version=VERSION).SerializeToString()
        client.sendmsg([request], as_rights([image, requests, answering]))
        for fd in (image, requests, asking, answers, answering):
            os.close(fd)
        Spare(os.getpid(), channel, -1).hand_over(theirs)
        connection = wait_for_client(theirs_too)
        assert connection is not None
        peer = Peer(connection)
        peer.pid = pid
        worker = WaitingWorker(_leave, log)
        try:
            with connection:
                Session(connection, peer, limits, log, worker).rehearse()
        finally:
            worker.forget()


def _leave(client: BrokerClient) -> int:
    """Be a worker that has nothing to do."""
    client.receive_order(_MOST_FDS)
    client.leave(pack({"requests": 0}, "rehearsed"))
    return 0


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other
