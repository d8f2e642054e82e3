"""The framing of image files: magics, then records of {u32 size, protobuf}.

Nothing here knows what is in a record. Sizes are checked against the file before anything is
allocated, and a file that is not a regular one is refused before it can block.
"""

from __future__ import annotations

import os
import stat
import struct

from helperd.errors import HelperdError, ImageError, ImageFormatError, from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

#: First word of the common images; the second word says which one it is.
IMG_COMMON_MAGIC = 0x54564319
#: Pagemaps of processes and of shared memory have the same magic.
PAGEMAP_MAGIC = 0x56084025
#: inventory.img has its own magic only, without the common one.
INVENTORY_MAGIC = 0x58313116

#: What a pagemap file starts with.
PAGEMAP_MAGICS = (IMG_COMMON_MAGIC, PAGEMAP_MAGIC)
#: What inventory.img starts with.
INVENTORY_MAGICS = (INVENTORY_MAGIC,)

#: Protobuf cannot hold more; 1 GiB is the table of an entry of more than a TiB.
MAX_RECORD_BYTES = 1 << 30

_WORD = struct.Struct("<I")


def os_failure(error: OSError, what: str) -> HelperdError:
    """Return the error for a system call that failed on an image file, saying ``what`` failed.

    Lack of permission, memory or disk space keep their own classes; all else is an ImageError.
    """
    failure = from_errno(error.errno or 0, what)
    if type(failure) is HelperdError:
        return ImageError(str(failure), errno=error.errno)
    return failure


def not_listed(path: str, address: int) -> ImageError:
    """Return the error for a page that a dump leaves to a parent which does not have it."""
    return ImageError(
        f"{path}: page {address:#x} is needed from here but not listed: this is not the parent the"
        " dump was made with, or the dump itself is at fault (CRIU has left pages to a parent that"
        " did not have them)"
    )


def open_image(path: str) -> BinaryIO:
    """Open an image file for buffered reading.

    Raises:
        ImageError: the file is missing, cannot be read, or is not a regular file (a pipe under an
            image's name must not hang the reader).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{path}: not a regular file")
    except OSError as error:
        raise os_failure(error, f"cannot open {path}") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"cannot open {path!r}: {error}") from error
    return os.fdopen(fd, "rb")


def read_records(path: str, magics: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """Yield (file offset, payload) of each record of an image file, in order.

    At most one record is held; a size beyond the end of the file is refused before it is read.

    Args:
        path: the image file.
        magics: the words it must start with.

    Raises:
        ImageFormatError: wrong magic, or a record that is cut off or too large.
        ImageError: the file is missing or cannot be read.
    """
    with open_image(path) as stream:
        try:
            file_bytes = os.fstat(stream.fileno()).st_size
            _read_magics(stream, path, magics)
            offset = _WORD.size * len(magics)
            while head := stream.read(_WORD.size):
                if len(head) < _WORD.size:
                    raise ImageFormatError(
                        f"{path}: record at offset {offset} is cut off in its size"
                    )
                (size,) = _WORD.unpack(head)
                left = file_bytes - offset - _WORD.size
                if size > left:
                    raise ImageFormatError(
                        f"{path}: record at offset {offset} claims {size} bytes, {left} are left"
                    )
                if size > MAX_RECORD_BYTES:
                    raise ImageFormatError(
                        f"{path}: record at offset {offset} has {size} bytes,"
                        f" at most {MAX_RECORD_BYTES} are supported"
                    )
                payload = stream.read(size)
                if len(payload) < size:
                    raise ImageFormatError(f"{path}: shrank while it was read, at offset {offset}")
                yield offset, payload
                offset += _WORD.size + size
        except OSError as error:
            raise os_failure(error, f"cannot read {path}") from error


def _read_magics(stream: BinaryIO, path: str, magics: tuple[int, ...]) -> None:
    expected = b"".join(_WORD.pack(magic) for magic in magics)
    found = stream.read(len(expected))
    if found != expected:
        raise ImageFormatError(
            f"{path}: starts with {found.hex(' ') or 'nothing'}, not with {expected.hex(' ')}:"
            " not the image its name says"
        )


def write_magics(stream: BinaryIO, magics: tuple[int, ...]) -> None:
    """Write the magics of an image file."""
    for magic in magics:
        stream.write(_WORD.pack(magic))


def write_record(stream: BinaryIO, payload: bytes) -> None:
    """Write one record.

    Raises:
        ImageFormatError: the payload is larger than a reader accepts.
    """
    if len(payload) > MAX_RECORD_BYTES:
        raise ImageFormatError(
            f"a record of {len(payload)} bytes is too large, at most {MAX_RECORD_BYTES} can be read"
        )
    stream.write(_WORD.pack(len(payload)))
    stream.write(payload)
