"""The descriptors of a session: taken from the command line, looked at, and let go."""

from __future__ import annotations

import _stat as stat
import errno
import posix as os

from helperd.errors import ImageError, UsageError, describe_errno
from helperd.kernel.descriptors import is_open
from helperd.kernel.hints import advise_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from helperd.options import Options


#: What says that an image can be read at most; a link that is not to be followed, for one.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.ELOOP)


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
        if not is_open(fd):
            raise UsageError(f"the {name} descriptor {fd} is not open")
    return fds


def open_pages(options: Options) -> int:
    """Return a descriptor of the pages image, after a look at what it is.

    Whoever reads it has to prepare it, too.

    Raises:
        ImageError: it cannot be opened, or not be read at an offset.
    """
    if options.pages_fd is not None:
        fd, name = options.pages_fd, f"--pages-fd {options.pages_fd}"
    else:
        name = str(options.pages)
        try:
            fd = open_image(name, writable=options.punches)
        except OSError as error:
            raise _image_error(error, f"cannot open the pages image {name}") from error
    check_pages(fd, name)
    return fd


def check_pages(fd: int, name: str) -> None:
    """See that ``fd`` is a pages image as far as that can be told.

    Raises:
        ImageError: it cannot be read at an offset.
    """
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(f"{name} is not a file that can be read at an offset")
        os.pread(fd, 0, 0)
    except (OSError, OverflowError) as error:
        raise _image_error(error, f"cannot read the pages image {name}") from error


def prepare_pages(fd: int, name: str) -> None:
    """Prepare for reading a pages image.

    O_DIRECT, which newer CRIUs set on it, is taken away: blocks are not aligned as that wants.

    Raises:
        ImageError: that cannot be done.
    """
    from helperd.kernel.syscalls import file_flags, set_file_flags  # Not for a server's client.

    try:
        flags = file_flags(fd)
        if flags & os.O_DIRECT:
            set_file_flags(fd, flags & ~os.O_DIRECT)
    except OSError as error:
        raise _image_error(error, f"cannot take O_DIRECT from the pages image {name}") from error
    advise_file(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def check_outputs(pages_fd: int, outputs: Iterable[tuple[str, int | None]]) -> None:
    """See that nothing that is written to is the pages image itself.

    Args:
        pages_fd: the pages image.
        outputs: open descriptors, with the options that name them.

    Raises:
        UsageError: one is.
    """
    image = os.fstat(pages_fd)
    for option, fd in outputs:
        if fd is None:
            continue
        status = os.fstat(fd)
        same_file = (image.st_dev, image.st_ino) == (status.st_dev, status.st_ino)
        same_device = stat.S_ISBLK(image.st_mode) and image.st_rdev == status.st_rdev
        if same_file or same_device:
            raise UsageError(f"{option} is the pages image, which would be overwritten")


def open_image(path: str, *, writable: bool) -> int:
    """Open a pages image, for writing only if that is wanted and possible.

    Raises:
        OSError: it cannot be opened for reading.
    """
    # Not blocking: a FIFO would wait for a writer. Regular files do not care.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if writable:
        try:
            # A link leads to somebody else's image: nothing is punched out of that.
            return os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
    return os.open(path, flags | os.O_RDONLY)


def _image_error(error: Exception, what: str) -> ImageError:
    number = (isinstance(error, OSError) and error.errno) or errno.EBADF
    return ImageError(f"{what}: {describe_errno(number)}", errno=number)
