"""Carries out a matrix: makes the images, measures, collects the results."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bench.coldcache import measure_cold
from bench.competitors import ATTACH, CONNECT, HELPERD, Competitor, make_helper
from bench.dedup import measure_dedup
from bench.images import PagesImage, make_image
from bench.latency import Wait, measure_latencies, spawn_and_wait
from bench.matrix import Matrix
from bench.measure import measure, verified_runner, warm_memory
from bench.patterns import MIB, Memory, make_memory
from bench.programs import Programs
from bench.results import Case, PeakCase, Results
from bench.sandbox import measure_sandbox
from bench.server import Server, wait_for_pages
from bench.tools import measure_tools
from helperd.blocks import PAGE_SIZE
from helperd.modes import OFF, ON

SECTIONS = ("latency", "throughput", "cold", "peak", "dedup", "sandbox", "tools")

_REQUEST_PAGES = 64 * MIB // PAGE_SIZE
_PEAK_MODES = ("page", "256K")


class Run:
    """One run of the benchmark.

    Args:
        matrix: what to measure.
        programs: compiled.
        competitors: to measure.
        memory_folder: on a tmpfs, for what has to be in memory.
        disk_folder: on a disk, for images that are not.
        results: to be filled in.
    """

    def __init__(
        self,
        matrix: Matrix,
        programs: Programs,
        competitors: Sequence[Competitor],
        memory_folder: Path,
        disk_folder: Path,
        results: Results,
    ) -> None:
        self._matrix = matrix
        self._programs = programs
        self._competitors = competitors
        self._folder = memory_folder
        self._disk_folder = disk_folder
        self._results = results
        self._start = time.monotonic()

    def run(self, sections: Collection[str]) -> None:
        """Measure the named sections of the matrix.

        Raises:
            BenchError: something could not be measured, or was restored wrongly.
            HelperFailed: a helper failed.
        """
        warm_memory(self._matrix.warm_bytes)
        helperd = next((c for c in self._competitors if c.name == HELPERD), None)
        if "latency" in sections:
            self._measure_latencies(helperd)
        if "throughput" in sections:
            for pattern in self._matrix.patterns:
                self._measure_throughput(pattern)
        if helperd is not None and "cold" in sections:
            for pattern, mode in self._matrix.cold:
                self._measure_cold(helperd, pattern, mode)
        if helperd is not None and "peak" in sections and self._matrix.peak_bytes:
            self._measure_peaks(helperd)
        if helperd is not None and "dedup" in sections:
            for pattern, mode in self._matrix.dedup:
                self._measure_dedup(pattern, mode)
        if helperd is not None and "sandbox" in sections:
            for pattern, mode in self._matrix.sandbox:
                self._measure_sandbox(helperd, pattern, mode)
        if "tools" in sections:
            for pattern in self._matrix.tools:
                self._say(f"{pattern}, compress and decompress")
                size, rounds = self._matrix.size, self._matrix.rounds
                self._results.tools += measure_tools(
                    pattern, size, self._folder, rounds, self._programs.liblz4alone
                )

    def _measure_latencies(self, helperd: Competitor | None) -> None:
        self._say("latency")
        memory = make_memory("text", PAGE_SIZE, self._folder)
        image = make_image(memory, "page", self._folder / "pages.img")
        n_requests = self._matrix.requests

        def spawn(command: Sequence[str]) -> Wait:
            return lambda: spawn_and_wait(self._programs.latency, command, image, n_requests)

        waits = {c.name: spawn(c.command) for c in self._competitors if c.command}
        with contextlib.ExitStack() as stack:
            if helperd is not None:
                server = stack.enter_context(Server(helperd.command, self._folder))
                waits[ATTACH] = spawn(server.attach)
                waits[CONNECT] = lambda: wait_for_pages(server, image, n_requests)
            self._results.latencies = measure_latencies(waits, self._matrix.spawns)
        image.path.unlink()
        memory.source.unlink()

    def _measure_throughput(self, pattern: str) -> None:
        matrix = self._matrix
        memory = make_memory(pattern, matrix.size, self._folder)
        for mode in matrix.modes:
            image = make_image(memory, mode, self._folder / "pages.img")
            self._add_case(image, "64M", _REQUEST_PAGES)
            if (pattern, mode) in matrix.whole:
                self._add_case(image, "whole", memory.n_bytes // PAGE_SIZE)
            image.path.unlink()
        memory.source.unlink()

    def _add_case(self, image: PagesImage, request: str, max_pages: int) -> None:
        memory = image.memory
        self._say(f"{memory.name} {image.mode}, requests of {request}")
        results = measure(image, self._competitors, max_pages, self._matrix.rounds)
        case = Case(
            pattern=memory.name,
            mode=image.mode,
            request=request,
            memory_bytes=memory.n_bytes,
            payload_bytes=image.payload_bytes,
            results=results,
        )
        self._results.cases.append(case)
        self._tell(f"{name} {item.throughput.median:.2f}" for name, item in results.items())

    def _measure_cold(self, helperd: Competitor, pattern: str, mode: str) -> None:
        self._say(f"{pattern} {mode}, image on a disk")
        memory = make_memory(pattern, self._matrix.size, self._folder)
        image = make_image(memory, mode, self._disk_folder / "pages.img")
        case = measure_cold(image, helperd, _REQUEST_PAGES, self._matrix.rounds)
        self._results.cold.append(case)
        image.path.unlink()
        memory.source.unlink()

    def _measure_dedup(self, pattern: str, mode: str) -> None:
        self._say(f"{pattern} {mode}, with and without --auto-dedup")
        memory = make_memory(pattern, self._matrix.dedup_bytes, self._folder)
        image = make_image(memory, mode, self._folder / "pages.img")
        case = measure_dedup(image, self._programs.target, self._matrix.rounds)
        self._results.dedup.append(case)
        image.path.unlink()
        memory.source.unlink()

    def _measure_sandbox(self, helperd: Competitor, pattern: str, mode: str) -> None:
        self._say(f"{pattern} {mode}, confined and not")
        memory = make_memory(pattern, self._matrix.sandbox_bytes, self._folder)
        image = make_image(memory, mode, self._folder / "pages.img")
        off, on = (
            make_helper(
                f"helperd --sandbox {sandbox}",
                self._programs,
                (*helperd.command, "--sandbox", sandbox),
            )
            for sandbox in (OFF, ON)
        )
        case = measure_sandbox(
            image,
            off,
            on,
            _REQUEST_PAGES,
            starts=self._matrix.sandbox_starts,
            rounds=self._matrix.sandbox_rounds,
        )
        self._results.sandbox.append(case)
        image.path.unlink()
        memory.source.unlink()

    def _measure_peaks(self, helperd: Competitor) -> None:
        size = self._matrix.peak_bytes
        memory = make_memory("sparse", size, self._folder)
        for mode in _PEAK_MODES:
            self._say(f"{mode}, one request of {size >> 20} MiB")
            self._results.peaks.append(_measure_peak(helperd, memory, mode, self._folder))

    def _say(self, what: str) -> None:
        seconds = time.monotonic() - self._start
        print(f"bench: {seconds:5.0f} s  {what}", file=sys.stderr, flush=True)

    def _tell(self, figures: Iterable[str]) -> None:
        print(f"                GB/s: {', '.join(figures)}", file=sys.stderr, flush=True)


def _measure_peak(helperd: Competitor, memory: Memory, mode: str, folder: Path) -> PeakCase:
    image = make_image(memory, mode, folder / "pages.img")
    with verified_runner(helperd, image, memory.n_bytes // PAGE_SIZE) as runner:
        peak = runner.peak_rss_kib()
    assert peak is not None  # it is a helper
    return PeakCase(mode, memory.n_bytes, peak)
