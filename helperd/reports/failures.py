"""What nobody expected, as an error of ours that can be told in one line."""

from __future__ import annotations

import errno

from helperd.errors import HelperdError, InternalError, ResourceError, describe_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.reports.log import Log

#: What a system call says when something ran out, whichever call it was.
_OUT_OF_RESOURCES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def as_helperd_error(error: Exception, log: Log) -> HelperdError:
    """Return ``error`` as one of ours; what nobody expected becomes an InternalError."""
    if isinstance(error, HelperdError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("out of memory")
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        return ResourceError(describe_errno(error.errno), errno=error.errno)
    # By hand: the traceback module could not be imported any more.
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        log.debug(f"{code.co_filename}, line {frame.tb_lineno}, in {code.co_name}", event="trace")
        frame = frame.tb_next
    return InternalError(
        f"internal error: {type(error).__name__}: {error} (a bug: run with -v4 and report it)"
    )
