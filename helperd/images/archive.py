"""Checkpoint archives: tar files of container engines, read from front to back.

Podman, CRI-O and containerd put a checkpoint into a tar, as it is or compressed with gzip or zstd.
Nothing is ever sought in it, so all three are read in the same way, in pieces; what a member's
header says is checked before anything is done with it. Source of the layouts: the engines' own
archives, see docs/archives.md.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from typing import IO, BinaryIO, Protocol, Self, cast

from helperd.errors import ImageError, ImageFormatError, from_errno
from helperd.images.outer import NONE, open_outer, outer_of

#: Bytes that are moved at once.
PIECE_BYTES = 1 << 20
#: Of all headers of one member: pax records of long names take some hundred.
_MAX_HEADER_BYTES = 1 << 20
_MAX_MEMBERS = 1 << 20
#: What an archive may hold unless told otherwise: a bomb is more than any checkpoint.
MAX_BYTES = 1 << 42

_BLOCK = tarfile.BLOCKSIZE


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object:
        """Take some bytes."""


def is_archive(path: str) -> bool:
    """Return whether ``path`` is a file, and so to be taken for an archive."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


class Member:
    """A member of an archive that has been reached, and not left yet.

    Attributes:
        info: what its header says.
        name: its path in the archive, without a leading ``./`` or a trailing slash.
        header: the bytes of all its headers, as they are in the archive.
        position: which member of the archive it is, from 0 on.
        start: offset of its content in the tar.
        stored_bytes: behind the headers, padding included; of a sparse member less than its size.
    """

    def __init__(
        self, reader: ArchiveReader, info: tarfile.TarInfo, position: int, stored_bytes: int
    ) -> None:
        self._reader = reader
        self.info = info
        self.name = reader.checked_name(info)
        self.header = reader.taken()
        self.position = position
        self.start = reader.tell()
        self.stored_bytes = stored_bytes

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) of the ranges that a sparse member does not store."""
        found, end = [], 0
        for start, n_bytes in self.extents:
            if start > end:
                found.append((end, start))
            end = max(end, start + n_bytes)
        if self.info.size > end:
            found.append((end, self.info.size))
        return found

    @property
    def extents(self) -> list[tuple[int, int]]:
        """The (start, bytes) of the ranges that are stored, ascending."""
        # What the type says of sparse maps is not what they are.
        sparse = cast("list[tuple[int, int]] | None", self.info.sparse)
        if sparse is None:
            return [(0, self.info.size)]
        return [extent for extent in sparse if extent != (0, 0)]

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield the stored content as (offset in the file, bytes), from front to back."""
        for start, n_bytes in self.extents:
            done = 0
            while done < n_bytes:
                piece = self._reader.read_content(min(PIECE_BYTES, n_bytes - done))
                yield start + done, piece
                done += len(piece)

    def read(self, max_bytes: int) -> bytes:
        """Return the whole content of a member that is not sparse.

        Raises:
            ImageFormatError: it is longer than ``max_bytes``, or is cut off.
        """
        if self.info.size > max_bytes or self.info.sparse is not None:
            raise ImageFormatError(
                f"{self._reader.path}: {self.name!r} has {self.info.size} bytes, at most"
                f" {max_bytes} make sense"
            )
        return b"".join(piece for _, piece in self.pieces())

    def copy(self, sink: _Sink) -> None:
        """Write headers, content and padding to ``sink`` as they are in the archive."""
        sink.write(self.header)
        left = self.stored_bytes
        while left:
            piece = self._reader.read_content(min(PIECE_BYTES, left))
            sink.write(piece)
            left -= len(piece)


