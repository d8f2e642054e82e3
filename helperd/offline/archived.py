"""The checkpoints in an archive, as image directories that can be read without unpacking it.

The archive is gone through once for everything small, which is kept in a folder in memory, and
again for the pages, which are only ever there as a window (:mod:`helperd.images.feed`). Nothing is
written to a disk, and nothing by a name that an archive brings but below that folder.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from helperd.errors import HelperdError, ImageError, ImageFormatError
from helperd.images.archive import ArchiveReader, Member
from helperd.images.directory import PARENT_NAME, ImageDirectory
from helperd.images.feed import SliceFeed, WindowFeed
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.outer import NONE
from helperd.images.pagemap import pages_name, read_head
from helperd.images.pagesfile import PagesFile

#: Images and descriptions are kept up to this size each, and all together.
_SMALL_BYTES, _ALL_SMALL_BYTES = 64 << 20, 512 << 20
#: What engines write beside the images, and what of it says who made the checkpoint.
CONFIG_NAME, SPEC_NAME = "config.dump", "spec.dump"
_MANAGER_ANNOTATION = "io.container.manager"
_PAGES = re.compile(r"pages-\d+\.img")
_IN_MEMORY = "/dev/shm"
_MAX_WORD = 1000
#: Of a pages file that is copied: it may have to stay as it is.
_COPIED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen of a member when the archive was gone through first.

    Attributes:
        name: of the member.
        position: which member it is.
        size: of its content.
        holes: ranges of its content that are not stored.
        start: offset of its content in the tar.
    """

    name: str
    position: int
    size: int
    holes: tuple[tuple[int, int], ...]
    start: int


class ArchivedDirectory(ImageDirectory):
    """An image directory in an archive.

    Attributes:
        folder: its path in the archive.
    """

    def __init__(self, archive: ArchivedCheckpoints, folder: str) -> None:
        self._archive = archive
        self.folder = folder
        super().__init__(os.path.join(archive.scratch, folder))

    @property
    def pagemap_names(self) -> list[str]:
        """Names of all pagemaps, in the order in which their pages come."""
        names = super().pagemap_names
        pages = {name: pages_name(read_head(self.file(name)).pages_id) for name in names}
        return sorted(names, key=lambda name: self._archive.position(self, pages[name]))

    def open_pages(self, name: str) -> PagesFile:
        """Open a pages file, to be read from front to back; see :class:`ImageDirectory`."""
        return self._archive.open_pages(posixpath.join(self.folder, name), self.file(name))

    def parent(self) -> ImageDirectory | None:
        """Return the parent, in the same archive; see :class:`ImageDirectory`."""
        parent = super().parent()
        if parent is None:
            return None
        folder = os.path.relpath(parent.path, os.path.realpath(self._archive.scratch))
        return ArchivedDirectory(self._archive, folder)


