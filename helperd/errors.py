"""Every way helperd can fail, each with its errno, its exit code and a message for a person.

The exit codes and the errno of an answer are part of the contract with restore tools:

====  =====================================================================
code  meaning
====  =====================================================================
0     end of input on a request boundary, every request served
2     usage: options that make no sense
3     protocol: a malformed, truncated or oversized request, a peer that left
4     image: missing, short, corrupt or unknown files
5     target: the process is gone, or the memory is not mapped
6     not permitted
7     out of resources, or a bug in helperd
141   nobody reads stdout any more (128 + SIGPIPE): a pager was left, say
128+N the worker was killed by signal N
====  =====================================================================

A message names the what, the where and the next step, in one line.
"""

from __future__ import annotations

import errno as _errno
import posix as os

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_PROTOCOL = 3
EXIT_IMAGE = 4
EXIT_TARGET = 5
EXIT_PERMISSION = 6
EXIT_RESOURCES = 7
EXIT_SIGNAL_BASE = 128
EXIT_OUTPUT_GONE = 141


def shell_status(code: int) -> int:
    """Return an exit code as a shell tells it: 128 + N for a process that signal N has ended.

    Args:
        code: of a process, negative if a signal has ended it, as Python has them.
    """
    return EXIT_SIGNAL_BASE - code if code < 0 else code


class HelperdError(Exception):
    """Base of all errors of helperd.

    ``errno`` is what a restorer receives (negated) as the answer, ``exit_code`` what the process
    exits with. Catch this class to catch everything that helperd raises on purpose.
    """

    errno: int = _errno.EIO
    exit_code: int = EXIT_RESOURCES
    #: Bytes that had been written to the target when a write failed.
    bytes_done: int = 0

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        if errno is not None:
            self.errno = errno


class UsageError(HelperdError):
    """The options or arguments make no sense; nothing was done. Correct the call."""

    errno = _errno.EINVAL
    exit_code = EXIT_USAGE


class ProtocolError(HelperdError):
    """The bytes on the request or answer pipe break the pipe_hdr protocol."""

    errno = _errno.EPROTO
    exit_code = EXIT_PROTOCOL


class MalformedRequest(ProtocolError):
    """A field or a sum of a request is wrong. Raised before anything is read or written."""


class RequestTooLarge(ProtocolError):
    """A request declares more pages than this helper was told to accept (--max-request)."""


class TruncatedRequest(ProtocolError):
    """The request pipe ended inside a request."""


class MalformedStream(ProtocolError):
    """What CRIU or a shard sends does not make up a stream of image files."""


class TruncatedStream(ProtocolError):
    """A stream of image files ended before the image was complete."""


class PeerGone(ProtocolError):
    """The other end of a pipe was closed while bytes were still owed."""

    errno = _errno.EPIPE


class ImageError(HelperdError):
    """An image file is missing, unreadable, or not what it claims to be."""

    errno = _errno.EIO
    exit_code = EXIT_IMAGE


class ShortImage(ImageError):
    """A pages image ends before the payload that a request or a pagemap names."""


class CorruptBlock(ImageError):
    """A compressed block does not decode to exactly its pages."""

    errno = _errno.EBADMSG


class ImageFormatError(ImageError):
    """An image file has a wrong magic, a broken record, or fields that contradict each other."""

    errno = _errno.EBADMSG


class TargetError(HelperdError):
    """The process to be written to is the problem."""

    errno = _errno.EFAULT
    exit_code = EXIT_TARGET


class TargetGone(TargetError):
    """The target died, executed another program, or never existed."""

    errno = _errno.ESRCH


class TargetNotMapped(TargetError):
    """A page that a request names is not mapped writable in the target."""


class NotPermitted(HelperdError):
    """The target is not the helper's to write to (see ``--target``), or the kernel said no."""

    errno = _errno.EPERM
    exit_code = EXIT_PERMISSION


class ResourceError(HelperdError):
    """Memory, descriptors or disk space ran out."""

    errno = _errno.ENOMEM
    exit_code = EXIT_RESOURCES


class OutputLost(ResourceError):
    """What was to be printed could not be written to stdout: the disk is full, or it is closed."""


class OutputGone(HelperdError):
    """Nobody reads stdout any more. Nothing is said about it, as if SIGPIPE had ended us."""

    errno = _errno.EPIPE
    exit_code = EXIT_OUTPUT_GONE


class InternalError(HelperdError):
    """A bug in helperd; the log at -v4 has the trace."""


class HelperFailed(HelperdError):
    """The helper answered with a failure or exited with one; raised by the restorer client.

    ``answer_errno`` is the errno of the failed answer (None when no answer came), ``status`` the
    helper's exit status (None while it is not known).
    """

    def __init__(
        self, message: str, *, answer_errno: int | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, errno=answer_errno)
        self.answer_errno = answer_errno
        self.status = status
        if status:
            self.exit_code = status


_BY_ERRNO: dict[int, type[HelperdError]] = {
    _errno.ESRCH: TargetGone,
    _errno.EFAULT: TargetNotMapped,
    _errno.EPERM: NotPermitted,
    _errno.EACCES: NotPermitted,
    _errno.ENOMEM: ResourceError,
    _errno.EMFILE: ResourceError,
    _errno.ENFILE: ResourceError,
    _errno.ENOSPC: ResourceError,
}


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8; what is not in a name is shown by its code."""
    return text.encode("utf-8", "backslashreplace").decode()


def describe_errno(number: int) -> str:
    """Return ``ENAME, text`` for an errno, for example ``ESRCH, No such process``."""
    return f"{_errno.errorcode.get(number, str(number))}, {os.strerror(number)}"


def describe_bug(error: BaseException) -> str:
    """Return what to say of an error that nobody has thought of."""
    return f"internal error: {type(error).__name__}: {error} (a bug: please report it)"


def from_errno(number: int, what: str) -> HelperdError:
    """Return the error class that fits a failed system call's errno, saying ``what`` failed."""
    cls = _BY_ERRNO.get(number, HelperdError)
    return cls(f"{what}: {describe_errno(number)}", errno=number)
