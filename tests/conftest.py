"""Fixtures of all tests: recorded checkpoints, and a process to restore them into."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"

# target.py and truth.py are shared with the demo.
sys.path.insert(0, str(ROOT / "scripts"))

from target import Target, compile_target  # noqa: E402

# Other processes may take any share of the machine: how long an example takes says nothing.
hypothesis.settings.register_profile("helperd", hypothesis.settings(), deadline=None)
# `make mutants` asks only whether anything fails, not what the smallest example is.
hypothesis.settings.register_profile(
    "mutants",
    hypothesis.settings(),
    deadline=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile("mutants" if "HELPERD_MUTANTS" in os.environ else "helperd")

#: Folders that are archived together with others, which have much in common.
TOGETHER = {
    "borders-hugetlb": "borders",
    "merged-perpage": "merged",
    "merged-block256k": "merged",
}

ImageArchive = Callable[[str], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--criu", action="store_true", help="run tests/criu, with the CRIUs of make criu"
    )
    parser.addoption(
        "--times", type=int, default=1, metavar="N", help="run each test of tests/criu N times"
    )


@pytest.fixture(scope="session")
def image_archive(tmp_path_factory: pytest.TempPathFactory) -> ImageArchive:
    """Return a function: the folder of a named archive of tests/data, unpacked on first use.

    All tests share it: copy what you change.
    """
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in unpacked:
            folder = tmp_path_factory.mktemp("archives")
            archive = DATA / f"{TOGETHER.get(name, name)}.tar.xz"
            subprocess.run(["tar", "-xf", str(archive), "-C", str(folder), name], check=True)
            unpacked[name] = folder / name
        return unpacked[name]

    return unpack


@pytest.fixture(scope="session")
def target_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled target.c."""
    return compile_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def target(target_program: Path) -> Iterator[Target]:
    """Return a running process without any mappings of its own to restore into."""
    with Target(target_program) as process:
        yield process