class ArchivedCheckpoints:
    """The checkpoints of one archive; a context manager.

    Args:
        path: of the archive.
        abridged: gets all of a compressed one but the content of large pages files, so that it
            need not be decompressed again for that; None not to.

    Attributes:
        path: of the archive.
        scratch: the folder with everything small; gone when the context is left.
        outer: how the archive is compressed.
        pages: the pages files in it, by the name of their member.
        members: the names of all members, in order.
        origin: who made it, in words by name.

    Raises:
        ImageError: it cannot be read.
        ImageFormatError: it is no archive with a checkpoint, or hostile.
    """

    def __init__(self, path: str, *, abridged: BinaryIO | None = None) -> None:
        self.path = path
        self._abridged = abridged
        self._left_out: set[str] = set()
        self.pages: dict[str, Found] = {}
        self.members: list[str] = []
        self.origin: dict[str, str] = {}
        self._kept: list[str] = []
        self._small_bytes = 0
        self._cursor: _Cursor | None = None
        in_memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
        self.scratch = tempfile.mkdtemp(prefix="helperd-archive-", dir=in_memory)
        try:
            with ArchiveReader(path) as reader:
                self.outer = reader.outer
                if self.outer == NONE:
                    self._abridged = None
                if self._abridged is not None:
                    reader.abridge(self._abridged, self._leave_out)
                for member in reader.members():
                    self._keep(member)
                if self._abridged is not None:
                    reader.finish()
            self._folders = self._find_folders()
            self._describe()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was kept."""
        if self._cursor is not None:
            self._cursor.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def directories(self) -> list[ArchivedDirectory]:
        """Return the image directories, in the order of their pages in the archive."""
        return [ArchivedDirectory(self, folder) for folder in self._folders]

    def tops(self) -> list[ArchivedDirectory]:
        """Return the image directories that are no other one's parent."""
        directories = self.directories()
        parents = {parent.identity for d in directories if (parent := d.parent()) is not None}
        return [directory for directory in directories if directory.identity not in parents]

    def open_pages(self, name: str, path: str) -> PagesFile:
        """Open the pages file that is the member ``name``.

        Raises:
            ImageError: there is none.
        """
        found = self.pages.get(name)
        if found is None:
            raise ImageError(f"{path}: not in the archive")
        if self.outer == NONE and not found.holes:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return PagesFile(path, feed=SliceFeed(fd, found.start, found.size))
        if self._cursor is None or self._cursor.position >= found.position:
            if self._cursor is not None:
                self._cursor.close()
            self._cursor = _Cursor(self.path)
        pieces = self._cursor.pieces(found)
        return PagesFile(path, feed=WindowFeed(path, found.size, found.holes, pieces))

    def reader(self, replaced: Collection[str]) -> ArchiveReader:
        """Return a reader of the archive for who needs no content of the members ``replaced``."""
        if self._abridged is not None and self._left_out.issubset(replaced):
            return ArchiveReader(self.path, abridged=self._abridged, left_out=self._left_out)
        return ArchiveReader(self.path)

    def position(self, directory: ArchivedDirectory, pages: str) -> int:
        """Return which member a pages file of a directory is; -1 if it is none."""
        found = self.pages.get(posixpath.join(directory.folder, pages))
        return -1 if found is None else found.position

    def told(self, text: str) -> str:
        """Return a message with the archive's name in place of our folder's."""
        for scratch in (os.path.realpath(self.scratch), self.scratch):
            text = text.replace(f"{scratch}/", f"{self.path}:").replace(scratch, self.path)
        return text

    def retold(self, error: HelperdError) -> HelperdError:
        """Return an error with the archive's name in place of our folder's."""
        told = type(error)(self.told(str(error)), errno=error.errno)
        told.exit_code = error.exit_code
        return told

    def _leave_out(self, member: Member) -> bool:
        is_large = (
            member.info.isreg()
            and member.info.size > _COPIED_BYTES
            and _PAGES.fullmatch(posixpath.basename(member.name)) is not None
        )
        if is_large:
            self._left_out.add(member.name)
        return is_large

    def _keep(self, member: Member) -> None:
        """Keep a member if it is one that is needed to understand the checkpoint."""
        info, name = member.info, member.name
        folder, base = posixpath.split(name)
        self.members.append(name)
        target = os.path.join(self.scratch, name)
        is_image = base.endswith(".img")
        if not is_image and base != PARENT_NAME and name not in (CONFIG_NAME, SPEC_NAME):
            return
        if PARENT_NAME in folder.split("/"):
            return  # No image lies behind the link of another; only below this name are links.
        if base == PARENT_NAME:
            if info.issym():
                self._check_parent(name, info.linkname)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.symlink(info.linkname, target)
            return
        is_memory = base == INVENTORY_NAME or base.startswith(("pagemap-", "pages-"))
        if not info.isreg():
            if is_memory:
                raise ImageFormatError(
                    f"{self.path}: {name!r} is no file but a link, a device or the like;"
                    " nothing was done"
                )
            return
        if _PAGES.fullmatch(base):
            holes = tuple(member.holes)
            self.pages[name] = Found(name, member.position, info.size, holes, member.start)
            # Its size alone: whoever reads pages asks for them in :meth:`open_pages`.
            content = b""
        elif info.size > _SMALL_BYTES or info.sparse is not None:
            if is_memory:
                raise ImageFormatError(
                    f"{self.path}: {name!r} has {info.size} bytes; at most {_SMALL_BYTES} are read"
                )
            return
        else:
            self._small_bytes += info.size
            if self._small_bytes > _ALL_SMALL_BYTES:
                raise ImageFormatError(
                    f"{self.path}: more than {_ALL_SMALL_BYTES} bytes of images beside the pages"
                )
            content = member.read(_SMALL_BYTES)
        self._kept.append(name)
        os.makedirs(os.path.join(self.scratch, folder), exist_ok=True)
        with open(target, "xb") as file:
            file.write(content)
            if name in self.pages:
                file.truncate(info.size)

    def _check_parent(self, name: str, target: str) -> None:
        end = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        # A link through another link would not end where its text says.
        through = PARENT_NAME in target.split("/")
        if target.startswith("/") or end.split("/")[0] == ".." or through:
            raise ImageFormatError(
                f"{self.path}: the parent link {name!r} -> {target!r} leads out of the"
                " archive; nothing was done"
            )

    def _find_folders(self) -> list[str]:
        folders = {
            posixpath.dirname(name)
            for name in self._kept
            if posixpath.basename(name) == INVENTORY_NAME
            or posixpath.basename(name).startswith("pagemap-")
        }
        if not folders:
            raise ImageFormatError(f"{self.path}: an archive without a checkpoint")
        first = {folder: len(self.members) for folder in folders}
        for found in self.pages.values():
            folder = posixpath.dirname(found.name)
            if folder in first:
                first[folder] = min(first[folder], found.position)
        return sorted(folders, key=lambda folder: (first[folder], folder))

    def _describe(self) -> None:
        config, spec = self._json(CONFIG_NAME), self._json(SPEC_NAME)
        annotations = spec.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        process = spec.get("process")
        command = process.get("args") if isinstance(process, dict) else None
        words = {
            "engine": annotations.get(_MANAGER_ANNOTATION) or _engine_of(config, self.members),
            "container": config.get("name"),
            "id": config.get("id"),
            "image": config.get("rootfsImageName"),
            "runtime": config.get("runtime"),
            "command": " ".join(map(str, command)) if isinstance(command, list) else None,
            "created": config.get("createdTime"),
            "checkpointed": config.get("checkpointedTime"),
        }
        self.origin = {name: _printable(str(word)) for name, word in words.items() if word}

    def _json(self, name: str) -> dict[str, Any]:
        try:
            with open(os.path.join(self.scratch, name), encoding="utf-8") as file:
                found = json.load(file)
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            return {}  # Nothing depends on it.
        return found if isinstance(found, dict) else {}


class _Cursor:
    """A place in an archive that only moves forward."""

    def __init__(self, path: str) -> None:
        self._reader = ArchiveReader(path)
        self._members = self._reader.members()
        self._path = path
        self.position = -1

    def pieces(self, found: Found) -> Iterator[tuple[int, bytes]]:
        """Yield the content of a member that lies ahead."""
        while self.position < found.position:
            member = next(self._members, None)
            if member is None:
                break
            self.position = member.position
        if member is None or (member.name, member.info.size) != (found.name, found.size):
            raise ImageError(f"{self._path}: was changed while it was read")
        yield from member.pieces()

    def close(self) -> None:
        """Close the archive."""
        self._reader.close()


def _engine_of(config: dict[str, Any], members: list[str]) -> str | None:
    """Return the engine by what it writes beside the images, if it does not say so itself."""
    names = set(members)
    if "status.dump" in names or "container.log" in names:
        return "containerd"
    if "network.status" in names or "artifacts" in names:
        return "podman"
    if "bind.mounts" in names:
        return "cri-o"
    return "unknown" if config else None


def _printable(text: str) -> str:
    """Return foreign text without what a terminal would take for commands."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_WORD])
