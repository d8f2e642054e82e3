"""Compress an uncompressed checkpoint, as ``criu dump --compress`` would have written it.

Written is the sizes schema (CRIU pull request 2895). Shared memory stays as it is, like CRIU
leaves it; an entry without sizes is uncompressed by definition, so the mix is a valid image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator
from typing import Final

from helperd import blocks, errors
from helperd.images import copying, records
from helperd.images.convert import FileReport, Job, Mode, convert
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.inventory import INVENTORY_NAME, Inventory, Schema
from helperd.images.pagemap import pages_name

#: LZ4's own maximum.
MAX_ACCELERATION: Final = 65537

#: What an in-place run adds to the names of files that it has not finished.
STAGED_SUFFIX: Final = ".helperd-compress"


@dataclasses.dataclass(frozen=True, slots=True)
class CompressReport:
    """What :func:`compress_directory` did.

    Attributes:
        path: the directory that holds the result.
        files: one report per process, ascending by pid.
    """

    path: str
    files: tuple[FileReport, ...]


def compress_directory(
    path: str,
    *,
    output: str | None = None,
    in_place: bool = False,
    region_bytes: int = 0,
    acceleration: int = 1,
) -> CompressReport:
    """Compress the process memory of a checkpoint, into a copy or in place.

    With ``output`` a complete copy is made; inventory.img is its last file, so a copy that was
    cut off cannot be taken for a checkpoint. With ``in_place`` the directory is a complete
    checkpoint at every moment, whatever happens; the pages files get new ids.

    A hole in a pages file reads as zeros and becomes zero blocks. ``criu dedup`` makes holes where
    a child replaced the pages, so nothing that a dump still needs is changed by this.

    Memory stays at a few MiB beyond the tables of one pagemap.

    Args:
        path: the image directory.
        output: the copy; must not exist, or be an empty directory.
        in_place: replace the files of ``path``. Exactly one of the two.
        region_bytes: bytes compressed at once, a multiple of the page size up to MAX_REGION_PAGES
            pages; 0 = each page by itself.
        acceleration: LZ4's, 1..MAX_ACCELERATION; 1 compresses best.

    Raises:
        UsageError: the arguments contradict each other, or the checkpoint is compressed already;
            nothing was changed.
        ImageError: the checkpoint is broken; nothing was changed, and no copy is left.
        ShortImage: a pages file is shorter than its pagemap says; likewise.
        ResourceError: no space left; likewise.
    """
    if (output is None) is not in_place:
        raise errors.UsageError(f"{path}: compress either into an output directory or in place")
    mode = _check_mode(region_bytes, acceleration)
    try:
        if output is None:
            return _compress_in_place(path, mode)
        return _compress_copy(path, output, mode)
    except OSError as exc:
        where = f" ({exc.filename})" if isinstance(exc.filename, str) else ""
        raise records.os_failure(exc, f"cannot compress {path}{where}") from exc


def _check_mode(region_bytes: int, acceleration: int) -> Mode:
    region_pages, rest = divmod(region_bytes, blocks.PAGE_SIZE)
    if rest or not 0 <= region_pages <= blocks.MAX_REGION_PAGES:
        raise errors.UsageError(
            f"a region of {region_bytes} bytes is not possible: it has to be a multiple of"
            f" {blocks.PAGE_SIZE}, up to {blocks.pages_to_bytes(blocks.MAX_REGION_PAGES)}"
        )
    if not 1 <= acceleration <= MAX_ACCELERATION:
        raise errors.UsageError(
            f"an acceleration of {acceleration} is not possible: 1 to {MAX_ACCELERATION}"
        )
    return Mode(region_pages, acceleration)


def _compress_copy(path: str, output: str, mode: Mode) -> CompressReport:
    directory = ImageDirectory(path)
    inventory = _new_inventory(directory, mode)
    pages_ids = _check_pagemaps(directory)
    jobs = [
        Job(
            name=name,
            pages_id=pages_ids[name],
            pagemap_path=os.path.join(output, name),
            pages_path=os.path.join(output, pages_name(pages_ids[name])),
        )
        for name in _process_pagemaps(directory)
    ]
    converted = {INVENTORY_NAME}
    for job in jobs:
        converted |= {job.name, pages_name(job.pages_id)}
    with _new_directory(output, like=path):
        copying.copy_directory(path, output, except_names=converted)
        files = [convert(directory, job, mode) for job in jobs]
        _write_inventory(inventory, os.path.join(output, INVENTORY_NAME))
    return CompressReport(output, tuple(files))


def _compress_in_place(path: str, mode: Mode) -> CompressReport:
    with _locked(path):
        directory = ImageDirectory(path)
        inventory = _new_inventory(directory, mode)
        pages_ids = _check_pagemaps(directory)
        free_ids = _free_pages_ids(directory, set(pages_ids.values()))
        jobs = [
            Job(
                name=name,
                pages_id=pages_id,
                pagemap_path=directory.file(name + STAGED_SUFFIX),
                pages_path=directory.file(pages_name(pages_id) + STAGED_SUFFIX),
            )
            for name, pages_id in zip(_process_pagemaps(directory), free_ids, strict=False)
        ]
        _remove_staged(path)
        try:
            files = [convert(directory, job, mode) for job in jobs]
            _write_inventory(inventory, directory.file(INVENTORY_NAME + STAGED_SUFFIX))
            _commit(directory, jobs, [pages_name(pages_ids[job.name]) for job in jobs])
        finally:
            _remove_staged(path)
    return CompressReport(path, tuple(files))


def _commit(directory: ImageDirectory, jobs: list[Job], old_pages: list[str]) -> None:
    """Put the staged files in place, in an order that never breaks the checkpoint.

    1. The new pages files get their names. Nothing refers to them yet.
    2. The new inventory allows compressed entries. All pagemaps are still the old ones, and
       entries without sizes are uncompressed by definition.
    3. The pagemaps are replaced, each at once: each is either the old one, and its old pages file
       is there, or the new one, and its new pages file is there.
    4. No pagemap refers to the old pages files any more; they are removed.

    The directory is synced after each step, so that a power cut cannot mix them up. A crash leaves
    a valid checkpoint, partly compressed at worst, and pages files that nothing refers to.
    """
    for job in jobs:
        os.rename(job.pages_path, job.pages_path.removesuffix(STAGED_SUFFIX))
    copying.sync_directory(directory.path)
    inventory = directory.file(INVENTORY_NAME)
    os.rename(inventory + STAGED_SUFFIX, inventory)
    copying.sync_directory(directory.path)
    for job in jobs:
        os.rename(job.pagemap_path, job.pagemap_path.removesuffix(STAGED_SUFFIX))
    copying.sync_directory(directory.path)
    for name in old_pages:
        with contextlib.suppress(FileNotFoundError):  # nothing was stored, and no file
            os.unlink(directory.file(name))
    copying.sync_directory(directory.path)


def _new_inventory(directory: ImageDirectory, mode: Mode) -> Inventory:
    """Return the inventory of the compressed checkpoint; refuse what cannot be compressed."""
    if directory.inventory is None:
        raise errors.ImageError(
            f"{directory.path}: has no {INVENTORY_NAME} to mark the checkpoint as compressed;"
            " put the files of the dump and of its page server together first"
        )
    if directory.schema is not Schema.NONE:
        raise errors.UsageError(f"Checkpoint in {directory.path} is already compressed")
    if not directory.pids:
        raise errors.ImageError(f"{directory.path}: has no pagemap of a process")
    return directory.inventory.compressed(
        region_pages=mode.region_pages, acceleration=mode.acceleration
    )


def _write_inventory(inventory: Inventory, path: str) -> None:
    with copying.new_file(path, like=inventory.path) as stream:
        stream.write(inventory.encode())


def _process_pagemaps(directory: ImageDirectory) -> list[str]:
    return [pagemap_name(pid=pid) for pid in directory.pids]


def _check_pagemaps(directory: ImageDirectory) -> dict[str, int]:
    """Check all pagemaps before anything is written; return the pages id of each, by name."""
    names = _process_pagemaps(directory)
    names += [pagemap_name(shmem_id=shmem_id) for shmem_id in directory.shmem_ids]
    owners: dict[int, str] = {}
    for name in names:
        pages_id = directory.pagemap_by_name(name).head.pages_id
        if pages_id in owners:
            raise errors.ImageFormatError(
                f"{directory.path}: {owners[pages_id]} and {name} both name {pages_name(pages_id)}"
            )
        owners[pages_id] = name
    return {name: pages_id for pages_id, name in owners.items()}


def _free_pages_ids(directory: ImageDirectory, used: set[int]) -> Iterator[int]:
    """Yield ids that no pagemap names and no file has, staged or left over."""
    for pages_id in range(1, 1 << 32):
        if pages_id not in used and not os.path.lexists(directory.file(pages_name(pages_id))):
            yield pages_id


@contextlib.contextmanager
def _new_directory(path: str, like: str) -> Iterator[None]:
    """Make the empty directory ``path``; on failure everything that was put into it is removed."""
    source = os.path.realpath(like)
    if os.path.join(os.path.realpath(path), "").startswith(os.path.join(source, "")):
        raise errors.UsageError(f"{path}: lies in {like}; choose a directory outside of it")
    try:
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
        if not os.path.isdir(path) or os.listdir(path):
            raise errors.UsageError(f"{path}: exists and is not an empty directory") from None
    try:
        yield
        if made:
            copying.copy_metadata(source, path)
        copying.sync_directory(path)
    except BaseException:
        # Nothing may hide the error that led here.
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                _remove(os.path.join(path, name))
            if made:
                os.rmdir(path)
        raise


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep a second in-place run away from the directory; the lock ends with the process."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.UsageError(f"{path}: is being compressed by another process") from None
    else:
        yield
    finally:
        os.close(fd)


def _remove_staged(path: str) -> None:
    """Remove unfinished files: of this run, or of one that was killed."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(STAGED_SUFFIX):
                os.unlink(entry.path)
