"""Fixtures of the tests with real CRIUs: which one, and what is dumped.

They run twice: on this kernel with CRIU 4.1.1 and 4.2.1, and in the virtual machine with 3.17.1,
where pre-dumps are possible. What a test starts is in memory and ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from criu.dumper import Criu
from criu.native import RELEASES
from criu.processes import adopt_orphans
from criu.redis import Redis
from criu.vm import CRIU_PROGRAM
from criu.workload import Workload

IN_VM = "HELPERD_IN_VM" in os.environ
_PROGRAMS = (
    {"3.17.1": CRIU_PROGRAM}
    if IN_VM
    else {release.version: release.program for release in RELEASES if release.is_ready()}
)

#: Marks what a third CRIU says nothing new of: the machine is emulated, and slow.
not_in_vm = pytest.mark.skipif(IN_VM, reason="tested on this kernel, with two CRIUs")

StartWorkload = Callable[..., Workload]


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave these tests out of `make test`: CRIUs are no part of the set-up."""
    return None if config.getoption("--criu") else True


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soft_dirty: needs a kernel that tracks changed pages")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "criu" in metafunc.fixturenames:
        if not _PROGRAMS:
            raise pytest.UsageError("no CRIU is set up: run make criu")
        programs = [pytest.param(path, id=version) for version, path in _PROGRAMS.items()]
        metafunc.parametrize("criu", programs, indirect=True, scope="session")
    times = metafunc.config.getoption("--times")
    if times > 1:
        # What goes wrong when two things come at once does not every time.
        metafunc.fixturenames.append("turn")
        metafunc.parametrize("turn", range(times))


@pytest.fixture(scope="session")
def criu(request: pytest.FixtureRequest) -> Criu:
    """Return a CRIU; each test runs with every one that is here."""
    adopt_orphans()
    return Criu(request.param)


@pytest.fixture(autouse=True)
def needs_soft_dirty(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("soft_dirty"):
        criu: Criu = request.getfixturevalue("criu")
        if not criu.has_soft_dirty:
            pytest.skip("this kernel does not track changed pages; the virtual machine's does")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="criu-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start_workload(folder: Path) -> Iterator[StartWorkload]:
    """Return a function that starts a workload, as class Workload does without its folder."""
    with ExitStack() as stack:

        def start(*arguments: str, processes: int = 1) -> Workload:
            return stack.enter_context(
                Workload(folder / "workload", *arguments, processes=processes)
            )

        yield start


@pytest.fixture
def redis(folder: Path) -> Iterator[Redis]:
    """Return a running, empty redis."""
    with Redis(folder / "redis") as server:
        yield server


def helperd(*words: str | Path, ok: bool = True) -> str:
    """Run a command of helperd and return what it prints; assert that it succeeds, unless not ok.

    Python's warnings would be printed, so they fail the test.
    """
    command = [sys.executable, "-m", "helperd", *map(str, words)]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    if ok:
        assert result.returncode == 0, f"helperd {words[0]}: {result.stderr}"
    else:
        assert result.returncode != 0, f"helperd {words[0]}: {result.stdout}"
    return result.stdout + result.stderr
