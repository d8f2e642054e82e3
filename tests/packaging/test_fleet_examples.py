"""The examples for schedulers: whole, and with commands that helperd understands."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from helperd import commands

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
MANIFESTS = sorted((PACKAGING / "kubernetes").glob("*.yaml"))


def understood(words: list[str]) -> None:
    """Parse a command line as helperd would; SystemExit or UsageError if it would not."""
    name, *arguments = words
    (parser,) = (parser for known, _, parser in commands.parsers() if known == name)
    parser.parse_args(arguments)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with helperd[fleet]")
    manifest = yaml.safe_load(path.read_text())
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    if manifest["kind"] == "Job":
        (script,) = container["args"]
        script = script.replace("$JOB_COMPLETION_INDEX", "7")
        words = shlex.split(script.removeprefix("exec helperd "))
        assert f"7/{manifest['spec']['completions']}" in words
        understood(words)
    else:
        understood(container["args"])


def test_slurm() -> None:
    path = PACKAGING / "slurm" / "compress.sbatch"
    subprocess.run(["sh", "-n", str(path)], check=True)
    script = path.read_text().partition("exec helperd ")[2].replace("\\\n", " ")
    values = {"$1": "/x", "$SLURM_ARRAY_TASK_ID": "0", "$SLURM_ARRAY_TASK_COUNT": "8"}
    for name, value in values.items():
        script = script.replace(name, value)
    understood(shlex.split(script))


def test_the_container_has_extras_that_there_are() -> None:
    text = (PACKAGING / "container" / "Dockerfile").read_text()
    (extras,) = re.findall(r"/src\[([a-z,]+)\]", text)
    project = (PACKAGING.parent / "pyproject.toml").read_text()
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[$", project, re.MULTILINE)
