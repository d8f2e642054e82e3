"""The stand-in: a directory that a stock `criu restore --lazy-pages` can read.

CRIU itself reads every page that is not left to the daemon, raw, through the chain of parents. So
it gets a directory with links to all other images, pagemaps in which most entries are left to the
daemon, and small pages files with the few pages that are not.

Entries that are left to the daemon say two things: LAZY, so a restore with --lazy-pages passes over
them; and PARENT, with a parent directory that has none of them. A restore without --lazy-pages
fails there ("Missing ... in parent pagemap"); had they been LAZY alone, it would have taken for
their content whatever comes next in the pages file.
"""

from __future__ import annotations

import errno
import os
import re
import struct

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import CorruptBlock, ImageError, ShortImage, from_errno
from helperd.images.entries import NO_TABLE, PE_LAZY, PE_PARENT, PE_PRESENT
from helperd.images.entry_fields import HAS_COUNT
from helperd.images.fields import VARINT, encode_varint, walk_fields
from helperd.images.level import read_image
from helperd.images.lookup import ELSEWHERE, PARENT_NAME, Lookup, open_lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGEMAP = re.compile(r"pagemap-(shmem-)?(0|[1-9][0-9]{0,9})\.img", re.ASCII)
_PAGES = re.compile(r"pages-[0-9]{1,10}\.img", re.ASCII)
_INVENTORY = "inventory.img"
_EMPTY_PARENT = "nothing"
_MAGICS = struct.pack("<II", 0x54564319, 0x56084025)
_INVENTORY_MAGIC = struct.pack("<I", 0x58313116)
_WORD = struct.Struct("<I")

# Fields of the inventory: the version, and how its images are compressed.
_IMG_VERSION, _COMPRESSION_FIELDS = 1, (15, 16, 17)
_COMPRESSED_VERSION, _PLAIN_VERSION = 3, 2

# mmap's flags, as mm-PID.img has them.
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB = 0x02, 0x20, 0x2000, 0x40000
_WATCHED_MASK = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_LOCKED | _MAP_HUGETLB


