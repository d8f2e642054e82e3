"""What is restored is compared, by whatever means it was restored."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench.__main__ import SECTIONS
from bench.bench import QUICK, Bench
from bench.competitors import NAMES, Competitor, Sample, make_competitors
from bench.images import PagesImage, make_image
from bench.measure import measure
from bench.patterns import BASE, MIB, make_memory
from bench.programs import Programs, compile_programs
from bench.rows import SECONDS, BenchError, Results
from bench.server import Server, wait_for_pages
from bench.waiting import in_turns, spawn_and_wait
from target import Target

from helperd.blocks import PAGE_SIZE
from helperd.restorer.helper import COMMAND

SIZE = 4 * MIB


class FakeRunner:
    """Restores by filling the target's memory with one byte."""

    def __init__(self, target: Target, byte: int) -> None:
        self._target = target
        self._byte = byte
        self.restores = 0
        self.closed = False

    @property
    def pid(self) -> int:
        return self._target.pid

    def restore(self) -> Sample:
        self.restores += 1
        self._target.map_anonymous(BASE, SIZE)
        if self._byte:
            # The last byte of the memory only.
            self._target.fill(BASE + SIZE - 1, 1, self._byte)
        return Sample(wall=self.restores * 1.0, cpu=0.5)

    def drop(self) -> None:
        self._target.unmap(BASE, SIZE)

    def peak_rss_kib(self) -> int | None:
        return 7

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def zeros(tmp_path: Path) -> PagesImage:
    return make_image(make_memory("zero", SIZE, tmp_path), "page", tmp_path / "pages.img")


def competitor(runner: FakeRunner, name: str = "fake") -> Competitor:
    return Competitor(name, lambda _image, _max_pages: runner)


def test_the_first_restore_does_not_count(zeros: PagesImage, target: Target) -> None:
    runner = FakeRunner(target, 0)
    samples, peak = measure(zeros, [competitor(runner)], 1024, rounds=3)["fake"]
    assert runner.restores == 4
    assert runner.closed
    assert samples == [Sample(2.0, 0.5), Sample(3.0, 0.5), Sample(4.0, 0.5)]
    assert peak == 7


def test_one_wrong_byte_is_found(zeros: PagesImage, target: Target) -> None:
    runner = FakeRunner(target, 1)
    with pytest.raises(BenchError, match="fake restored zero wrongly"):
        measure(zeros, [competitor(runner)], 1024, rounds=1)
    assert runner.closed


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Return the compiled C programs."""
    try:
        return compile_programs(tmp_path_factory.mktemp("programs"))
    except BenchError as error:
        if "liblz4-dev" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("mode", ["raw", "page", "256K"])
@pytest.mark.parametrize("pattern", ["mixed", "text", "py-heap"])
def test_all_competitors_restore_the_same(
    pattern: str, mode: str, programs: Programs, tmp_path: Path
) -> None:
    memory = make_memory(pattern, SIZE, tmp_path)
    image = make_image(memory, mode, tmp_path / "pages.img")
    results = measure(image, list(make_competitors(programs).values()), 512, rounds=1)
    assert tuple(results) == NAMES
    assert all(sample.cpu > 0 for samples, _ in results.values() for sample in samples)


@pytest.fixture
def page(tmp_path: Path) -> PagesImage:
    """Return an image of one page."""
    return make_image(make_memory("text", PAGE_SIZE, tmp_path), "page", tmp_path / "pages.img")


def test_everybody_waits_in_turns() -> None:
    order = []

    def wait(name: str, first: float) -> list[float]:
        order.append(name)
        return [first * order.count(name), 0.1, 0.3]

    found = in_turns({"a": lambda: wait("a", 1.0), "b": lambda: wait("b", 2.0)}, turns=2)
    assert order == ["a", "b"] * 3
    # The first turn does not count.
    assert found["a"] == [[2.0, 0.1, 0.3], [3.0, 0.1, 0.3]]


def test_latency_program_checks_its_helper(
    programs: Programs, page: PagesImage, tmp_path: Path
) -> None:
    assert len(spawn_and_wait(programs.latency, COMMAND, page, 3)) == 4
    with pytest.raises(BenchError, match="/bin/false"):
        spawn_and_wait(programs.latency, ("/bin/false",), page, 3)
    page.memory.source.write_bytes(bytes(PAGE_SIZE))
    with pytest.raises(BenchError, match="not the dumped one"):
        spawn_and_wait(programs.latency, COMMAND, page, 3)


def test_a_server_is_connected_and_attached_to(
    programs: Programs, page: PagesImage, tmp_path: Path
) -> None:
    with Server(COMMAND, tmp_path) as server:
        assert len(wait_for_pages(server, page, 3)) == 4
        assert len(spawn_and_wait(programs.latency, server.attach, page, 3)) == 4
        page.memory.source.write_bytes(bytes(PAGE_SIZE))
        with pytest.raises(BenchError, match="not the dumped one"):
            wait_for_pages(server, page, 3)
        page.path.write_bytes(b"\xff" * page.payload_bytes)
        with pytest.raises(BenchError, match="has answered"):
            wait_for_pages(server, page, 3)


def test_a_server_that_ends_badly_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text(
        "import os, signal, socket, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:\n"
        "    ready.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n"
        "signal.sigwait({signal.SIGTERM})\n"
        "sys.exit(3)\n"
    )
    with (
        pytest.raises(BenchError, match="ended with 3"),
        Server((sys.executable, str(program)), tmp_path),
    ):
        pass


def test_every_section_runs(programs: Programs, tmp_path: Path) -> None:
    """At the smallest scale, with all that it would add."""
    scale = replace(QUICK, size=SIZE, rounds=1, patterns=("text",), modes=("page",), warm_bytes=0)
    bench = Bench(
        scale=scale,
        programs=programs,
        competitors=make_competitors(programs),
        helperd=COMMAND,
        criu=None,
        folder=tmp_path,
        disk_folder=tmp_path,
        pictures=None,
        results=Results({}),
    )
    for name in ("throughput", "cold", "offline"):
        SECTIONS[name](bench)
        assert bench.results.cases(name)
    assert bench.results.value("cold", "text page", "restore, cold", SECONDS)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_everybody_takes_turns(programs: Programs, tmp_path: Path) -> None:
    order: list[str] = []
    results = Results({})
    bench = Bench(QUICK, programs, {}, COMMAND, None, tmp_path, tmp_path, None, results)

    def turn(who: str) -> float:
        order.append(who)
        return float(len(order))

    seconds = bench.in_turns(
        "x", "case", {"a": lambda: turn("a"), "b": lambda: turn("b")}, rounds=2
    )
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}  # the first turns do not count
    assert results.value("x", "case", "b", SECONDS) == 5.0
