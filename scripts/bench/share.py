"""Python's own share of the work: what a MiB takes when the C calls take nothing.

It bounds how many cores one helper can feed, since only one thread runs Python at a time.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from unittest import mock

from bench.bench import Bench
from bench.patterns import MIB
from helperd.blocks import PAGE_SIZE
from helperd.codec import decode, liblz4
from helperd.codec.block import encode_block
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.codec.decoders import Decoders
from helperd.codec.frames import PageFrame
from helperd.engine.write import write_chunk

SECTION = "share"
WHO, UNIT = "helperd", "us/MiB"
_REPEATS = 200
_SEED = 15
_WORD = 8

#: What the pages of a chunk hold, by the case's name.
_chance = random.Random(_SEED)


def _page(first: int, count: int) -> bytes:
    """Return a page of zeros but for ``count`` random bytes from byte ``first`` on, the first 1."""
    return bytes(first) + b"\1" + _chance.randbytes(count - 1) + bytes(PAGE_SIZE - first - count)


def _text(number: int) -> bytes:
    return (b"line %d of some text\n" % number * PAGE_SIZE)[:PAGE_SIZE]


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "text": _text,
    "random": lambda _: _page(0, PAGE_SIZE),
    "one in four random": lambda n: _text(n) if n % 4 else _page(0, PAGE_SIZE),
    "every other page zero": lambda n: _text(n) if n % 2 else bytes(PAGE_SIZE),
    "zero, and stored": lambda _: bytes(PAGE_SIZE),
    "first word zero, random": lambda _: _page(_WORD, PAGE_SIZE - _WORD),
    "first word zero, text": lambda n: bytes(_WORD) + _text(n)[_WORD:],
    "zero but for one byte": lambda _: _page(_chance.randrange(_WORD, PAGE_SIZE - 1), 1),
    "zero but for the last byte": lambda _: _page(PAGE_SIZE - 1, 1),
    "every other page zero, the others nearly": lambda n: (
        _page(4000, 1) if n % 2 else bytes(PAGE_SIZE)
    ),
    "every other zero but for one byte": lambda n: (
        _page(_chance.randrange(_WORD, PAGE_SIZE - 1), 1) if n % 2 else _text(n)
    ),
}


#: Pages of a block: each by itself, compressed or raw, or regions of several.
_MODES = {"raw": 0, "page": 1, "64K": 16, "1M": 256}


class _Target:
    """Takes what it is given, in no time."""

    def write(self, local: array[int], remote: array[int], n_bytes: int) -> None:
        """Take pages."""

    def zeros_to_write(self, address: int, live: bytearray) -> list[tuple[int, int]]:
        """Say that nothing is there."""
        return []


def share(bench: Bench) -> None:
    """Measure all contents in all modes."""
    bench.say("Python's share of the work")
    for content, make in CONTENTS.items():
        pages = [make(number) for number in range(CHUNK_PAGES)]
        for mode, block_pages in _MODES.items():
            seconds = measure_share(pages, block_pages, bench.scale.rounds)
            times = [value * 1e6 * MIB / (CHUNK_PAGES * PAGE_SIZE) for value in seconds]
            bench.results.add(SECTION, f"{content}, {mode}", WHO, UNIT, times)


def make_chunk(pages: list[bytes], block_pages: int) -> tuple[Chunk, bytes]:
    """Return a chunk of pages, and its payload; with blocks of 0 pages, they are stored raw."""
    per_block = block_pages or 1
    blocks = [b"".join(pages[at : at + per_block]) for at in range(0, len(pages), per_block)]
    stored = [encode_block(block) if block_pages else block for block in blocks]
    split = array("H", [per_block] * len(blocks)) if block_pages > 1 else array("H")
    sizes = array("I", map(len, stored))
    chunk = Chunk(0, 0, len(pages), sizes, split, 0, [(1 << 40, len(pages))])
    return chunk, b"".join(stored)


def measure_share(
    pages: list[bytes], block_pages: int, rounds: int, repeats: int = _REPEATS
) -> list[float]:
    """Return the seconds that Python takes for a chunk of these pages, several times."""
    chunk, payload = make_chunk(pages, block_pages)
    decoders = Decoders()
    target = _Target()

    def work() -> None:
        write_chunk(target, chunk, decoders.decode(file.fileno(), chunk))  # type: ignore[arg-type]

    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.flush()
        work()  # For real: now the buffers hold what they would.
        with _without_c_calls():
            seconds = []
            for _ in range(rounds):
                start = time.thread_time()
                for _ in range(repeats):
                    work()
                seconds.append((time.thread_time() - start) / repeats)
    return seconds


@contextlib.contextmanager
def _without_c_calls() -> Iterator[None]:
    """Replace the calls that read, scatter and decode by ones that say they have."""
    with contextlib.ExitStack() as stack:
        replace = stack.enter_context
        replace(mock.patch.object(decode, "preadv_all", lambda _fd, _iovecs, n, _offset: n))
        replace(mock.patch.object(decode, "scatter", _do_nothing))
        replace(mock.patch.object(liblz4, "decompress_safe", lambda _s, _d, _n, size: size))
        replace(mock.patch.object(PageFrame, "decompress", _say_yes))
        yield


def _do_nothing(*_: object) -> None:
    pass


def _say_yes(*_: object) -> bool:
    return True
