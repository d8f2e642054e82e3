"""Unpack an archive for a restore, its pages decompressed on the way if that is wanted.

Whatever the archive says, nothing is written but files and folders in one new folder, and the
links between the image directories in it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from dataclasses import dataclass

from helperd.blocks import pages_to_bytes
from helperd.errors import HelperdError, ImageFormatError, UsageError
from helperd.images.archive import ArchiveReader, Member
from helperd.images.directory import PARENT_NAME
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.records import os_failure
from helperd.offline.archived import ArchivedCheckpoints
from helperd.offline.convert_directory import Progress, convert_files, write_inventory
from helperd.offline.decompress import plan_decompressed
from helperd.offline.files import Place, write_all
from helperd.offline.parallel import n_threads

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """What was unpacked.

    Attributes:
        path: the folder.
        checkpoints: the image directories in it.
        n_files: files that were written.
        n_bytes: of them, as they are now.
    """

    path: str
    checkpoints: tuple[str, ...]
    n_files: int
    n_bytes: int


def unpack_archive(
    path: str,
    output: str,
    *,
    decompress: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> UnpackReport:
    """Unpack an archive into the new folder ``output``.

    The pages go straight to their place, without a second copy of them on the disk.

    Args:
        path: the archive.
        output: must not exist, or be empty; only its owner can enter it.
        decompress: the pages, so that a stock CRIU can restore them.
        threads: that decompress, 0 = one for each CPU.
        progress: called with (bytes of memory done, in all) now and then, while decompressing.

    Raises:
        UsageError: ``output`` is in use.
        ImageError: the archive is broken, or holds what is not unpacked: links, devices.
        ResourceError, NotPermitted: from the system. What was unpacked until then is left.
    """
    try:
        with ArchivedCheckpoints(path) as archived:
            root = _new_folder(output)
            try:
                unpacker = _Unpacker(root, path)
                if decompress:
                    _decompress(archived, unpacker, n_threads(threads), progress)
                with ArchiveReader(path) as reader:
                    for member in reader.members():
                        unpacker.unpack(member)
                os.fsync(root)
            except HelperdError as error:
                raise archived.retold(error) from error
            finally:
                os.close(root)
            return UnpackReport(
                output,
                tuple(os.path.join(output, top.folder) for top in archived.tops()),
                unpacker.n_files,
                unpacker.n_bytes,
            )
    except OSError as error:
        raise os_failure(error, f"cannot unpack {path} into {output}") from error


def _new_folder(output: str) -> int:
    try:
        os.mkdir(output, 0o700)
    except FileExistsError:
        if not os.path.isdir(output) or os.listdir(output):
            raise UsageError(f"{output}: exists and is not empty; choose another folder") from None
    return os.open(output, _FOLDER)


def _decompress(
    archived: ArchivedCheckpoints,
    unpacker: _Unpacker,
    threads: int,
    progress: Progress | None,
) -> None:
    """Write the memory of all checkpoints of an archive, and have the unpacker leave it alone."""
    plans = [
        (d, plan)
        for d in archived.directories()
        if (plan := plan_decompressed(d, with_parents=True))
    ]
    total = sum(
        pages_to_bytes(plan.pagemaps[name].n_pages) for _, plan in plans for name in plan.modes
    )
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    for directory, plan in plans:
        folder = unpacker.open_folder(directory.folder.split("/"))

        def place(name: str, path: str = directory.folder, folder: int = folder) -> Place:
            unpacker.done.add(posixpath.join(path, name))
            return Place(name, folder)

        try:
            names = [name for name in directory.pagemap_names if name in plan.modes]
            for report in convert_files(directory, plan, place, threads, advance, names):
                unpacker.n_files += 2
                unpacker.n_bytes += report.bytes_after
            write_inventory(plan.inventory, place(INVENTORY_NAME))
        finally:
            os.close(folder)


class _Unpacker:
    """Writes members below one folder.

    Attributes:
        done: names of members that have been written by others.
        n_files: files that were written.
        n_bytes: of them.
    """

    def __init__(self, root: int, archive: str) -> None:
        self._root = root
        self._archive = archive
        self.done: set[str] = set()
        self.n_files = 0
        self.n_bytes = 0

    def unpack(self, member: Member) -> None:
        """Write one member.

        Raises:
            ImageFormatError: it is nothing that is unpacked.
        """
        if not member.name or member.name in self.done:
            return
        *folders, name = member.name.split("/")
        info = member.info
        folder = self.open_folder(folders)
        try:
            if info.isdir():
                os.close(self._make_folder(folder, name))
            elif info.isreg():
                self._write(folder, name, member)
            elif info.issym() and name == PARENT_NAME:
                # Looked at when the archive was gone through first.
                os.symlink(info.linkname, name, dir_fd=folder)
            else:
                raise ImageFormatError(
                    f"{self._archive}: {member.name!r} is a link, a device or the like, which is"
                    " not unpacked; tar can"
                )
        except FileExistsError as error:
            raise ImageFormatError(f"{self._archive}: has {member.name!r} twice") from error
        finally:
            os.close(folder)

    def open_folder(self, names: list[str]) -> int:
        """Return a descriptor of a folder below the root; what is missing of it is made.

        Raises:
            ImageFormatError: something on the way is a link, or a file.
        """
        fd = os.dup(self._root)
        for name in filter(None, names):
            try:
                inner = self._make_folder(fd, name)
            except OSError as error:
                where = "/".join(names)
                raise ImageFormatError(
                    f"{self._archive}: {where!r} leads through something that is no folder"
                ) from error
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _make_folder(self, folder: int, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)

    def _write(self, folder: int, name: str, member: Member) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            for offset, piece in member.pieces():
                write_all(fd, piece, offset)
            os.ftruncate(fd, member.info.size)
            os.fchmod(fd, stat.S_IMODE(member.info.mode) & 0o777)
        finally:
            os.close(fd)
        self.n_files += 1
        self.n_bytes += member.info.size
