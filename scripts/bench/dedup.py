"""Restoring from a tmpfs with and without --auto-dedup: memory over time, and what it costs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from target import Target

from bench.images import PagesImage
from bench.measure import verify
from bench.results import DedupCase, MemorySample
from bench.stats import summarize
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.restorer import Helper

#: As ``helperd inject --auto-dedup`` shapes requests.
REQUEST_PAGES = (16 << 20) // PAGE_SIZE
_SAMPLE_SECONDS = 0.004


def measure_dedup(image: PagesImage, target_program: Path, rounds: int) -> DedupCase:
    """Restore copies of ``image`` with and without --auto-dedup, in turns.

    The first restore of each is compared byte by byte and sampled; it does not count.

    Args:
        image: on a tmpfs.
        target_program: the compiled target.
        rounds: restores of each that count.

    Raises:
        BenchError: what was restored is not what it should be.
    """
    timelines = [_Restore(image, target_program, dedup).sampled() for dedup in (False, True)]
    speeds: dict[bool, list[float]] = {False: [], True: []}
    gigabytes = image.memory.n_bytes / 1e9
    for _ in range(rounds):
        for dedup, found in speeds.items():
            found.append(gigabytes / _Restore(image, target_program, dedup).timed())
    return DedupCase(
        pattern=image.memory.name,
        mode=image.mode,
        memory_bytes=image.memory.n_bytes,
        payload_bytes=image.payload_bytes,
        plain=summarize(speeds[False]),
        dedup=summarize(speeds[True]),
        plain_timeline=timelines[0],
        dedup_timeline=timelines[1],
    )


class _Restore:
    """One restore of a copy of an image, which may be consumed by it."""

    def __init__(self, image: PagesImage, target_program: Path, dedup: bool) -> None:
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
