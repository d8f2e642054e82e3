"""Convert the checkpoints in an archive: a new archive that differs in their pages only.

All other members, their order, owners, modes, times and sparse maps are copied as they are, to the
byte. The pagemaps come before the pages they tell of. The new archive is written beside the old one
and takes its place with one rename, so that there is always a whole one.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedWriter
from typing import IO, Any, BinaryIO

from helperd.blocks import pages_to_bytes
from helperd.errors import HelperdError, ImageError, UsageError
from helperd.images.archive import PIECE_BYTES
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.outer import NONE, OUTERS, open_outer_writer, outer_of
from helperd.images.records import os_failure
from helperd.kernel.syscalls import punch_hole
from helperd.offline.archived import ArchivedCheckpoints, ArchivedDirectory
from helperd.offline.convert_directory import (
    ConvertReport,
    Plan,
    Planner,
    Progress,
    convert_files,
    write_inventory,
)
from helperd.offline.convert_pagemap import FileReport
from helperd.offline.files import Place, sync_directory
from helperd.offline.parallel import n_threads
from helperd.offline.switch import BACKUP_SUFFIX

_BLOCK = tarfile.BLOCKSIZE
_NEW = "new"
#: Bytes that are moved before their room is given back.
_MOVED_BYTES = 16 << 20
#: Where a header has the size, in octal digits if it is below _LARGE, and the sum of its bytes.
_SIZE, _DIGITS, _LARGE, _BASE_256 = 124, 11, 8**11, 0x80
_SUM, _SUM_BYTES = 148, 8
_PAX_SIZES = ("size", "GNU.sparse.")


@dataclass(frozen=True, slots=True)
class _Replacement:
    """New content of a member.

    Attributes:
        path: of the file that has it.
        before: the name of the member that must come first, if any.
    """

    path: str
    before: str | None = None


def convert_archive(
    path: str,
    planner: Planner,
    *,
    output: str | None = None,
    in_place: bool = False,
    outer: str | None = None,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert all checkpoints of an archive.

    Args:
        path: the archive.
        planner: says what is to become of a directory.
        output: the new archive; None = in place of the old one, which is kept as NAME.bak ...
        in_place: ... unless this is set.
        outer: how the new archive is compressed, one of OUTERS; None = as the old one.
        threads: that convert, 0 = one for each CPU.
        dry_run: only find out whether it could be done.
        progress: called with (bytes of memory done, in all) now and then.

    Raises:
        UsageError: the arguments make no sense, or something is in the way; nothing was changed.
        ImageError: the archive or a checkpoint is broken; nothing was changed.
        ResourceError, NotPermitted: from the system; likewise.
    """
    if output is not None and in_place:
        raise UsageError(f"{path}: convert either into an output archive or in place")
    if outer is not None and outer not in OUTERS:
        raise UsageError(f"--outer {outer}: one of {', '.join(OUTERS)}")
    target = output or path
    backup = path + BACKUP_SUFFIX if output is None and not in_place else None
    for taken in (output, backup):
        if taken is not None and os.path.lexists(taken):
            raise UsageError(f"{taken}: exists and would be overwritten; move it away")
    if output is None and os.path.islink(path):
        raise UsageError(f"{path}: a link; name the archive itself, or an --output")
    try:
        with (
            _beside(path, target) as abridged,
            ArchivedCheckpoints(path, abridged=abridged) as archived,
        ):
            try:
                return _convert(
                    archived, planner, target, backup, outer, n_threads(threads), dry_run, progress
                )
            except HelperdError as error:
                raise archived.retold(error) from error
    except OSError as error:
        raise os_failure(error, f"cannot convert {path}") from error


