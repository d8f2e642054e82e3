"""Convert all pagemaps of a directory: into a copy, or in the directory, all at once.

What is to become of a directory is decided by a *planner*, see :mod:`helperd.offline.compress` and
:mod:`helperd.offline.decompress`; everything is looked at before anything is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from helperd import blocks
from helperd.errors import ImageError, ImageFormatError, UsageError
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import INVENTORY_NAME, Inventory
from helperd.images.mappings import Mappings
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, Pagemap, check_pages_size
from helperd.images.records import open_image, os_failure
from helperd.offline.convert_pagemap import FileReport, Job, Mode, convert
from helperd.offline.files import (
    Place,
    copy_directory,
    copy_file,
    copy_metadata,
    new_file,
    sync_directory,
)
from helperd.offline.parallel import n_threads
from helperd.offline.switch import (
    SCRATCH_NAME,
    STAGING_NAME,
    Directory,
    is_interrupted,
    locked,
)

#: Called with (bytes of memory done, in all) now and then.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to become of a directory.

    Attributes:
        inventory: the new one.
        modes: of the pagemaps that have to be converted, by name.
        pagemaps: all of the directory, by name.
        mappings: that their pages belong to, where that is known.
        notes: what the user should know, a line each.
    """

    inventory: Inventory
    modes: dict[str, Mode]
    pagemaps: dict[str, Pagemap]
    mappings: Mapping[str, Mappings | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


#: Returns the plan, None when there is nothing to do; raises when it cannot be done.
Planner = Callable[[ImageDirectory], Plan | None]


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What became of a directory.

    Attributes:
        path: the directory that holds the result.
        files: one report per process, ascending by pid; none when nothing had to be done.
        changed: whether anything had to be done.
        notes: what the user should know, a line each.
    """

    path: str
    files: tuple[FileReport, ...]
    changed: bool
    notes: tuple[str, ...] = ()


def carry_out(
    path: str,
    planner: Planner,
    *,
    output: str | None = None,
    in_place: bool = False,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a directory.

    With ``output`` a complete copy is made; inventory.img is its last file, so a copy that was
    cut off cannot be taken for a checkpoint. Without, the files are replaced all at once, see
    :mod:`helperd.offline.switch`; what an earlier run has left is finished or undone first.

    Raises:
        UsageError: the arguments contradict each other, or another process is changing ``path``;
            nothing was changed.
        ImageError: the images are broken; nothing was changed, and no copy is left.
        ResourceError, NotPermitted: from the system; likewise.
    """
    if output is not None and in_place:
        raise UsageError(f"{path}: convert either into an output directory or in place")
    threads = n_threads(threads)
    try:
        if dry_run:
            directory = ImageDirectory(path)
            plan = planner(directory)
            if plan is not None and output is None:
                with locked(path) as held:
                    _check_replaceable(held, directory, plan, backups=not in_place)
            return ConvertReport(path, (), changed=False)
        if output is not None:
            return _convert_copy(path, planner, output, threads, progress)
        return _convert_here(path, planner, not in_place, threads, progress)
    except OSError as error:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        raise os_failure(error, f"cannot convert {path}{where}") from error


def _convert_here(
    path: str, planner: Planner, backups: bool, threads: int, progress: Progress | None
) -> ConvertReport:
    with locked(path) as held:
        held.recover()
        directory = ImageDirectory(path)
        plan = planner(directory)
        if plan is None:
            return ConvertReport(path, (), changed=False)
        _check_replaceable(held, directory, plan, backups=backups)
        with held.replacing() as switch:
            files = _convert_files(directory, plan, switch.stage, threads, progress)
            write_inventory(plan.inventory, switch.stage(INVENTORY_NAME))
            switch.commit(backups=backups)
    return ConvertReport(path, files, changed=True, notes=plan.notes)


def _convert_copy(
    path: str, planner: Planner, output: str, threads: int, progress: Progress | None
) -> ConvertReport:
    if is_interrupted(path):
        with locked(path) as held:
            held.recover()
    directory = ImageDirectory(path)
    plan = planner(directory)
    converted = {STAGING_NAME, INVENTORY_NAME}
    if plan is not None:
        for name in plan.modes:
            converted |= {name, plan.pagemaps[name].pages_name}
    with _new_directory(output, like=path):
        copy_directory(path, output, except_names=converted)
        files: tuple[FileReport, ...] = ()
        target = os.path.join(output, INVENTORY_NAME)
        if plan is not None:
            files = _convert_files(
                directory, plan, lambda name: Place(os.path.join(output, name)), threads, progress
            )
            write_inventory(plan.inventory, Place(target))
        elif directory.has(INVENTORY_NAME):
            copy_file(directory.file(INVENTORY_NAME), target)
    notes = () if plan is None else plan.notes
    return ConvertReport(output, files, changed=plan is not None, notes=notes)


def _convert_files(
    directory: ImageDirectory,
    plan: Plan,
    place: Callable[[str], Place],
    threads: int,
    progress: Progress | None,
) -> tuple[FileReport, ...]:
    total = done = 0
    for name, mode in plan.modes.items():
        passes = 2 if mode.again else 1
        total += passes * blocks.pages_to_bytes(plan.pagemaps[name].n_pages)

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    return convert_files(directory, plan, place, threads, advance, plan.modes)


def convert_files(
    directory: ImageDirectory,
    plan: Plan,
    place: Callable[[str], Place],
    threads: int,
    advance: Callable[[int], None],
    names: Iterable[str],
) -> tuple[FileReport, ...]:
    """Convert pagemaps of a directory and their pages files.

    Args:
        directory: that they are in.
        plan: says how.
        place: says where a new file is to be made.
        threads: that convert.
        advance: is told of the progress, in bytes of memory.
        names: of the pagemaps, in the order in which they are to be converted.
    """
    reports = []
    for name in names:
        mode = plan.modes[name]
        pagemap = plan.pagemaps[name]
        pages_name = pagemap.pages_name
        stored = directory.has(pages_name) or pagemap.payload_end > 0
        job = Job(
            pagemap=pagemap,
            open_source=partial(directory.open_pages, pages_name) if stored else None,
            pagemap_place=place(name),
            pages_place=place(pages_name) if stored else None,
            scratch_place=place(SCRATCH_NAME),
            mappings=plan.mappings.get(name),
        )
        reports.append(convert(job, mode, threads=threads, advance=advance))
    return tuple(reports)


def check_pagemaps(directory: ImageDirectory) -> dict[str, Pagemap]:
    """Return all pagemaps by name, looked at as closely as can be done in no time.

    Raises:
        ImageError: there are none of processes, one is broken, two share a pages file, or a pages
            file is not as long as its pagemap says.
    """
    if not directory.pids:
        raise ImageError(f"{directory.path}: has no pagemap of a process")
    pagemaps: dict[str, Pagemap] = {}
    owners: dict[str, str] = {}
    for name in directory.pagemap_names:
        pagemap = pagemaps[name] = directory.pagemap_by_name(name)
        owner = owners.setdefault(pagemap.pages_name, name)
        if owner != name:
            raise ImageFormatError(
                f"{directory.path}: {owner} and {name} both name {pagemap.pages_name}"
            )
        if pagemap.payload_end or directory.has(pagemap.pages_name):
            with open_image(directory.file(pagemap.pages_name)) as stream:
                size = os.fstat(stream.fileno()).st_size
            check_pages_size(pagemap, directory.file(pagemap.pages_name), size, exact=True)
    return pagemaps


def has_tables(pagemap: Pagemap) -> bool:
    """Return whether anything in a pagemap is only valid in its schema."""
    return bool(pagemap.schemas) or any(
        flags & PE_PAYLOAD_ALIGNED for flags in set(pagemap.columns.flags)
    )


def require_inventory(directory: ImageDirectory) -> Inventory:
    """Return the inventory.

    Raises:
        ImageError: there is none.
    """
    if directory.inventory is None:
        raise ImageError(
            f"{directory.path}: has no {INVENTORY_NAME} that says whether it is compressed;"
            " put the files of the dump and of its page server together first"
        )
    return directory.inventory


def _check_replaceable(
    held: Directory, directory: ImageDirectory, plan: Plan, *, backups: bool
) -> None:
    names = [INVENTORY_NAME]
    for name in plan.modes:
        names.append(name)
        if directory.has(plan.pagemaps[name].pages_name):
            names.append(plan.pagemaps[name].pages_name)
    held.check_replaceable(names, backups=backups)


def write_inventory(inventory: Inventory, place: Place) -> None:
    """Write an inventory to the new file ``path``, in the manner of the one it was made of."""
    with new_file(place, like=inventory.path) as stream:
        stream.write(inventory.encode())


@contextlib.contextmanager
def _new_directory(path: str, like: str) -> Iterator[None]:
    """Make the empty directory ``path``; on failure everything that was put into it is removed."""
    source = os.path.realpath(like)
    if os.path.join(os.path.realpath(path), "").startswith(os.path.join(source, "")):
        raise UsageError(f"{path}: lies in {like}; choose a directory outside of it")
    try:
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
        if not os.path.isdir(path) or os.listdir(path):
            raise UsageError(f"{path}: exists and is not an empty directory") from None
    try:
        yield
        if made:
            copy_metadata(source, path)
        sync_directory(path)
        if made:
            sync_directory(os.path.dirname(os.path.abspath(path)))
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
