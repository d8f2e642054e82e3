"""Real CRIUs restore on demand, from compressed images; the processes find their memory right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from criu.dumper import Criu, log_tail
from criu.errors import WorkloadError
from criu.processes import wait_for
from criu.redis import Redis
from criu.workload import Workload

from tests.criu.conftest import IN_VM, StartWorkload, helperd, not_in_vm

_MIB = 8 if IN_VM else 32
WORKLOADS = {
    "memory": (("memory", f"text={_MIB}", f"random={_MIB // 4}", "zero=8", "sparse=4"), 1),
    "tree": (("tree", str(_MIB // 4)), 4),
    "threads": (("threads", str(_MIB // 4), "4"), 1),
}
MODES: dict[str, tuple[str, ...] | None] = {
    "plain": None,
    "page": (),
    "region": ("--region", "256K"),
    "blocks": ("--schema", "blocks", "--region", "64K"),
}
CASES = [
    pytest.param(*WORKLOADS[workload], MODES[mode], id=f"{workload}-{mode}")
    for workload, mode in (
        [("tree", "region")]
        if IN_VM
        else [
            *(("memory", mode) for mode in MODES),
            *(("tree", mode) for mode in ("page", "region")),
            ("threads", "region"),
        ]
    )
]
#: So slow that whatever a test does happens while memory is still missing.
SLOWLY = ("--rate", "4M", "--around", "1")


class LazyRestore:
    """A restore that ``helperd lazy-pages`` has started; a context manager that ends helperd."""

    def __init__(self, criu: Criu, images: Path, *options: str) -> None:
        # What CRIU runs in the end says when the processes run.
        runs = images.with_name("runs")
        script = f'"$@" && : > {runs}'
        # The directory that stands for {} goes, the log stays.
        self._log = images.with_name("restore.log")
        restore = criu.restore_command(Path("{}"), "--lazy-pages", "-o", str(self._log))
        restore = ["sh", "-c", script, "sh", *restore]
        command = [sys.executable, "-m", "helperd", "lazy-pages", "-D", str(images), *options]
        self.output = ""
        self._process = subprocess.Popen(
            [*command, "--", *restore],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for(lambda: runs.exists() or self._process.poll() is not None, "the restore")
            if not runs.exists():
                status = self.wait()
                raise AssertionError(f"helperd has ended with {status}: {self.output}")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> LazyRestore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()

    def terminate(self) -> None:
        """Tell helperd to end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until all memory is there; return helperd's exit status."""
        self.output, _ = self._process.communicate(timeout=300)
        self.output += log_tail(self._log.parent)
        print(self.output)
        return self._process.returncode


@pytest.fixture
def lazily(criu: Criu, folder: Path) -> Iterator[object]:
    """Return a function that starts a restore of images on demand."""
    with ExitStack() as stack:

        def restore(*options: str) -> LazyRestore:
            return stack.enter_context(LazyRestore(criu, folder / "images", *options))

        yield restore


def dump(criu: Criu, process: Workload, folder: Path, mode: tuple[str, ...] | None) -> None:
    criu.dump(process.pid, folder / "images")
    if mode is not None:
        helperd("compress", "--in-place", *mode, folder / "images")


@pytest.mark.parametrize(("arguments", "processes", "mode"), CASES)
def test_memory_is_right(
    criu: Criu,
    folder: Path,
    start_workload: StartWorkload,
    lazily,
    arguments: tuple[str, ...],
    processes: int,
    mode: tuple[str, ...] | None,
) -> None:
    process = start_workload(*arguments, processes=processes)
    dump(criu, process, folder, mode)

    restore = lazily()
    process.check()  # at once, while the memory comes

    assert restore.wait() == 0
    process.check()


@pytest.mark.parametrize(
    "options", [pytest.param((), id="quickly", marks=not_in_vm), pytest.param(SLOWLY, id="slowly")]
)
def test_a_process_that_does_not_keep_still(
    criu: Criu, folder: Path, start_workload: StartWorkload, lazily, options: tuple[str, ...]
) -> None:
    """It forks, moves, unmaps and drops memory that has not come yet."""
    process = start_workload("memory", f"text={_MIB // 4}", f"random={_MIB // 4}")
    dump(criu, process, folder, ("--region", "64K"))

    restore = lazily(*options)
    answer = process.ask("restless 4").splitlines()

    assert answer[0] == "restless 4 children-wrong 0 pages-wrong 0"
    assert answer[1].startswith("right ")
    assert restore.wait() == 0
    process.check()


