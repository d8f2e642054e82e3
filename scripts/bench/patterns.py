"""What the restored memory holds: from nothing but zeros to the heap of a real process.

The content is written into a file once; it is the truth that what was restored is compared with.
"""

from __future__ import annotations

import random
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.images.extent import read_pages

MIB = 1 << 20
#: Where restored memory starts: free in every process on x86-64, and a huge page's boundary.
BASE = 0x2000_0000_0000

_ARCHIVE = Path(__file__).resolve().parents[2] / "tests" / "data" / "py-heap.tar.xz"
#: Made-up content repeats after this much; LZ4 looks back 64 KiB and does not notice.
_UNIT_BYTES = 32 * MIB
_SEED = 2895
_ELF_FOLDERS = ("/usr/bin", "/usr/lib", "/usr/sbin", "/usr/libexec")
#: Of the pages of a sparse process one in so many holds something.
_SPARSE_PAGES = 16


@dataclass(frozen=True)
class Memory:
    """Memory to be restored.

    Attributes:
        name: of the pattern.
        source: a file with the content of all ranges, one after the other.
        ranges: (address, pages) in ascending order, never adjacent to each other.
    """

    name: str
    source: Path
    ranges: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all ranges."""
        return pages_to_bytes(sum(n_pages for _, n_pages in self.ranges))


def make_memory(name: str, n_bytes: int, folder: Path) -> Memory:
    """Write the content of a pattern into a file in ``folder``.

    Args:
        name: one of :data:`PATTERNS`, or "sparse".
        n_bytes: of memory, a multiple of the page size; "py-heap" comes as near as it can.
        folder: an existing one.
    """
    source = folder / f"{name}.memory"
    with source.open("w+b") as file:
        if name == "py-heap":
            ranges = _write_heap(file, n_bytes, folder)
        else:
            _WRITERS[name](file, n_bytes)
            file.truncate(n_bytes)
            ranges = ((BASE, n_bytes // PAGE_SIZE),)
    return Memory(name, source, ranges)


def _write_zero(file: BinaryIO, n_bytes: int) -> None:
    """Leave a hole."""


def _write_mixed(file: BinaryIO, n_bytes: int) -> None:
    """Half of the pages zero, a quarter one repeated word, a quarter random; in random order."""
    chance = random.Random(_SEED)
    unit = bytearray()
    for _ in range(_UNIT_BYTES // PAGE_SIZE):
        kind = chance.randrange(4)
        if kind == 0:
            unit += chance.randbytes(PAGE_SIZE)
        elif kind == 1:
            unit += chance.randbytes(8) * (PAGE_SIZE // 8)
        else:
            unit += bytes(PAGE_SIZE)
    _repeat(file, unit, n_bytes)


def _write_random(file: BinaryIO, n_bytes: int) -> None:
    """Nothing that could be compressed."""
    _repeat(file, random.Random(_SEED).randbytes(_UNIT_BYTES), n_bytes)


def _write_text(file: BinaryIO, n_bytes: int) -> None:
    """The source files of the Python installation."""
    _repeat(file, _text(n_bytes), n_bytes)


def _write_elf(file: BinaryIO, n_bytes: int) -> None:
    """The system's programs and shared libraries, each from the start of a page."""
    unit = bytearray()
    for path in _elf_files():
        unit += path.read_bytes()
        unit += bytes(-len(unit) % PAGE_SIZE)
        if len(unit) >= n_bytes:
            break
    _repeat(file, unit, n_bytes)


def _write_sparse(file: BinaryIO, n_bytes: int) -> None:
    """A page of text now and then, the others zero: a huge process with little in it."""
    text = _text(_UNIT_BYTES)
    stride = _SPARSE_PAGES * PAGE_SIZE
    for index in range(n_bytes // stride):
        file.seek(index * stride)
        at = index * PAGE_SIZE % (len(text) - PAGE_SIZE)
        file.write(text[at : at + PAGE_SIZE])


_WRITERS: dict[str, Callable[[BinaryIO, int], None]] = {
    "zero": _write_zero,
    "mixed": _write_mixed,
    "random": _write_random,
    "text": _write_text,
    "elf": _write_elf,
    "sparse": _write_sparse,
}
PATTERNS = ("text", "elf", "py-heap", "mixed", "random", "zero")


def _text(n_bytes: int) -> bytes:
    library = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            text += path.read_bytes()
        if len(text) >= n_bytes:
            break
    return bytes(text)


def _elf_files() -> Iterator[Path]:
    for folder in map(Path, _ELF_FOLDERS):
        for path in sorted(folder.rglob("*")):
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                with path.open("rb") as file:
                    is_elf = file.read(4) == b"\x7fELF"
            except OSError:
                continue
            if is_elf:
                yield path


def _repeat(file: BinaryIO, unit: bytes | bytearray, n_bytes: int) -> None:
    for _ in range(0, n_bytes, len(unit)):
        file.write(unit)


def _write_heap(file: BinaryIO, n_bytes: int, folder: Path) -> tuple[tuple[int, int], ...]:
    """Write a dumped CPython process, as often as it fits; return its ranges.

    They keep their lengths and stay apart, so that requests have as many iovecs as they had.
    """
    subprocess.run(["tar", "-xf", str(_ARCHIVE), "-C", str(folder)], check=True)
    images = ImageDirectory(str(folder / "py-heap" / "images"))
    (pid,) = images.pids
    content = bytearray()
    lengths: list[int] = []
    end = -1
    for address, part in read_pages(resolve(images, pid=pid)):
        if address != end:
            lengths.append(0)
        lengths[-1] += len(part) // PAGE_SIZE
        content += part
        end = address + len(part)
    copies = max(1, n_bytes // len(content))
    _repeat(file, content, copies * len(content))
    ranges = []
    address = BASE
    for n_pages in lengths * copies:
        ranges.append((address, n_pages))
        address += pages_to_bytes(n_pages + 1)
    return tuple(ranges)
