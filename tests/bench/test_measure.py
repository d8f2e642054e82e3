"""What is restored is compared, by whatever means it was restored."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.competitors import NAMES, Competitor, Sample, make_competitors
from bench.errors import BenchError
from bench.images import PagesImage, make_image
from bench.latency import measure_latencies
from bench.measure import measure
from bench.patterns import BASE, MIB, make_memory
from bench.programs import Programs, compile_programs
from target import Target

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


def competitor(runner: FakeRunner) -> Competitor:
    return Competitor("fake", lambda _image, _max_pages: runner)


def test_the_first_restore_does_not_count(zeros: PagesImage, target: Target) -> None:
    runner = FakeRunner(target, 0)
    result = measure(zeros, [competitor(runner)], 1024, rounds=3)["fake"]
    assert runner.restores == 4
    assert runner.closed
    # Walls of 2, 3 and 4 seconds.
    assert result.throughput.median == pytest.approx(SIZE / 1e9 / 3)
    assert result.cpu.median == pytest.approx(0.5 / (SIZE / 1e9))
    assert result.peak_rss_kib == 7


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
    assert all(result.cpu.median > 0 for result in results.values())


def test_latency_program_checks_its_helper(programs: Programs, tmp_path: Path) -> None:
    helper = make_competitors(programs)["helperd"]
    found = measure_latencies(programs.latency, [helper], tmp_path, spawns=1, requests=3)
    assert found["helperd"].first.n == 1
    assert found["helperd"].warm.n == 3
    broken = Competitor("broken", helper.start, ("/bin/false",))
    with pytest.raises(BenchError, match="broken"):
        measure_latencies(programs.latency, [broken], tmp_path, spawns=1, requests=3)