def _convert(
    archived: ArchivedCheckpoints,
    planner: Planner,
    target: str,
    backup: str | None,
    outer: str | None,
    threads: int,
    dry_run: bool,
    progress: Progress | None,
) -> ConvertReport:
    directories = archived.directories()
    plans = [(directory, plan) for d in directories if (plan := planner(directory := d))]
    if not plans and outer in (None, archived.outer):
        return ConvertReport(archived.path, (), changed=False)
    if dry_run:
        return ConvertReport(archived.path, (), changed=False)
    total = sum(
        pages_to_bytes(plan.pagemaps[name].n_pages) for _, plan in plans for name in plan.modes
    )
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(min(done, total), total)

    reports: list[FileReport] = []
    replacements: dict[str, _Replacement] = {}
    with _workplace(target) as work:
        for number, (directory, plan) in enumerate(plans):
            folder = os.path.join(work, str(number))
            os.mkdir(folder, 0o700)
            reports += _convert_directory(
                archived, directory, plan, folder, threads, advance, replacements
            )
        new = os.path.join(work, _NEW)
        _write(archived, replacements, outer or archived.outer, new, threads)
        status = os.stat(archived.path)
        os.chmod(new, stat.S_IMODE(status.st_mode))
        with contextlib.suppress(PermissionError):
            os.chown(new, status.st_uid, status.st_gid)
        if backup is not None:
            os.link(archived.path, backup, follow_symlinks=False)
        os.rename(new, target)
        sync_directory(os.path.dirname(os.path.abspath(target)))
    return ConvertReport(target, tuple(reports), changed=True)


def _convert_directory(
    archived: ArchivedCheckpoints,
    directory: ArchivedDirectory,
    plan: Plan,
    folder: str,
    threads: int,
    advance: Callable[[int], None],
    replacements: dict[str, _Replacement],
) -> tuple[FileReport, ...]:
    """Write what replaces the members of one directory, and note it."""

    def path_of(name: str) -> str:
        return os.path.join(folder, name)

    def place(name: str) -> Place:
        return Place(path_of(name), durable=False)

    names = [name for name in directory.pagemap_names if name in plan.modes]
    files = convert_files(directory, plan, place, threads, advance, names)
    for name in plan.modes:
        member = posixpath.join(directory.folder, name)
        replacements[member] = _Replacement(path_of(name))
        pages_name = plan.pagemaps[name].pages_name
        if os.path.exists(path_of(pages_name)):
            pages = posixpath.join(directory.folder, pages_name)
            replacements[pages] = _Replacement(path_of(pages_name), before=member)
    write_inventory(plan.inventory, place(INVENTORY_NAME))
    inventory = posixpath.join(directory.folder, INVENTORY_NAME)
    replacements[inventory] = _Replacement(path_of(INVENTORY_NAME))
    return files


def _write(
    archived: ArchivedCheckpoints,
    replacements: dict[str, _Replacement],
    outer: str,
    path: str,
    threads: int,
) -> None:
    """Write the new archive to ``path``, and bring it to disk."""
    missing = replacements.keys() - set(archived.members)
    if missing:
        raise ImageError(f"{archived.path}: has no {sorted(missing)[0]}")
    early = _early_members(archived, replacements)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as raw:
        sink = open_outer_writer(raw, outer, archived.path, threads)
        written: set[str] = set()
        with archived.reader(replacements) as reader:
            for member in reader.members():
                replacement = replacements.get(member.name)
                if replacement is None:
                    member.copy(sink)
                    continue
                if member.name in written:
                    continue
                first = replacement.before
                if first is not None and first not in written:
                    _write_member(sink, *early[first], replacements[first].path)
                    written.add(first)
                _write_member(sink, member.info, member.header, replacement.path)
                written.add(member.name)
            reader.rest(sink)
        if sink is not raw:
            sink.close()
        raw.flush()
        os.fsync(raw.fileno())


