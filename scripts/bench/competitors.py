"""What is compared: helpers (helperd and the C one) and decoding without a helper."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from target import Target

from bench.images import PagesImage
from bench.programs import Programs
from bench.rows import BenchError
from helperd.blocks import pages_to_bytes
from helperd.restorer import Helper
from helperd.restorer.helper import COMMAND

DAEMON, HELPERD, ONE_THREAD, HUGE = "C helper", "helperd", "helperd 1 thread", "helperd huge"
INPROCESS, INPROCESS_HUGE = "in-process", "in-process huge"
NAMES = (DAEMON, HELPERD, ONE_THREAD, HUGE, INPROCESS, INPROCESS_HUGE)

#: Two ways to a warm server, for their latency only.
ATTACH, CONNECT = "helperd attach", "connecting to helperd serve"
#: What no program in Python can do with less.
BARE = "python3 -I -S -c pass"


@dataclass(frozen=True, slots=True)
class Sample:
    """One restore of all the memory: wall and CPU time in seconds."""

    wall: float
    cpu: float


class Runner(Protocol):
    """A competitor that is ready to restore one image, again and again."""

    @property
    def pid(self) -> int:
        """The process whose memory is restored."""

    def restore(self) -> Sample:
        """Restore everything into fresh memory."""

    def drop(self) -> None:
        """Unmap what was restored."""

    def peak_rss_kib(self) -> int | None:
        """The largest resident memory of a helper process so far; None without a helper."""

    def close(self) -> None:
        """End all processes."""


@dataclass(frozen=True)
class Competitor:
    """Something that restores memory.

    Attributes:
        name: as it appears in tables.
        start: makes a runner of an image and the most pages of a request.
        command: the command line of a helper, without its descriptors; empty without a helper.
    """

    name: str
    start: Callable[[PagesImage, int], Runner]
    command: tuple[str, ...] = ()


def make_competitors(programs: Programs, helperd: Sequence[str] = COMMAND) -> dict[str, Competitor]:
    """Return all competitors by name; ``helperd`` is the command line that starts it."""
    threads = len(os.sched_getaffinity(0))

    def helper(name: str, *command: str) -> Competitor:
        return make_helper(name, programs, command)

    def inprocess(name: str, pages: str) -> Competitor:
        def start(image: PagesImage, max_pages: int) -> Runner:
            return InprocessRunner(image, max_pages, programs.inprocess, threads, pages)

        return Competitor(name, start)

    competitors = (
        helper(DAEMON, str(programs.daemon)),
        helper(HELPERD, *helperd),
        helper(ONE_THREAD, *helperd, "--threads", "1"),
        helper(HUGE, *helperd, "--thp", "always"),
        inprocess(INPROCESS, "small"),
        inprocess(INPROCESS_HUGE, "huge"),
    )
    return {competitor.name: competitor for competitor in competitors}


def make_helper(name: str, programs: Programs, command: tuple[str, ...]) -> Competitor:
    """Return a competitor that is a helper; ``command`` starts it."""

    def start(image: PagesImage, max_pages: int) -> Runner:
        return HelperRunner(image, max_pages, programs.target, command)

    return Competitor(name, start, command)


class HelperRunner:
    """A helper, with a target of its own.

    Args:
        image: what to restore.
        max_pages: the most pages of a request.
        target_program: the compiled target.
        command: the helper's command line.
    """

    def __init__(
        self,
        image: PagesImage,
        max_pages: int,
        target_program: Path,
        command: tuple[str, ...],
    ) -> None:
        self._ranges = image.memory.ranges
        self._target = Target(target_program)
        try:
            self._requests = image.requests(self._target.pid, max_pages)
            self._helper = Helper(image.path, target=self._target.pid, command=command)
        except BaseException:
            self._target.close()
            raise

    @property
    def pid(self) -> int:
        """The target's pid."""
        return self._target.pid

    def restore(self) -> Sample:
        """Map fresh memory, then send all requests; only the latter is measured."""
        for address, n_pages in self._ranges:
            self._target.map_anonymous(address, pages_to_bytes(n_pages))
        cpu = cpu_seconds(self._helper.pid)
        start = time.perf_counter()
        for request in self._requests:
            self._helper.request(request)
        wall = time.perf_counter() - start
        return Sample(wall, cpu_seconds(self._helper.pid) - cpu)

    def drop(self) -> None:
        """Unmap the memory."""
        for address, n_pages in self._ranges:
            self._target.unmap(address, pages_to_bytes(n_pages))

    def peak_rss_kib(self) -> int | None:
        """The larger peak of the helper's processes."""
        return self._helper.peak_rss_kib()

    def close(self) -> None:
        """End the helper, which has to end well, and the target."""
        with self._target, self._helper:
            pass


class InprocessRunner:
    """The C program that decodes into its own memory.

    Args:
        image: what to restore.
        max_pages: the most pages of a request.
        program: the compiled inprocess.c.
        threads: that share a request.
        pages: "small" or "huge".
    """

    def __init__(
        self, image: PagesImage, max_pages: int, program: Path, threads: int, pages: str
    ) -> None:
        with tempfile.NamedTemporaryFile() as file:
            for request in image.requests(os.getpid(), max_pages):
                file.write(request.to_bytes())
            file.flush()
            self._process = subprocess.Popen(
                [str(program), str(image.path), file.name, str(threads), pages],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            try:
                self._ask("drop")  # when it answers, it has read the requests
            except BaseException:
                self.close()
                raise

    @property
    def pid(self) -> int:
        """The program's pid."""
        return self._process.pid

    def restore(self) -> Sample:
        """Let it map fresh memory and decode into it; only the latter is measured, by itself."""
        wall, cpu = self._ask("restore").split()
        return Sample(int(wall) / 1e9, int(cpu) / 1e9)

    def drop(self) -> None:
        """Let it unmap the memory."""
        self._ask("drop")

    def peak_rss_kib(self) -> int | None:
        """There is no helper."""
        return None

    def close(self) -> None:
        """End the program."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{command}\n".encode())
            word, _, rest = self._process.stdout.readline().decode().partition(" ")
        except BrokenPipeError:
            word, rest = "", ""
        if word.strip() != "ok":
            raise BenchError(f"the in-process program failed at {command!r}")
        return rest


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process and of its children, so far.

    From schedstat, which counts nanoseconds; the ticks of /proc/PID/stat are too coarse.
    """
    task = Path(f"/proc/{pid}/task")
    threads = [thread / "schedstat" for thread in task.iterdir()]
    nanoseconds = sum(int(thread.read_text().split()[0]) for thread in threads)
    children = (task / str(pid) / "children").read_text().split()
    return nanoseconds / 1e9 + sum(cpu_seconds(int(child)) for child in children)
