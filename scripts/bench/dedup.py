"""Restoring from a tmpfs with and without --auto-dedup: memory over time, and what it costs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from target import Target

from bench.bench import Bench
from bench.images import PagesImage
from bench.measure import verify
from bench.patterns import MIB
from bench.rows import MIB as MIB_UNIT
from bench.rows import MemorySample
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.restorer import Helper

#: As ``helperd inject --auto-dedup`` shapes requests.
REQUEST_PAGES = (16 << 20) // PAGE_SIZE
_SAMPLE_SECONDS = 0.004

PLAIN, DEDUP = "without --auto-dedup", "with --auto-dedup"
EXCESS = "peak over the larger of image and memory"


def dedup(bench: Bench) -> None:
    """Restore copies of an image on a tmpfs with and without --auto-dedup, in turns.

    One more restore of each is compared byte by byte and sampled, which is not timed.
    """
    cases = (("text", "page"), ("random", "256K"))
    size = (256 if bench.scale.quick else 1024) * MIB
    for pattern, mode in cases[:1] if bench.scale.quick else cases:
        case = f"{pattern} {mode}"
        bench.say(f"{case}, with and without --auto-dedup")
        with bench.image(pattern, mode, size) as image:
            restores = {
                PLAIN: _Restore(image, bench.programs.target, dedup=False),
                DEDUP: _Restore(image, bench.programs.target, dedup=True),
            }
            timelines = {who: restore.sampled() for who, restore in restores.items()}
            turns = {who: restore.timed for who, restore in restores.items()}
            bench.in_turns("auto-dedup", case, turns)
            larger = max(image.memory.n_bytes, image.payload_bytes)
            for who, timeline in timelines.items():
                excess = (peak_bytes(timeline) - larger) / MIB
                bench.results.add("auto-dedup", f"{case}, {EXCESS}", who, MIB_UNIT, [excess])
            if bench.pictures is not None and pattern == cases[0][0]:
                from bench.chart import draw_memory  # matplotlib is needed for nothing else

                title = f"Restoring {image.memory.n_bytes // MIB} MiB ({case}) from a tmpfs"
                draw_memory(title, larger, timelines, bench.pictures / "auto-dedup.svg")


def peak_bytes(timeline: list[MemorySample]) -> int:
    """Return the peak of image and target together."""
    return max(sample.image_bytes + sample.target_bytes for sample in timeline)


class _Restore:
    """One restore of a copy of an image, which may be consumed by it."""

    def __init__(self, image: PagesImage, target_program: Path, *, dedup: bool) -> None:
        self._image = image
        self._program = target_program
        self._dedup = dedup
        self._path = image.path.with_name("consumed.img")

    def timed(self) -> float:
        """Return the seconds from the first request to the last answer."""
        with self._prepared() as (target, helper):
            start = time.perf_counter()
            self._send_all(target, helper)
            return time.perf_counter() - start

    def sampled(self) -> list[MemorySample]:
        """Return how memory was used meanwhile, and compare what was restored."""
        with self._prepared() as (target, helper):
            rss_before = target.rss_bytes()
            samples: list[MemorySample] = []
            done = threading.Event()
            start = time.perf_counter()

            def sample() -> None:
                ended = False
                while not ended:
                    ended = done.wait(_SAMPLE_SECONDS)
                    samples.append(
                        MemorySample(
                            seconds=time.perf_counter() - start,
                            image_bytes=self._path.stat().st_blocks * 512,
                            target_bytes=target.rss_bytes() - rss_before,
                            helper_bytes=helper.rss_kib() * 1024,
                        )
                    )

            sampler = threading.Thread(target=sample)
            sampler.start()
            self._send_all(target, helper)
            done.set()
            sampler.join()
            verify(self._image.memory, target.pid, "helperd")
            return samples

    @contextmanager
    def _prepared(self) -> Iterator[tuple[Target, Helper]]:
        shutil.copyfile(self._image.path, self._path)
        with (
            Target(self._program) as target,
            Helper(self._path, target=target.pid, auto_dedup=self._dedup) as helper,
        ):
            for address, n_pages in self._image.memory.ranges:
                target.map_anonymous(address, pages_to_bytes(n_pages))
            yield target, helper
        self._path.unlink()

    def _send_all(self, target: Target, helper: Helper) -> None:
        for request in self._image.requests(target.pid, REQUEST_PAGES):
            helper.request(request)
