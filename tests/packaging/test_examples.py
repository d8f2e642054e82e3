"""The examples do what they say, with a helper of their own and with the server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target
from truth import differing_ranges, load_truth, map_ranges

from tests.conftest import ROOT, ImageArchive
from tests.support.image import compress, text
from tests.support.processes import DEADLINE_SECONDS
from tests.support.server import ServerProcess

EXAMPLES = ROOT / "examples"
#: Where the installed helperd is.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(params=["spawned", "attached"])
def arguments(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Return the last argument of an example: none, or a server's socket."""
    if request.param == "spawned":
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="hd-") as folder, ServerProcess(Path(folder)) as server:
        yield [str(server.path)]
        assert server.stop() == 0
        assert "has ended with" in server.log()


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, env={**os.environ, "PATH": PATH}, timeout=DEADLINE_SECONDS
    )


def test_c(tmp_path: Path, arguments: list[str]) -> None:
    program = tmp_path / "restore"
    source = str(EXAMPLES / "restore.c")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    page = text(1)
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(compress(page))
    result = run(str(program), str(pages), *arguments)
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", page)


def test_c_says_what_is_wrong(tmp_path: Path, arguments: list[str]) -> None:
    program = tmp_path / "restore"
    subprocess.run(["cc", "-o", program, str(EXAMPLES / "restore.c")], check=True)
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(b"no block at all")
    result = run(str(program), str(pages), *arguments)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Bad message" in result.stderr


def test_python(image_archive: ImageArchive, target_program: Path, arguments: list[str]) -> None:
    archive = image_archive("criu-region256k")
    truth = load_truth(archive)
    (process,) = truth.processes
    with Target(target_program) as target:
        map_ranges(target, process.ranges)
        script = str(EXAMPLES / "restore.py")
        pids = (str(process.pid), str(target.pid))
        result = run(sys.executable, script, str(truth.images), *pids, *arguments)
        assert (result.returncode, result.stderr) == (0, b"")
        assert differing_ranges(target, process.ranges) == []
