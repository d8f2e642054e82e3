"""Runs competitors in turns on one image, and checks what they restore."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence

from bench.competitors import Competitor, Runner, Sample
from bench.images import PagesImage
from bench.patterns import Memory
from bench.rows import BenchError
from helperd.blocks import pages_to_bytes

_COMPARE_BYTES = 4 << 20


def measure(
    image: PagesImage, competitors: Sequence[Competitor], max_pages: int, rounds: int
) -> dict[str, tuple[list[Sample], int | None]]:
    """Let all competitors restore ``image`` in turns: A B C A B C ...

    The first restore of each warms it up and is compared byte by byte; it does not count. Before
    the others as much memory is warmed as they may need, a buffer for all of it included.

    Args:
        image: to restore.
        competitors: in the order of their turns.
        max_pages: most pages of a request.
        rounds: how many restores of each count.

    Returns:
        For each its samples, and the largest resident memory of its helper in KiB, or None.

    Raises:
        BenchError: what was restored is not what it should be.
    """
    samples: dict[str, list[Sample]] = {competitor.name: [] for competitor in competitors}
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for competitor in competitors:
            runners[competitor.name] = stack.enter_context(
                verified_runner(competitor, image, max_pages)
            )
        for _ in range(rounds):
            for name, runner in runners.items():
                warm_memory(2 * image.memory.n_bytes)
                samples[name].append(runner.restore())
                runner.drop()
        return {name: (samples[name], runner.peak_rss_kib()) for name, runner in runners.items()}


@contextlib.contextmanager
def verified_runner(competitor: Competitor, image: PagesImage, max_pages: int) -> Iterator[Runner]:
    """Start a competitor; let it restore everything once and compare that with the source.

    Raises:
        BenchError: a byte differs.
    """
    runner = competitor.start(image, max_pages)
    try:
        runner.restore()
        verify(image.memory, runner.pid, competitor.name)
        runner.drop()
        yield runner
    finally:
        runner.close()


def warm_memory(n_bytes: int) -> None:
    """Touch memory and give it back: on a virtual machine the first touch is the host's work.

    Free huge pages may be given back to the host after two seconds (free page reporting), which
    makes the next touch several times slower; so this belongs right before what is measured.

    In huge pages, as memory that is collapsed comes from other places than small pages do.
    """
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, min(n_bytes, available * 3 // 4), flags=flags) as memory:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1


def verify(memory: Memory, pid: int, name: str) -> None:
    """Compare what a process holds with the source of ``memory``.

    Raises:
        BenchError: a byte differs; says where.
    """
    with (
        memory.source.open("rb") as source,
        open(f"/proc/{pid}/mem", "rb", buffering=0) as restored,
    ):
        for address, n_pages in memory.ranges:
            end = address + pages_to_bytes(n_pages)
            for start in range(address, end, _COMPARE_BYTES):
                n_bytes = min(_COMPARE_BYTES, end - start)
                if os.pread(restored.fileno(), n_bytes, start) != source.read(n_bytes):
                    raise BenchError(
                        f"{name} restored {memory.name} wrongly: the {n_bytes} bytes at"
                        f" {start:#x} are not those before byte {source.tell()} of the source"
                    )
