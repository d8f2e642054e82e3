"""The recorded truth of a checkpoint archive: what each memory range held when it was dumped.

``truth.json`` of an archive lists, for every range of pages that was dumped, the SHA-256 of its
bytes in the frozen process. map_ranges() gives a target the memory to restore them into, and
differing_ranges() says afterwards which of them do not hold what they held.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from target import Target

from helperd.blocks import PAGE_SIZE, pages_to_bytes


@dataclass(frozen=True, slots=True)
class FileView:
    """Pages of a range that lie over a private mapping of a file that the archive holds."""

    address: int
    n_pages: int
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Range:
    """Dumped pages at consecutive addresses, and the SHA-256 (hex) of their bytes."""

    address: int
    n_pages: int
    sha256: str
    zero_pages: int
    file_views: tuple[FileView, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Length in bytes."""
        return pages_to_bytes(self.n_pages)

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.address + self.n_bytes


@dataclass(frozen=True, slots=True)
class Process:
    """One dumped process: its pid at that time and its ranges in ascending order."""

    pid: int
    ranges: tuple[Range, ...]
    #: Addresses of dumped zero pages that lie over a private file mapping.
    zero_pages_over_file: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """What an archive is known to hold: the image directory and its processes."""

    images: Path
    processes: tuple[Process, ...]


def load_truth(archive: Path) -> Truth:
    """Read ``truth.json`` of an unpacked archive."""
    truth = json.loads((archive / "truth.json").read_text())
    processes = tuple(
        Process(
            pid=process["pid"],
            ranges=tuple(_range(item, archive / "files") for item in process["ranges"]),
            zero_pages_over_file=tuple(
                int(page["vaddr"], 16) for page in process.get("zero_pages_over_file", ())
            ),
        )
        for process in truth["processes"]
    )
    return Truth(images=archive / truth["dir"], processes=processes)


def map_ranges(target: Target, ranges: Sequence[Range]) -> None:
    """Map every range in the target: anonymous memory, and files where the archive has them."""
    file_views = [view for item in ranges for view in item.file_views]
    for address, n_bytes in _anonymous_spans(ranges, file_views):
        target.map_anonymous(address, n_bytes)
    for view in file_views:
        target.map_file(view.address, pages_to_bytes(view.n_pages), view.path, view.offset)


def differing_ranges(target: Target, ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges whose memory in the target is not what was dumped."""
    return [
        item
        for item in ranges
        if hashlib.sha256(target.read(item.address, item.n_bytes)).hexdigest() != item.sha256
    ]


def _range(item: dict[str, Any], files: Path) -> Range:
    address = int(item["vaddr"], 16)
    return Range(
        address=address,
        n_pages=item["nr_pages"],
        sha256=item["sha256"],
        zero_pages=item["zero_pages"],
        file_views=tuple(_file_views(address, item.get("vmas", ()), files)),
    )


def _file_views(address: int, vmas: Iterable[dict[str, Any]], files: Path) -> Iterator[FileView]:
    for vma in vmas:
        if vma["kind"] == "file":
            path = files / Path(vma["path"]).name
            if path.exists():  # the C library's files are not in the archives
                yield FileView(address, vma["nr_pages"], path, vma["pgoff"])
        address += pages_to_bytes(vma["nr_pages"])


def _anonymous_spans(ranges: Sequence[Range], views: Sequence[FileView]) -> list[tuple[int, int]]:
    """Return (address, bytes) of what the views leave of the ranges, neighbours merged."""
    viewed = {view.address + pages_to_bytes(page) for view in views for page in range(view.n_pages)}
    spans: list[tuple[int, int]] = []
    for item in ranges:
        for address in range(item.address, item.end, PAGE_SIZE):
            if address in viewed:
                continue
            if spans and sum(spans[-1]) == address:
                spans[-1] = (spans[-1][0], spans[-1][1] + PAGE_SIZE)
            else:
                spans.append((address, PAGE_SIZE))
    return spans