class Images:
    """What the daemon brings: the pages of each task, and which of them are left to it.

    Attributes:
        path: of the image directory.
        lookups: by pid.
        lazy: by pid, one byte for each run of the lookup: 1 = left to the daemon.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lookups: dict[int, Lookup] = {}
        self.lazy: dict[int, bytearray] = {}

    @property
    def are_new(self) -> bool:
        """Whether a CRIU from 4.2 on has written them."""
        return any(
            form & HAS_COUNT
            for lookup in self.lookups.values()
            for form in lookup.levels[0].entries.form
        )

    @property
    def fds(self) -> list[int]:
        """The descriptors of all pages files."""
        levels = [level for lookup in self.lookups.values() for level in lookup.levels]
        return [level.fd for level in levels if level.fd >= 0]

    def close(self) -> None:
        """Close all pages files."""
        for lookup in self.lookups.values():
            lookup.close()


def open_images(path: str) -> Images:
    """Open the image directory ``path`` with its parents.

    Raises:
        ImageError: it is not whole.
    """
    images = Images(path)
    for name in _names(path):
        match = _PAGEMAP.fullmatch(name)
        if match is None or match[1]:
            continue
        pid = int(match[2])
        lookup = open_lookup(path, name)
        images.lookups[pid] = lookup
        images.lazy[pid] = bytearray(1 if flags & PE_LAZY else 0 for flags in lookup.flags_of)
    return images


def is_readable_by_criu(images: Images) -> bool:
    """Return whether a stock CRIU can restore lazily from the directory itself."""
    if os.path.lexists(os.path.join(images.path, PARENT_NAME)):
        return False
    inventory = os.path.join(images.path, _INVENTORY)
    return not os.path.exists(inventory) or not _is_compressed(read_image(inventory))


def make_stand_in(images: Images, target: str) -> None:
    """Make the stand-in for ``images`` in the new directory ``target``.

    Entries that CRIU's own dump took from a parent are left to the daemon as well, where they can
    be; ``images.lazy`` says so afterwards.

    Raises:
        ImageError: an image is broken.
        HelperdError: the directory cannot be written.
    """
    try:
        os.mkdir(target, 0o700)
        os.mkdir(os.path.join(target, _EMPTY_PARENT), 0o700)
        os.symlink(_EMPTY_PARENT, os.path.join(target, PARENT_NAME))
        leave_parents_pages(images)
        _fill(images, target)
    except OSError as error:
        raise from_errno(error.errno or errno.EIO, f"cannot make the stand-in {target}") from error


def leave_parents_pages(images: Images) -> None:
    """Leave to the daemon, too, what the dump itself took from its parents, where that can be.

    Raises:
        ImageError: an image of mappings is missing or broken.
    """
    for pid, lookup in images.lookups.items():
        mappings = os.path.join(images.path, f"mm-{pid}.img")
        _leave_parents_pages(lookup, images.lazy[pid], mappings)


def remove_stand_in(target: str) -> None:
    """Remove what :func:`make_stand_in` made, and what CRIU has written beside."""
    for folder, _, names in os.walk(target, topdown=False):
        for name in names:
            _quietly(os.unlink, os.path.join(folder, name))
        # A link to a folder counts as one.
        for name in os.listdir(folder):
            _quietly(os.unlink, os.path.join(folder, name))
        _quietly(os.rmdir, folder)


def _quietly(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except OSError:
        return


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        failure = from_errno(error.errno or 0, f"cannot list the image directory {path}")
        raise ImageError(str(failure), errno=error.errno) from error


def _fill(images: Images, target: str) -> None:
    source = os.path.abspath(images.path)
    pages_id = 0
    for name in _names(source):
        match = _PAGEMAP.fullmatch(name)
        if match is None:
            if name == _INVENTORY:
                inventory = _plain_inventory(read_image(os.path.join(source, name)))
                _write(os.path.join(target, name), [inventory])
            elif name != PARENT_NAME and not _PAGES.fullmatch(name) and _is_file(source, name):
                os.symlink(os.path.join(source, name), os.path.join(target, name))
            continue
        pages_id += 1
        if match[1]:
            lookup = open_lookup(source, name)
            try:
                _write_pair(target, name, pages_id, lookup, bytearray(len(lookup)))
            finally:
                lookup.close()
            continue
        pid = int(match[2])
        lookup, lazy = images.lookups[pid], images.lazy[pid]
        _write_pair(target, name, pages_id, lookup, lazy)
        parent = os.path.join(target, _EMPTY_PARENT)
        _write(os.path.join(parent, name), [_pagemap_head(pages_id)])
        _write(os.path.join(parent, f"pages-{pages_id}.img"), [])


def _is_file(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


def _write(path: str, parts: list[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.writelines(parts)


def _record(payload: bytes) -> bytes:
    return _WORD.pack(len(payload)) + payload


def _pagemap_head(pages_id: int) -> bytes:
    return _MAGICS + _record(b"\x08" + encode_varint(pages_id))


def _write_pair(target: str, name: str, pages_id: int, lookup: Lookup, lazy: bytearray) -> None:
    """Write a pagemap and its pages file: the pages that are not lazy."""
    _write(os.path.join(target, name), [_pagemap_head(pages_id), *_records(lookup, lazy)])
    fd = os.open(
        os.path.join(target, f"pages-{pages_id}.img"),
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
        0o600,
    )
    with os.fdopen(fd, "wb") as stream:
        for run, is_lazy in enumerate(lazy):
            if not is_lazy:
                for content in read_run(lookup, run):
                    stream.write(content)


def _records(lookup: Lookup, lazy: bytearray) -> Iterator[bytes]:
    """Yield the records of the entries: neighbours of one kind are one entry."""
    starts, numbers = lookup.starts, lookup.numbers
    start = end = 0
    kind = -1
    for run, is_lazy in enumerate(lazy):
        first = starts[run]
        if first != end or is_lazy != kind:
            if end:
                yield _entry(start, (end - start) // PAGE_SIZE, kind)
            start, kind = first, is_lazy
        end = first + (numbers[run + 1] - numbers[run]) * PAGE_SIZE
    if end:
        yield _entry(start, (end - start) // PAGE_SIZE, kind)


def _entry(start: int, n_pages: int, is_lazy: int) -> bytes:
    # The count twice: of CRIU's versions some read field 2 only, some field 5 if it is there.
    count = encode_varint(n_pages)
    flags = PE_LAZY | PE_PARENT if is_lazy else PE_PRESENT
    return _record(
        b"\x08" + encode_varint(start) + b"\x10" + count + bytes((0x20, flags, 0x28)) + count
    )


def read_run(lookup: Lookup, run: int) -> Iterator[bytes]:
    """Yield the pages of a run, decoded, without loading the tables of all others.

    Raises:
        ImageError: a block is corrupt, the pages file ends before, the pages are in no image.
    """
    which = lookup.level_of[run]
    if which == ELSEWHERE:
        raise ImageError(
            f"{lookup.name}: page {lookup.starts[run]:#x} is neither lazy nor in any image"
        )
    level = lookup.levels[which]
    entries, entry = level.entries, lookup.entry_of[run]
    skip = (lookup.starts[run] - entries.vaddr[entry]) // PAGE_SIZE
    left = lookup.run_pages(run)
    offset = entries.offset[entry]
    if entries.table[entry] == NO_TABLE:
        offset += pages_to_bytes(skip)
        while left:
            count = min(left, 1 << 10)
            yield _pread(level.fd, pages_to_bytes(count), offset, level.path)
            offset += pages_to_bytes(count)
            left -= count
        return
    from helperd.codec.block import decode_block

    table = entries.table_of(entry)
    block_pages = entries.block_pages[entry]
    block, skip = divmod(skip, block_pages)
    offset += sum(table[:block])
    while left:
        n_pages = min(block_pages, entries.nr_pages[entry] - block * block_pages)
        stored = _pread(level.fd, table[block], offset, level.path)
        try:
            content = decode_block(stored, pages_to_bytes(n_pages))
        except CorruptBlock as error:
            raise CorruptBlock(f"{level.path}: block at offset {offset}: {error}") from error
        wanted = min(n_pages - skip, left)
        yield content[pages_to_bytes(skip) : pages_to_bytes(skip + wanted)]
        offset += table[block]
        left -= wanted
        block, skip = block + 1, 0


def _pread(fd: int, n_bytes: int, offset: int, path: str) -> bytes:
    content = os.pread(fd, n_bytes, offset) if n_bytes else b""
    if len(content) < n_bytes:
        raise ShortImage(f"{path}: ends inside the payload of {n_bytes} bytes at {offset}")
    return content


def _is_compressed(inventory: bytes) -> bool:
    for number, kind, value, _ in _inventory_fields(inventory):
        if number == _IMG_VERSION and value == _COMPRESSED_VERSION:
            return True
        if number == _COMPRESSION_FIELDS[0] and kind == VARINT and value:
            return True
    return False


def _plain_inventory(inventory: bytes) -> bytes:
    """Return an inventory that says nothing of compression."""
    out = bytearray()
    record = inventory[len(_INVENTORY_MAGIC) + _WORD.size :]
    for number, _, value, (start, end) in _inventory_fields(inventory):
        if number in _COMPRESSION_FIELDS:
            continue
        if number == _IMG_VERSION and value == _COMPRESSED_VERSION:
            out += bytes((_IMG_VERSION << 3, _PLAIN_VERSION))
        else:
            out += record[start:end]
    return _INVENTORY_MAGIC + _record(bytes(out))


def _inventory_fields(
    inventory: bytes,
) -> Iterator[tuple[int, int, int | bytes, tuple[int, int]]]:
    head = len(_INVENTORY_MAGIC) + _WORD.size
    if inventory[: len(_INVENTORY_MAGIC)] != _INVENTORY_MAGIC or len(inventory) < head:
        raise ImageError(f"{_INVENTORY} is none")
    (size,) = _WORD.unpack_from(inventory, len(_INVENTORY_MAGIC))
    if len(inventory) != head + size:
        raise ImageError(f"{_INVENTORY}: its record of {size} bytes is not all of it")
    try:
        yield from walk_fields(inventory[head:])
    except ValueError as error:
        raise ImageError(f"{_INVENTORY}: {error}") from error


def _leave_parents_pages(lookup: Lookup, lazy: bytearray, mm_path: str) -> None:
    """Mark as lazy what the dump itself took from its parent, in mappings that can be lazy."""
    candidates = [
        run
        for run, flags in enumerate(lookup.flags_of)
        if flags & PE_PARENT and lookup.level_of[run] != ELSEWHERE
    ]
    if not candidates:
        return
    watched = watched_mappings(mm_path)
    for run in candidates:
        start = lookup.starts[run]
        end = start + pages_to_bytes(lookup.run_pages(run))
        lazy[run] = _covers(watched, start, end)


def watched_mappings(mm_path: str) -> list[tuple[int, int]]:
    """Return the mappings that CRIU has watched when it restores lazily: (start, end), ascending.

    Those of private anonymous memory that are neither locked, nor of huge pages, nor the kernel's
    own: a restore looks into the vdso that was dumped before it goes on.

    Raises:
        ImageError: the image of the mappings is missing or broken.
    """
    # Imported here: most restores need no look at the mappings.
    from helperd.images.mappings import read_mappings

    return [
        (mapping.start, mapping.end)
        for mapping in read_mappings(mm_path)
        if mapping.flags & _WATCHED_MASK == _MAP_PRIVATE | _MAP_ANONYMOUS
        and not mapping.of_the_kernel
    ]


def _covers(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    for first, last in ranges:
        if first <= start < last:
            if end <= last:
                return True
            start = last
    return False
