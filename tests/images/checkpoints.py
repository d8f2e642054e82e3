"""Checkpoints made entry by entry, and what every page of a checkpoint holds."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helperd.blocks import PAGE_SIZE, pages_to_bytes, split_into_regions
from helperd.codec.block import encode_block
from helperd.images import records
from helperd.images.chain import resolve
from helperd.images.dialect import blocks_in_parents
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.extent import read_pages
from helperd.images.inventory import BLOCKS_VERSION, INVENTORY_NAME, Inventory, Schema
from helperd.images.pagemap import (
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    PagemapEntry,
    pages_name,
)
from helperd.images.pagemap_writer import write_pagemap
from helperd.images.pagesfile import PagesFile
from helperd.images.pb import inventory_pb2, pagemap_pb2
from helperd.offline.files import copy_directory

ARCHIVES = (
    "py-heap",
    "tree",
    "incremental",
    "incremental-criu317",
    "criu-perpage",
    "criu-region256k",
    "criu-fragmented",
)
UNCOMPRESSED = ("py-heap", "tree", "incremental", "incremental-criu317")
COMPRESSED = ("criu-perpage", "criu-region256k", "criu-fragmented")

Memory = dict[int, bytes]
Content = dict[str, bytes | str]


def clone(folder: Path, target: Path) -> Path:
    """Copy a folder with its links and the holes of its files, so that it can be changed."""
    target.mkdir()
    copy_directory(str(folder), str(target))
    return target


def content_of(folder: Path) -> Content:
    """Return the bytes of each file and the text of each link below ``folder``, by path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def levels_of(archive: Path) -> list[Path]:
    """Return the image directories of an archive, a parent before its child."""
    return sorted(path.parent for path in (archive / "images").rglob("inventory.img"))


def holes_of(path: Path) -> list[tuple[int, int]]:
    """Return the holes of a file."""
    with PagesFile(str(path)) as file:
        return list(file.holes)


def load_dumps(archive: Path) -> list[dict[str, Any]]:
    """Return what truth.json says of the dump and of each of its pre-dumps."""
    truth = json.loads((archive / "truth.json").read_text())
    return [truth, *truth.get("predumps", [])]


def memory_of(
    directory: str | Path,
    *,
    pid: int | None = None,
    shmem_id: int | None = None,
) -> Memory:
    """Return every page that a checkpoint holds of a process, by address; no page comes twice."""
    images = ImageDirectory(str(directory))
    memory: Memory = {}
    last = -1
    for address, content in read_pages(resolve(images, pid=pid, shmem_id=shmem_id)):
        assert address > last
        for at in range(0, len(content), PAGE_SIZE):
            last = address + at
            memory[last] = content[at : at + PAGE_SIZE]
    return memory


def assert_is_truth(folder: Path, dump: Mapping[str, Any]) -> None:
    """Check all memory of the checkpoint in ``folder`` against the recorded hashes."""
    images = ImageDirectory(str(folder))
    assert images.pids == [process["pid"] for process in dump["processes"]]
    assert images.shmem_ids == sorted(shmem["shmid"] for shmem in dump["shmem"])
    for process in dump["processes"]:
        _assert_ranges(memory_of(folder, pid=process["pid"]), process["ranges"])
    for shmem in dump["shmem"]:
        _assert_ranges(memory_of(folder, shmem_id=shmem["shmid"]), shmem["ranges"])


def _assert_ranges(memory: Memory, ranges: Iterable[Mapping[str, Any]]) -> None:
    n_pages = 0
    for known in ranges:
        start = int(known["vaddr"], 16)
        addresses = range(start, start + pages_to_bytes(known["nr_pages"]), PAGE_SIZE)
        content = b"".join(memory[address] for address in addresses)
        assert hashlib.sha256(content).hexdigest() == known["sha256"], known["vaddr"]
        n_pages += known["nr_pages"]
    assert len(memory) == n_pages


class Builder:
    """One level of a checkpoint under construction, with a single pagemap.

    Attributes:
        folder: the image directory; made on ``write``.
        entries: of the pagemap.
        payload: of the pages file.
    """

    def __init__(
        self, folder: Path, *, schema: Schema = Schema.NONE, pid: int = 7, pages_id: int = 1
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.pid = pid
        self.pages_id = pages_id
        self.entries: list[PagemapEntry] = []
        self.payload = bytearray()

    def add(
        self, page: int, content: bytes, *, region: int | None = None, aligned: bool = False
    ) -> Builder:
        """Add an entry with a payload: uncompressed, or in blocks of ``region`` pages (0: 1)."""
        n_pages = len(content) // PAGE_SIZE
        flags = PE_PRESENT
        if aligned:
            flags |= PE_PAYLOAD_ALIGNED
            self.payload += bytes(-len(self.payload) % PAGE_SIZE)
        entry = PagemapEntry(vaddr=page * PAGE_SIZE, nr_pages=n_pages, flags=flags)
        if region is None:
            self.payload += content
        else:
            entry.region_pages = region
            entry.sizes = array("I")
            at = 0
            for block_pages in split_into_regions(n_pages, region or 1):
                end = at + pages_to_bytes(block_pages)
                stored = encode_block(content[at:end])
                entry.sizes.append(len(stored))
                self.payload += stored
                at = end
        self.entries.append(entry)
        return self

    def refer(self, page: int, n_pages: int = 1, flags: int = PE_PARENT) -> Builder:
        """Add an entry without a payload."""
        self.entries.append(PagemapEntry(vaddr=page * PAGE_SIZE, nr_pages=n_pages, flags=flags))
        return self

    def write(self, *, parent: str | None = None) -> Path:
        """Write the directory and return it; ``parent`` is what its parent link says."""
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / pagemap_name(pid=self.pid), "wb") as stream:
            head = pagemap_pb2.Head(pages_id=self.pages_id)
            write_pagemap(stream, head, self.entries, self.schema)
        (self.folder / pages_name(self.pages_id)).write_bytes(self.payload)
        fields = {}
        if self.schema is Schema.BLOCKS:
            largest = max((entry.block_pages for entry in self.entries), default=1)
            fields["acceleration_or_block_size"] = pages_to_bytes(largest)
        if parent is not None:
            (self.folder / "parent").symlink_to(parent)
            if self.schema is Schema.NONE and blocks_in_parents(ImageDirectory(str(self.folder))):
                fields["img_version"] = BLOCKS_VERSION
        write_inventory(self.folder, self.schema, **fields)
        return self.folder


def write_inventory(folder: Path, schema: Schema = Schema.NONE, **fields: int) -> None:
    """Write an inventory that names ``schema``."""
    version = BLOCKS_VERSION if schema is Schema.BLOCKS else 2
    message = inventory_pb2.Inventory(**{"img_version": version, **fields})
    if schema is not Schema.NONE:
        message.compress = 1
    path = folder / INVENTORY_NAME
    path.write_bytes(Inventory(str(path), message).encode())


def write_pagemap_file(path: Path, *payloads: bytes) -> Path:
    """Write a pagemap of raw records, the first of them the head."""
    with open(path, "wb") as stream:
        records.write_magics(stream, records.PAGEMAP_MAGICS)
        for payload in payloads:
            records.write_record(stream, payload)
    return path