def _early_members(
    archived: ArchivedCheckpoints, replacements: dict[str, _Replacement]
) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Return the headers of pagemaps that come behind their pages: they have to be moved."""
    place = {name: index for index, name in enumerate(archived.members)}
    late = {
        replacement.before
        for name, replacement in replacements.items()
        if replacement.before is not None and place[replacement.before] > place[name]
    }
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    if late:
        with archived.reader(replacements) as reader:
            for member in reader.members():
                if member.name in late:
                    found[member.name] = member.info, member.header
    return found


def _write_member(sink: IO[bytes], info: tarfile.TarInfo, header: bytes, path: str) -> None:
    """Write a member with the metadata of ``info`` and the content of a file.

    Args:
        sink: the new archive.
        info: of the member in the old one.
        header: the bytes of its headers there.
        path: of the file.
    """
    with open(path, "r+b", buffering=0) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        sink.write(_with_size(info, header, n_bytes))
        if isinstance(sink, BufferedWriter):
            sink.flush()
            _move(file.fileno(), sink.fileno(), n_bytes)
        while piece := file.read(PIECE_BYTES):
            sink.write(piece)
    sink.write(bytes(-n_bytes % _BLOCK))


def _with_size(info: tarfile.TarInfo, header: bytes, n_bytes: int) -> bytes:
    """Return the headers of a member for content of another size.

    As they were but for the size and the sum, where they are so simple; each writer has its own way
    to fill the fields. Else as tarfile makes them.
    """
    is_simple = info.sparse is None and not any(
        key.startswith(_PAX_SIZES) for key in info.pax_headers
    )
    if (
        is_simple
        and info.type == tarfile.REGTYPE
        and n_bytes < _LARGE
        and not header[_SIZE - _BLOCK] & _BASE_256
    ):
        block = bytearray(header[-_BLOCK:])
        block[_SIZE : _SIZE + _DIGITS] = b"%011o" % n_bytes
        block[_SUM : _SUM + _SUM_BYTES] = b" " * _SUM_BYTES
        block[_SUM : _SUM + _SUM_BYTES - 1] = b"%06o\0" % sum(block)
        return header[:-_BLOCK] + block
    info = copy.copy(info)
    info.pax_headers = {
        key: value for key, value in info.pax_headers.items() if not key.startswith(_PAX_SIZES)
    }
    info.type, info.sparse, info.size = tarfile.REGTYPE, None, n_bytes
    layout: Any = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
    return info.tobuf(layout, "utf-8", "surrogateescape")


def _move(source: int, target: int, n_bytes: int) -> None:
    """Move as much as the kernel can from file to file; each goes on behind that.

    The room is given back on the way, so that the pages are never there twice.
    """
    done = 0
    with contextlib.suppress(OSError):  # Whatever it does not like, we can do ourselves.
        while done < n_bytes and (
            moved := os.copy_file_range(source, target, min(_MOVED_BYTES, n_bytes - done))
        ):
            punch_hole(source, done, moved)
            done += moved


@contextlib.contextmanager
def _beside(path: str, target: str) -> Iterator[BinaryIO | None]:
    """Give a file without a name beside ``target``, if ``path`` is compressed as a whole."""
    with contextlib.ExitStack() as stack:
        file = None
        if outer_of(path) != NONE:
            # There may be nothing to convert, which takes no right to write.
            with contextlib.suppress(OSError):
                folder = os.path.dirname(os.path.abspath(target))
                file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        yield file


@contextlib.contextmanager
def _workplace(target: str) -> Iterator[str]:
    """Give a folder beside ``target`` that is gone afterwards; what a killed run left goes, too.

    Raises:
        UsageError: another process is at it, or it is not ours.
    """
    folder, name = os.path.split(os.path.abspath(target))
    path = os.path.join(folder, f".{name}.helperd")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: not a folder that helperd made; move it away") from error
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise UsageError(f"{path}: belongs to somebody else; move it away")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{target}: another process is converting it") from None
        _empty(fd)
        try:
            yield path
        finally:
            _empty(fd)
            os.rmdir(path)
    finally:
        os.close(fd)


def _empty(fd: int) -> None:
    """Remove what is in one of our folders: files, and folders with files."""
    for name in os.listdir(fd):
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=fd)
            try:
                for file in os.listdir(inner):
                    os.unlink(file, dir_fd=inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=fd)
