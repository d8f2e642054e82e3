"""New images for a directory: written as they come, in effect all at once, or never.

Everything is written to a hidden folder in the directory itself, which only its owner can enter::

    .helperd-incoming.<token>/      files under way; dropped if their writer is gone
    .helperd-arrived.<token>/       complete and on disk; moved to its place, then gone

The folder's one rename from the first name to the second decides: before, the directory is as it
was; afterwards, whoever comes next finishes what a killed process has left, see
:mod:`helperd.images.arrivals`. The writer holds a lock on its folder for as long as it lives, so
the left-overs of the dead can be told from the work of others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import TYPE_CHECKING, BinaryIO, Self

from helperd.errors import ImageError
from helperd.images.allowance import Allowance
from helperd.images.arrivals import (
    ARRIVED,
    PREFIXES,
    UNDER_WAY,
    drop,
    exists,
    is_image_name,
    locked,
    move_all,
    recover_in,
)
from helperd.images.directory import PARENT_NAME
from helperd.images.entry_fields import NEW_FORM, OLD_FORM
from helperd.images.inventory import Schema
from helperd.images.leftovers import NotOurs, open_folder
from helperd.images.pagemap import PagemapEntry, pages_name, place_payload, read_head
from helperd.images.pagemap_writer import PagemapWriter
from helperd.images.pb import pagemap_pb2
from helperd.images.records import os_failure

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Where CRIU's page server starts to count pages files; the dumper's own start at 1.
FIRST_PAGES_ID = 65537

_BUFFER_BYTES = 1 << 16


class MemoryWriter:
    """A pagemap and its pages file, appended to as pages come.

    Payload and entries are appended each in their order; at the end the entries must account for
    every byte of payload.

    Attributes:
        name: of the pagemap.
        payload_bytes: written to it so far.
        n_pages: with a payload, in all entries so far.
    """

    def __init__(
        self,
        name: str,
        pagemap: BinaryIO,
        pages: BinaryIO,
        head: pagemap_pb2.Head,
        schema: Schema,
        *,
        old_counts: bool,
        allowance: Allowance | None = None,
    ) -> None:
        self.name = name
        self.payload_bytes = 0
        self.n_pages = 0
        self._pages_fd = pages.fileno()
        self._files = (pagemap, pages)
        self._writer = PagemapWriter(pagemap, head, schema)
        self._form = OLD_FORM if old_counts else NEW_FORM
        self._offset = 0
        self._finished = False
        self._allowance = allowance
        self._pagemap_bytes = 0

    def append_payload(self, payload: Buffer) -> None:
        """Write payload behind all that there is.

        Raises:
            ResourceError: the disk is full, for one.
        """
        view = memoryview(payload)
        if self._allowance is not None:
            self._allowance.take(view.nbytes)
        try:
            while view:
                done = os.pwrite(self._pages_fd, view, self.payload_bytes)
                self.payload_bytes += done
                view = view[done:]
        except OSError as error:
            raise os_failure(error, f"cannot write the pages of {self.name}") from error

    def append_entry(self, entry: PagemapEntry) -> None:
        """Write an entry; its ``offset`` and ``payload_bytes`` are set.

        Raises:
            ImageFormatError: its payload lies beyond any file.
            ResourceError: the disk is full, for one.
        """
        self._offset = place_payload(entry, self._offset)
        if entry.form == NEW_FORM:
            entry.form = self._form
        if entry.present:
            self.n_pages += entry.nr_pages
        try:
            self._writer.append(entry)
            if self._allowance is not None:
                written = self._files[0].tell()
                self._allowance.take(written - self._pagemap_bytes)
                self._pagemap_bytes = written
        except OSError as error:
            raise os_failure(error, f"cannot write {self.name}") from error

    def finish(self) -> None:
        """Complete both files, and bring them to disk; nothing can be appended any more.

        Raises:
            ImageError: payload and entries do not agree.
            ResourceError: the disk is full, for one.
        """
        if self._finished:
            return
        if self._offset != self.payload_bytes:
            raise ImageError(
                f"{self.name}: its entries have {self._offset} bytes of payload,"
                f" {self.payload_bytes} were written"
            )
        try:
            self._writer.finish()
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        except OSError as error:
            raise os_failure(error, f"cannot write {self.name}") from error
        self._finished = True


class ImageWriter:
    """New files for the directory ``path``, not yet in effect; a context manager.

    Leaving the context without a :meth:`finish` leaves the directory as it was.

    Args:
        path: the directory.
        replace: files of the same names are replaced, or else they are a reason to fail.
        allowance: what pagemaps and pages files may take; None for no limit.

    Raises:
        ImageError: the directory cannot be written to.
    """

    def __init__(
        self, path: str, *, replace: bool = False, allowance: Allowance | None = None
    ) -> None:
        self.path = path
        self._allowance = allowance
        self._replace = replace
        token = secrets.token_hex(8)
        self._name = UNDER_WAY + token
        self._arrived = ARRIVED + token
        self._files: dict[str, BinaryIO | None] = {}
        self._memories: list[MemoryWriter] = []
        self._fd = self._folder = -1
        self._decided = False
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with locked(self._fd, path):
                recover_in(self._fd, path)
                os.mkdir(self._name, 0o700, dir_fd=self._fd)
                self._folder = open_folder(self._name, self._fd, path)
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            raise os_failure(error, f"cannot write images to {path}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.abandon()

    def create(self, name: str) -> BinaryIO:
        """Open the new file ``name``; :meth:`finish` closes it.

        Raises:
            ImageError: no name for an image, or it was created already.
            ResourceError: the system cannot have it.
        """
        if not is_image_name(name) or name == PARENT_NAME:
            raise ImageError(f"{name!r} is no name for an image")
        self._check_free(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise os_failure(error, f"cannot make {name} in {self.path}") from error
        file = open(fd, "w+b", buffering=_BUFFER_BYTES)  # noqa: SIM115
        self._files[name] = file
        return file

    def _check_free(self, name: str) -> None:
        if not self._replace and exists(self._fd, name):
            raise ImageError(
                f"{self.path}: has {name} already; it would be overwritten, so move it away or"
                " choose another directory"
            )

    def link_parent(self, target: str) -> None:
        """Make the link to the parent directory; one that is there already stays as it is.

        Raises:
            ImageError: it cannot be made.
        """
        try:
            os.symlink(target, PARENT_NAME, dir_fd=self._folder)
        except OSError as error:
            raise os_failure(error, f"cannot link {target} in {self.path}") from error
        self._files[PARENT_NAME] = None

    def memory(
        self,
        name: str,
        schema: Schema,
        *,
        pages_id: int | None = None,
        checksum: bool = True,
        old_counts: bool = False,
    ) -> MemoryWriter:
        """Begin a pagemap with its pages file; the one begun before stays open as well.

        Args:
            name: of the pagemap, see ``directory.pagemap_name``.
            schema: of its entries.
            pages_id: of the pages file; None for the first that nobody has, from FIRST_PAGES_ID on.
            checksum: let the pagemap's head have one.
            old_counts: write the counts as CRIU up to 4.1 does.

        Raises:
            ImageError, ResourceError: as :meth:`create` says.
        """
        if pages_id is None:
            # Others may be looking for a name, too.
            try:
                with locked(self._fd, self.path):
                    pages_id = self._free_pages_id()
                    pages = self.create(pages_name(pages_id))
            except OSError as error:
                raise os_failure(error, f"cannot list {self.path}") from error
        else:
            pages = self.create(pages_name(pages_id))
        head = pagemap_pb2.Head(pages_id=pages_id)
        if checksum:
            head.checksum = 0
        memory = MemoryWriter(
            name,
            self.create(name),
            pages,
            head,
            schema,
            old_counts=old_counts,
            allowance=self._allowance,
        )
        self._memories.append(memory)
        return memory

    def _free_pages_id(self) -> int:
        names = set(os.listdir(self._fd))
        for folder in [name for name in names if name.startswith(PREFIXES)]:
            with contextlib.suppress(OSError, NotOurs):
                other = open_folder(folder, self._fd, self.path)
                try:
                    names.update(os.listdir(other))
                finally:
                    os.close(other)
        pages_id = FIRST_PAGES_ID
        while pages_name(pages_id) in names:
            pages_id += 1
        return pages_id

    def finish(self) -> None:
        """Put everything into effect; when this returns it is on disk.

        Raises:
            ImageError, ResourceError: it could not be; the directory is as it was.
        """
        for memory in self._memories:
            memory.finish()
        try:
            for file in self._files.values():
                if file is not None and not file.closed:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
            os.fsync(self._folder)
            with locked(self._fd, self.path):
                # Somebody else may have been faster.
                for name in self._files.keys() - {PARENT_NAME}:
                    self._check_free(name)
                obsolete = self._obsolete() if self._replace else set()
                # Whatever comes now, a signal for one: what has arrived is not dropped any more.
                self._decided = True
                os.rename(self._name, self._arrived, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                os.fsync(self._fd)
                move_all(self._fd, self._folder)
                os.rmdir(self._arrived, dir_fd=self._fd)
                for name in obsolete:
                    os.unlink(name, dir_fd=self._fd)
        except OSError as error:
            raise os_failure(error, f"cannot write images to {self.path}") from error
        self._close()

    def _obsolete(self) -> set[str]:
        """Return the pages files of pagemaps that are about to be replaced, and of no others."""
        names = set()
        for memory in self._memories:
            path = os.path.join(self.path, memory.name)
            if exists(self._fd, memory.name):
                names.add(pages_name(read_head(path).pages_id))
        for name in os.listdir(self._fd) if names else ():
            if name.startswith("pagemap-") and name not in self._files:
                # One that cannot be read says nothing.
                with contextlib.suppress(ImageError):
                    names.discard(pages_name(read_head(os.path.join(self.path, name)).pages_id))
        return {name for name in names - self._files.keys() if exists(self._fd, name)}

    def abandon(self) -> None:
        """Drop everything that is not in effect; can be called at any time, and again.

        After a :meth:`finish` that was interrupted, whoever comes next does the rest.
        """
        if self._fd < 0:
            return
        for file in self._files.values():
            if file is not None:
                # What a full disk did not take is lost with the rest.
                with contextlib.suppress(OSError):
                    file.close()
        if not self._decided:
            with contextlib.suppress(OSError):
                drop(self._fd, self._folder, self._name)
        self._close()

    def _close(self) -> None:
        for fd in (self._folder, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1