@not_in_vm
def test_a_process_that_ends_while_its_memory_comes(
    criu: Criu, folder: Path, start_workload: StartWorkload, lazily
) -> None:
    process = start_workload("tree", str(_MIB // 4), processes=4)
    dump(criu, process, folder, ())

    restore = lazily(*SLOWLY)
    last = process.pids[-1]
    process.tell("quit 0", last)

    for pid in process.pids:
        if pid != last:
            answer = process.ask("check", pid)
            assert answer.startswith("right "), answer
    process.kill()
    assert restore.wait() == 0


def test_redis_under_load(criu: Criu, folder: Path, redis: Redis, lazily) -> None:
    n_keys = 2_000 if IN_VM else 100_000
    redis.fill(n_keys)
    digest = redis.digest()
    images = folder / "images"
    criu.dump(redis.pid, images)
    helperd("compress", "--in-place", "--region", "256K", images)

    restore = lazily()
    redis.wait_until_it_listens()
    with redis.connect() as client:
        for key in range(0, n_keys, n_keys // 200):
            assert client.send("GET", f"key:{key}") == redis.value(key)
            client.send("SET", f"load:{key}", "x" * 500)

    assert restore.wait() == 0
    with redis.connect() as client:
        for key in range(0, n_keys, n_keys // 200):
            client.send("DEL", f"load:{key}")
    assert redis.digest() == digest


@not_in_vm
@pytest.mark.parametrize("mode", ["plain", "page", "region"])
def test_what_was_recorded_is_there_at_once(
    criu: Criu, folder: Path, start_workload: StartWorkload, lazily, mode: str
) -> None:
    process = start_workload("memory", "text=8", "random=2", "zero=1", "sparse=1")
    dump(criu, process, folder, MODES[mode])
    working_set, stats = folder / "set", folder / "stats.json"
    with lazily("--fill", "never", "--record", str(working_set)) as recorded:
        process.ask("random 1 300")
        recorded.terminate()
        assert recorded.wait() == 0
    process.kill()
    asked_for = [line for line in working_set.read_text().splitlines() if line[0] != "#"]
    assert len(asked_for) > 100
    (folder / "runs").unlink()

    restore = lazily("--fill", "never", "--prefetch", str(working_set), "--stats", str(stats))
    process.ask("random 1 300")
    process.check()

    restore.terminate()
    assert restore.wait() == 0
    process.check()
    # Of each line at least the page itself, unless it was asked for just before it came.
    report = json.loads(stats.read_text())
    assert report["pages_by_prefetch"] + report["faults"] >= len(asked_for)
    assert report["pages_by_prefetch"] > 0


@pytest.mark.soft_dirty
def test_a_chain(criu: Criu, folder: Path, start_workload: StartWorkload, lazily) -> None:
    process = start_workload("memory", "text=4", "random=1", "zero=1", "sparse=1")
    criu.pre_dump(process.pid, folder / "before")
    process.ask("change 1 200")
    options = ("--track-mem", "--prev-images-dir", "../before")
    criu.dump(process.pid, folder / "images", *options)
    helperd("compress", "--in-place", "--chain", folder / "images")

    restore = lazily()
    process.check()

    assert restore.wait() == 0
    process.check()


@not_in_vm
def test_a_corrupt_block_is_never_taken_for_memory(
    criu: Criu, folder: Path, start_workload: StartWorkload, lazily
) -> None:
    process = start_workload("memory", f"text={_MIB // 4}")
    dump(criu, process, folder, ())
    largest = max((folder / "images").glob("pages-*.img"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        file.write(b"\xff" * 4096)

    restore = lazily()
    with pytest.raises(WorkloadError, match="gone"):
        process.check()

    assert restore.wait() != 0


@not_in_vm
def test_a_daemon_that_is_told_to_end(
    criu: Criu, folder: Path, start_workload: StartWorkload, lazily
) -> None:
    """Whether it says no or ends, what the process sees then is not zeros."""
    process = start_workload("memory", f"text={_MIB // 4}")
    dump(criu, process, folder, ())

    restore = lazily("--fill", "never", "--around", "1")
    assert process.ask("random 1 10").startswith("read 10 ")
    restore.terminate()
    try:
        process.check()
    except WorkloadError as error:
        assert "gone" in str(error)  # noqa: PT017