class ArchiveReader:
    """The members of an archive, from front to back; a context manager.

    Args:
        path: of the archive.
        max_bytes: that its members may have, all together.
        abridged: the tar to read in its place: what ``abridge`` has written.
        left_out: names of members whose content that does not have.

    Attributes:
        path: of the archive.
        outer: how it is compressed, one of OUTERS.

    Raises:
        ImageError: it cannot be read.
        ImageFormatError: it is no archive.
    """

    def __init__(
        self,
        path: str,
        *,
        max_bytes: int = MAX_BYTES,
        abridged: BinaryIO | None = None,
        left_out: Container[str] = (),
    ) -> None:
        self.path = path
        self.outer = outer_of(path) if abridged is None else NONE
        self._left_out = left_out
        self._max_bytes = max_bytes
        self._all_bytes = 0
        self._names: set[str] = set()
        try:
            # Closed by the context.
            self._raw = open(path, "rb") if abridged is None else _again(abridged)  # noqa: SIM115
        except OSError as error:
            raise from_errno(error.errno or 0, f"cannot read {path}") from error
        try:
            size = os.fstat(self._raw.fileno()).st_size if self.outer == NONE else None
            self._tar = _Forward(open_outer(self._raw, self.outer, path), path, size)
            self._source = _HeaderSource(self._tar)
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive."""
        self._raw.close()

    def members(self) -> Iterator[Member]:
        """Yield each member; what it has is to be read before the next one is asked for.

        Raises:
            ImageFormatError: broken, cut off, or more than a checkpoint can be: a name that leads
                out of the archive, or comes twice; too much of everything.
        """
        position = 0
        while True:
            self._tar.begin_header()
            try:
                info = tarfile.TarInfo.fromtarfile(self._source)  # type: ignore[arg-type]
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                return
            except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
                if position:
                    return  # No end mark: some writers leave it out.
                raise ImageFormatError(f"{self.path}: an empty archive") from error
            except (tarfile.TarError, ValueError, OverflowError) as error:
                raise ImageFormatError(
                    f"{self.path}: a broken header at offset {self._tar.tell()}: {error}"
                ) from error
            end = self._source.offset
            member = Member(self, info, position, end - self._tar.tell())
            self._check(member)
            if member.name in self._left_out:
                yield member
            else:
                self._tar.silent = self._tar.copy is not None and self._leave_out(member)
                yield member
                self._tar.skip_to(end)
                self._tar.silent = False
            position += 1

    def abridge(self, copy: _Sink, leave_out: Callable[[Member], bool]) -> None:
        """Have everything that is read written to ``copy``, too.

        Args:
            copy: gets the tar, as far as it is gone through.
            leave_out: says whose content is not wanted.
        """
        self._tar.copy, self._leave_out = copy, leave_out

    def rest(self, sink: _Sink) -> None:
        """Write what follows the last member to ``sink``: the end mark, and padding."""
        sink.write(self._tar.taken())
        self._tar.begin_content()
        while piece := self._tar.read(PIECE_BYTES):
            sink.write(piece)

    def finish(self) -> None:
        """Read what follows the last member, for who gets a copy of it."""
        self._tar.begin_content()
        while self._tar.read(PIECE_BYTES):
            pass

    def _check(self, member: Member) -> None:
        if member.name in self._names:
            raise ImageFormatError(f"{self.path}: has {member.name!r} twice")
        self._names.add(member.name)
        if len(self._names) > _MAX_MEMBERS:
            raise ImageFormatError(f"{self.path}: more than {_MAX_MEMBERS} members")
        extents = member.extents if member.info.isreg() else []
        ends = [0, *(start + n_bytes for start, n_bytes in extents), member.info.size]
        ascending = all(
            end <= start and n_bytes >= 0
            for end, (start, n_bytes) in zip(ends, extents, strict=False)
        )
        stored = sum(n_bytes for _, n_bytes in extents)
        if not ascending or ends[-2] > ends[-1] or stored > member.stored_bytes:
            raise ImageFormatError(f"{self.path}: {member.name!r} has sizes that make no sense")
        self._all_bytes += max(member.info.size, member.stored_bytes)
        if self._all_bytes > self._max_bytes:
            raise ImageFormatError(
                f"{self.path}: its members have more than {self._max_bytes} bytes: too many for a"
                " checkpoint"
            )

    def checked_name(self, info: tarfile.TarInfo) -> str:
        """Return a member's name, see :class:`Member`.

        Raises:
            ImageFormatError: it leads out of the archive.
        """
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        if info.name.startswith("/") or ".." in parts or "\0" in info.name:
            raise ImageFormatError(
                f"{self.path}: the name {info.name!r} leads out of the archive; nothing was done"
            )
        return "/".join(parts)

    def tell(self) -> int:
        """Return how far the tar has been read."""
        return self._tar.tell()

    def taken(self) -> bytes:
        """Return the bytes of the headers that were read last."""
        return self._tar.taken()

    def read_content(self, n_bytes: int) -> bytes:
        """Return ``n_bytes`` bytes of the current member.

        Raises:
            ImageFormatError: the archive ends before.
        """
        self._tar.begin_content()
        data = self._tar.read(n_bytes)
        if len(data) < n_bytes:
            raise self._tar.cut_off()
        return data


def _again(file: BinaryIO) -> BinaryIO:
    """Return the file, from its start on, to be closed without closing ``file``."""
    file.flush()
    again = os.fdopen(os.dup(file.fileno()), "rb")
    again.seek(0)
    return again


class _HeaderSource:
    """As much of a TarFile as ``TarInfo.fromtarfile`` looks at, and sets.

    Attributes:
        offset: where the content of the member ends whose headers were read last.
    """

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, fileobj: _Forward) -> None:
        self.fileobj = fileobj
        self.pax_headers: dict[str, str] = {}
        self.offset = 0


class _Forward:
    """A file that is read from front to back, and remembers the headers that were read."""

    def __init__(self, file: IO[bytes], path: str, size: int | None) -> None:
        self._file = file
        self._path = path
        #: Of a file that can be sought in: what nobody wants need not be read.
        self._size = size
        self._at = 0
        self._header: bytearray | None = None
        self.copy: _Sink | None = None
        self.silent = False

    def begin_header(self) -> None:
        self._header = bytearray()

    def begin_content(self) -> None:
        self._header = None

    def taken(self) -> bytes:
        return bytes(self._header or b"")

    def tell(self) -> int:
        return self._at

    def read(self, n_bytes: int) -> bytes:
        if self._header is not None and len(self._header) + n_bytes > _MAX_HEADER_BYTES:
            raise ImageFormatError(f"{self._path}: a member with more than 1 MiB of headers")
        parts, left = [], n_bytes
        try:
            while left and (part := self._file.read(left)):
                parts.append(part)
                left -= len(part)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ImageFormatError(f"{self._path}: its compression is broken: {error}") from error
        except OSError as error:
            raise from_errno(error.errno or 0, f"cannot read {self._path}") from error
        except Exception as error:
            # The zstd libraries have classes of their own for this.
            if type(error).__name__ != "ZstdError":
                raise
            raise ImageFormatError(f"{self._path}: its compression is broken: {error}") from error
        data = b"".join(parts)
        self._at += len(data)
        if self._header is not None:
            self._header += data
        if self.copy is not None and not self.silent:
            self.copy.write(data)
        return data

    def skip_to(self, end: int) -> None:
        self.begin_content()
        if self._size is not None and self._at < end:
            if end > self._size:
                raise self.cut_off()
            self._at = self._file.seek(end)
            return
        while self._at < end:
            if not self.read(min(PIECE_BYTES, end - self._at)):
                raise self.cut_off()

    def cut_off(self) -> ImageError:
        return ImageFormatError(f"{self._path}: cut off at offset {self._at}, inside a member")
