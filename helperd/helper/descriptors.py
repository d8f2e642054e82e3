"""The descriptors of a session: taken from the command line, looked at, and let go."""

from __future__ import annotations

import errno
import os
import stat

from helperd.errors import ImageError, UsageError, describe_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.options import Options


def pipe_fds(options: Options) -> tuple[int, int]:
    """Return the descriptors of requests and of answers.

    Raises:
        UsageError: one is not open.
    """
    if options.stdin_pipes:
        fds = (0, 1)
    else:
        assert options.request_fd is not None
        assert options.reply_fd is not None
        fds = (options.request_fd, options.reply_fd)
    for name, fd in zip(("request", "reply"), fds, strict=True):
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(f"the {name} descriptor {fd} is not open") from error
    return fds


def open_pages(options: Options) -> int:
    """Return a descriptor of the pages image, after a look at what it is.

    Raises:
        ImageError: it cannot be opened, or not be read at an offset.
    """
    if options.pages_fd is not None:
        fd, name = options.pages_fd, f"--pages-fd {options.pages_fd}"
    else:
        name = str(options.pages)
        try:
            fd = _open_image(name, writable=options.punches)
        except OSError as error:
            raise _image_error(error, f"cannot open the pages image {name}") from error
    check_pages(fd, name)
    return fd


def check_pages(fd: int, name: str) -> None:
    """See that ``fd`` is a pages image as far as that can be told, and prepare for reading it.

    Raises:
        ImageError: it cannot be read at an offset.
    """
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(f"{name} is not a file that can be read at an offset")
        os.pread(fd, 0, 0)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError as error:
        raise _image_error(error, f"cannot read the pages image {name}") from error


def _open_image(path: str, *, writable: bool) -> int:
    # Not blocking: a FIFO would wait for a writer. Regular files do not care.
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if writable:
        try:
            return os.open(path, flags | os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                raise
    return os.open(path, flags | os.O_RDONLY)


def _image_error(error: OSError, what: str) -> ImageError:
    number = error.errno or errno.EIO
    return ImageError(f"{what}: {describe_errno(number)}", errno=number)
