"""Between a confined child, which can open nothing, and its parent, which opens what it may have.

They share a socket pair of type SEQPACKET: a message is a message. The child asks (one byte that
says what for, and the rest of the question) and gets descriptors (``+``) or the reason why not
(``-``, the errno, the name of the error's class, its message). At its end it leaves its last words
(``E``).
"""

from __future__ import annotations

# Not the socket module: it imports selectors and enum, which take longer than our whole start.
import _socket
import errno
import posix as os
from _struct import Struct

from helperd import errors
from helperd.errors import (
    HelperdError,
    InternalError,
    ResourceError,
    describe_errno,
    from_errno,
    printable,
)
from helperd.kernel.descriptors import as_rights, from_rights, room_for_rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    class Grant(Protocol):
        """Has the descriptors that a question is answered with; they are closed with it."""

        @property
        def fds(self) -> Sequence[int]:
            """Return them; they stay the parent's."""

    #: Returns what a question is answered with; raises HelperdError as the reason why not.
    Answer = Callable[[bytes], Grant]

_LAST_WORDS = b"E"
_GRANTED, _REFUSED = b"+", b"-"
_NUMBER = Struct("<i")
_MAX_MESSAGE = 1 << 14
_MAX_FDS = 16


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """Return the two ends: of the parent, of the child.

    Raises:
        HelperdError: out of descriptors or memory.
    """
    try:
        return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    except OSError as error:
        raise from_errno(error.errno or 0, "cannot make a socket pair") from error


class Broker:
    """The parent's side. It trusts no message: the child may have been taken over.

    Args:
        end: of the socket pair.
        answers: what may be asked for, by the byte that says so. Only these are answered; a child
            that asks for anything else is answered no more.

    Attributes:
        fd: to be polled for input.
        last_words: what the child has left; empty until then.
    """

    def __init__(self, end: _socket.socket, answers: Mapping[bytes, Answer]) -> None:
        self._end = end
        self._answers = answers
        self.fd = end.fileno()
        self.last_words = ""

    def answer(self) -> bool:
        """Receive one message and act on it; return False when none will come any more."""
        try:
            message = self._end.recv(_MAX_MESSAGE, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        kind, rest = message[:1], message[1:]
        if kind == _LAST_WORDS:
            self.last_words = rest.decode("utf-8", "replace")
            return True
        answer = self._answers.get(kind)
        return answer is not None and self._send(answer, rest)

    def close(self) -> None:
        """Close the parent's end: a child that waits for an answer gets none."""
        self._end.close()

    def _send(self, answer: Answer, question: bytes) -> bool:
        fds: Sequence[int] = ()
        try:
            grant = answer(question)  # Kept until its descriptors are sent.
            fds, reply = grant.fds, _GRANTED
        except HelperdError as error:
            name = type(error).__name__
            reply = _REFUSED + _NUMBER.pack(error.errno) + printable(f"{name} {error}").encode()
        try:
            # A child that does not read its answers is none.
            self._end.sendmsg([reply], as_rights(fds), _socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


class BrokerClient:
    """The child's side."""

    def __init__(self, end: _socket.socket) -> None:
        self._end = end

    def ask(self, kind: bytes, question: bytes, what: str) -> list[int]:
        """Return the descriptors that the parent gives for a question.

        Args:
            kind: one byte, what is asked for.
            question: the rest of it.
            what: the same in words, for errors: "process 7".

        Raises:
            HelperdError: the reason why the parent gives none.
            ResourceError: there is no room for the descriptors.
            InternalError: the parent is gone.
        """
        try:
            self._end.send(kind + question)
            reply, ancillary, flags, _ = self._end.recvmsg(
                _MAX_MESSAGE, room_for_rights(_MAX_FDS), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise InternalError(
                f"cannot ask the parent for {what}: {describe_errno(error.errno or 0)}"
            ) from error
        fds = from_rights(ancillary)
        if flags & _socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ResourceError(
                f"no descriptors left for {what}: raise RLIMIT_NOFILE", errno=errno.EMFILE
            )
        if reply[:1] == _GRANTED and fds:
            return fds
        if reply[:1] != _REFUSED:
            raise InternalError(f"the parent does not answer for {what}")
        (number,) = _NUMBER.unpack_from(reply, 1)
        name, _, message = reply[1 + _NUMBER.size :].decode().partition(" ")
        raise getattr(errors, name)(message, errno=number)

    def receive_order(self, most_fds: int) -> tuple[bytes, list[int]]:
        """Wait for what the parent wants; return it, with the descriptors that come along.

        Both are empty when the parent is gone.
        """
        try:
            order, ancillary, _, _ = self._end.recvmsg(
                _MAX_MESSAGE, room_for_rights(most_fds), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return b"", []
        return order, from_rights(ancillary)

    def leave(self, last_words: str) -> None:
        """Leave the last words, which a parent that is gone does not need."""
        try:
            self._end.send(_LAST_WORDS + last_words.encode("utf-8", "replace"))
        except OSError:
            return
