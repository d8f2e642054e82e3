"""What all sections share: the scale of a run, what was compiled, who competes, where to work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.images import PagesImage, make_image
from bench.measure import warm_memory
from bench.patterns import MIB, PATTERNS, make_memory
from bench.rows import SECONDS, Results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.competitors import Competitor
    from bench.programs import Programs


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        size: bytes of memory that are restored.
        rounds: measurements that count, of each competitor in each case.
        patterns: what the memory holds.
        modes: how the images are compressed.
        warm_bytes: of the machine's memory that are touched before everything else.
        quick: whether sections should leave out what takes long.
    """

    size: int
    rounds: int
    patterns: tuple[str, ...]
    modes: tuple[str, ...]
    warm_bytes: int
    quick: bool


FULL = Scale(512 * MIB, 5, PATTERNS, ("raw", "page", "64K", "256K", "1M"), 12288 * MIB, quick=False)
QUICK = Scale(128 * MIB, 3, ("text", "elf"), ("page", "256K"), 3072 * MIB, quick=True)


@dataclass
class Bench:
    """A run of the benchmark.

    Attributes:
        scale: how much is measured.
        programs: the compiled C programs.
        competitors: by name, in the order of their turns.
        helperd: the command line that starts helperd.
        criu: the path of a real CRIU; None without.
        folder: on a tmpfs.
        disk_folder: on a disk, for what must not be in memory.
        pictures: where to draw to; None not to.
        results: to be filled in.
    """

    scale: Scale
    programs: Programs
    competitors: dict[str, Competitor]
    helperd: tuple[str, ...]
    criu: Path | None
    folder: Path
    disk_folder: Path
    pictures: Path | None
    results: Results
    _start: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """Tell on stderr what is being done."""
        seconds = time.monotonic() - self._start
        print(f"bench: {seconds:5.0f} s  {what}", file=sys.stderr, flush=True)

    @contextmanager
    def image(
        self, pattern: str, mode: str, size: int, *, on_disk: bool = False
    ) -> Iterator[PagesImage]:
        """Make memory of ``size`` bytes and an image of it, for the block."""
        memory = make_memory(pattern, size, self.folder)
        folder = self.disk_folder if on_disk else self.folder
        image = make_image(memory, mode, folder / f"{pattern}-{mode}.img")
        try:
            yield image
        finally:
            image.path.unlink()
            memory.source.unlink()

    def in_turns(
        self,
        section: str,
        case: str,
        turns: Mapping[str, Callable[[], float]],
        *,
        rounds: int = 0,
        warm: int = 0,
    ) -> dict[str, list[float]]:
        """Let everybody run in turns, A B C A B C ..., and add what they took in seconds.

        Args:
            section: of the rows that are added.
            case: of those rows.
            turns: by who does it; each runs once and returns the seconds that count.
            rounds: that count, after one that does not; 0 = as the scale has it.
            warm: bytes of memory to be touched before each turn.

        Returns:
            The seconds, by who took them.
        """
        seconds: dict[str, list[float]] = {who: [] for who in turns}
        for turn in range((rounds or self.scale.rounds) + 1):
            for who, run in turns.items():
                if warm:
                    warm_memory(warm)
                elapsed = run()
                if turn:
                    seconds[who].append(elapsed)
        for who, values in seconds.items():
            self.results.add(section, case, who, SECONDS, values)
        return seconds


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return ``work`` as something that returns the seconds it took."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


#: A part of the benchmark: adds its rows.
Section = Callable[[Bench], None]


def ratios(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """Return how many times its neighbour in ``references`` each value is."""
    return [value / reference for value, reference in zip(values, references, strict=True)]
