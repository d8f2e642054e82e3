"""Who a client is, as the kernel tells it, and becoming that client."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from helperd.confined.confine import WORKER_CAPABILITIES
from helperd.errors import NotPermitted, describe_errno
from helperd.kernel import privileges, procfs

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = 0
_UCRED = struct.Struct("=iII")
_ID = struct.Struct("=I")
# asm-generic/socket.h; Python names neither.
_SO_PEERGROUPS = 59
#: More than there are.
_N_CAPABILITIES = 64
#: As many as fit into what Python lets getsockopt return.
_MAX_GROUPS = 256

#: Those of a worker, and reading what /proc tells of other users' processes.
SESSION_CAPABILITIES = (*WORKER_CAPABILITIES, privileges.CAP_DAC_READ_SEARCH)


class Peer:
    """The process that connected, as it was when it did.

    Attributes:
        pid: of the client, in our pid namespace; 0 when it is not visible there.
        uid: its effective user,
        gid: and group,
        groups: and supplementary groups.

    Raises:
        NotPermitted: it is in more groups than can be taken over.
    """

    def __init__(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid, self.uid, self.gid = _UCRED.unpack(credentials)
        try:
            groups = connection.getsockopt(
                socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * _ID.size
            )
        except OSError as error:
            raise NotPermitted(
                f"cannot tell the groups of {self}: {describe_errno(error.errno or 0)}"
                f" (at most {_MAX_GROUPS} are possible)"
            ) from error
        self.groups = [group for (group,) in _ID.iter_unpack(groups)]

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"

    def become(self) -> list[int]:
        """Take the client's identity, for good: the kernel judges from now on.

        A root client's session keeps the capabilities that the job needs, and of those only what
        the client has itself: root in a container is not root.

        Returns:
            The identity, for another process of the server's to :func:`take_identity`.

        Raises:
            NotPermitted: this server cannot be that user, or the client is in another namespace.
        """
        kept = self._capabilities() if self.uid == _ROOT else 0
        identity = [kept, self.uid, self.gid, *self.groups]
        take_identity(identity)
        self._check_namespaces()
        return identity

    def rehearse(self) -> None:
        """Do what :meth:`become` does, but for what could not be undone.

        Raises:
            NotPermitted: the client cannot be looked at.
        """
        self._capabilities()
        keep_identity()
        self._check_namespaces()

    def _capabilities(self) -> int:
        try:
            return procfs.effective_capabilities(self.pid)
        except OSError as error:
            raise NotPermitted(
                "your process is not visible in the server's /proc: it is gone, or the server has"
                " no /proc, or that of another pid namespace"
            ) from error

    def _check_namespaces(self) -> None:
        """Pids and users of another namespace would mean other processes and other users here."""
        for name in ("pid", "user"):
            try:
                same = procfs.namespace(self.pid, name) == procfs.namespace(os.getpid(), name)
            except OSError as error:
                raise NotPermitted(
                    f"cannot see your {name} namespace: {describe_errno(error.errno or 0)}"
                ) from error
            if not same:
                raise NotPermitted(f"you are in another {name} namespace than this server")


def keep_identity() -> None:
    """Take the steps of :func:`take_identity`, and stay who this process is."""
    if os.geteuid() == _ROOT:
        os.setgroups(os.getgroups())
        os.setresgid(-1, -1, -1)
        os.setresuid(-1, -1, -1)
    privileges.limit_capabilities(range(_N_CAPABILITIES))


def take_identity(identity: Sequence[int]) -> None:
    """Take an identity: the capabilities that it may have, user, group, supplementary groups.

    Raises:
        NotPermitted: this process cannot be that user.
    """
    kept, uid, gid, *groups = identity
    try:
        if os.geteuid() == _ROOT:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        elif os.geteuid() != uid:
            raise NotPermitted(
                f"this server runs as user {os.geteuid()} and serves no other, you are user"
                f" {uid}: run it as root"
            )
        privileges.limit_capabilities([one for one in SESSION_CAPABILITIES if kept >> one & 1])
    except OSError as error:
        raise NotPermitted(
            f"cannot take the identity of user {uid}: {describe_errno(error.errno or 0)}"
        ) from error
