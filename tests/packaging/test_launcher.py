"""The executable, wherever it is installed: its own modules, quickly, and nobody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from target import Target
from truth import differing_ranges, load_truth, map_ranges

import helperd
from tests.conftest import ROOT, ImageArchive
from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, text
from tests.support.requests import ADDRESS

#: The interpreter that this environment was made with.
_BASE = str(Path(sys.executable).resolve())
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_PACKAGES = ("lz4", "lz4.libs", "blosc", "google", "prctl.py", "_prctl*", "hatchling*", "pathspec*")
_PACKAGES += ("packaging*", "pluggy*", "trove_classifiers*")
_KINDS = ["in_venv", "editable", "of_user", "of_distribution", "linked"]


def _pip(python: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
            *("--disable-pip-version-check", "--no-deps", "--no-index", *arguments),
        ],
        check=True,
        env=environment,
    )


def _into_venv(folder: Path, *what: str) -> Path:
    subprocess.run([_BASE, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    _add_packages(folder / "env/lib" / _VERSION / "site-packages")
    _pip(str(folder / "env/bin/python"), *what)
    return folder / "env/bin/helperd"


def _add_packages(folder: Path) -> None:
    """Add what helperd needs, from where the tests have it."""
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for pattern in _PACKAGES:
            for found in Path(place).glob(pattern):
                if not (folder / found.name).exists():
                    (folder / found.name).symlink_to(found)


@pytest.fixture(scope="module")
def in_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _into_venv(tmp_path_factory.mktemp("venv"), str(wheel))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("editable")
    return _into_venv(folder, "--no-build-isolation", "--editable", str(ROOT))


@pytest.fixture(scope="module")
def of_user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "PYTHONUSERBASE": str(home / ".local")}
    _pip(_BASE, "--user", "--break-system-packages", str(wheel), environment=environment)
    _add_packages(home / ".local/lib" / _VERSION / "site-packages")
    return home / ".local/bin/helperd"


@pytest.fixture(scope="module")
def of_distribution(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as Debian does it."""
    root = tmp_path_factory.mktemp("root") / "usr"
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(unpacked)
    packages = root / "lib/python3/dist-packages"
    packages.mkdir(parents=True)
    (unpacked / "helperd").rename(packages / "helperd")
    _add_packages(packages)
    (scripts,) = unpacked.glob("*.data/scripts")
    scripts.rename(root / "bin")
    program = root / "bin/helperd-python"
    program.write_text(program.read_text().replace("#!python", f"#!{_BASE}", 1))
    for script in root.glob("bin/*"):
        script.chmod(0o755)
    return root / "bin/helperd"


@pytest.fixture(scope="module")
def linked(in_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pipx does it."""
    link = tmp_path_factory.mktemp("links") / "helperd"
    link.symlink_to(in_venv)
    return link


@pytest.fixture(scope="module")
def of_another_installer(in_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that starts interpreters in a way of its own, as several do for very long paths."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "bin").mkdir()
    (folder / "lib").symlink_to(in_venv.parent.parent / "lib")
    shutil.copy(in_venv, folder / "bin")
    first, _, rest = in_venv.with_name("helperd-python").read_text().partition("\n")
    program = folder / "bin/helperd-python"
    program.write_text(f"#!/bin/sh\n'''exec' {first[2:]} \"$0\" \"$@\"\n' '''\n{rest}")
    program.chmod(0o755)
    return folder / "bin/helperd"


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a command line that runs another where all that could be taken over is in wait.

    Called at the end again, it fails if anything was.
    """
    trap, caught = tmp_path / "trap", tmp_path / "caught"
    trap.mkdir()
    code = f"open({str(caught)!r}, 'a').write(__name__ + '\\n')\n"
    for name in ("os", "site", "sitecustomize", "usercustomize", "errno", "ctypes", "array"):
        (trap / f"{name}.py").write_text(code)
    for name in ("helperd", "lz4", "google", "encodings"):
        (trap / name).mkdir()
        (trap / name / "__init__.py").write_text(code)
    variables = {"PYTHONPATH": trap, "PYTHONSTARTUP": trap / "os.py", "PYTHONUSERBASE": trap}
    variables["PYTHONHOME"] = trap

    def command() -> list[str]:
        assert not caught.exists(), caught.read_text()
        return ["env", "-C", str(trap), *(f"{name}={value}" for name, value in variables.items())]

    return command


@pytest.mark.parametrize("kind", _KINDS)
def test_starts(
    kind: str,
    hostile: Callable[[], list[str]],
    target: Target,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    launcher: Path = request.getfixturevalue(kind)
    image = BlockImage()
    image.add_lz4(text(1))
    pages = image.write(tmp_path / "pages-1.img")
    target.map_anonymous(ADDRESS, len(image.memory))
    command = (*hostile(), str(launcher))
    with HelperProcess(pages, f"--target={target.pid}", command=command) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        arguments = Path(f"/proc/{helper.pid}/cmdline").read_bytes().split(b"\0")
        assert arguments[1:3] == [b"-I", b"-S"]
        helper.close_request_pipe()
        helper.finish()
    assert target.read(ADDRESS, len(image.memory)) == image.memory
    hostile()


@pytest.mark.parametrize("kind", _KINDS)
def test_commands(
    kind: str,
    hostile: Callable[[], list[str]],
    image_archive: ImageArchive,
    target: Target,
    request: pytest.FixtureRequest,
) -> None:
    """They find protobuf and all else, and so does a helper that they spawn."""
    launcher: Path = request.getfixturevalue(kind)
    archive = image_archive("py-heap")
    truth = load_truth(archive)
    (process,) = truth.processes
    map_ranges(target, process.ranges)
    words = ["inject", str(truth.images), "--pid", str(target.pid)]
    words += ["--image-pid", str(process.pid)]
    for arguments in (["--help"], ["--version", "-v"], ["check", str(truth.images)], words):
        command = [*hostile(), str(launcher), *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert differing_ranges(target, process.ranges) == []
    hostile()


def test_installer_that_writes_another_first_line(of_another_installer: Path) -> None:
    """It starts all the same, isolated, if later."""
    result = subprocess.run([of_another_installer, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"helperd {helperd.__version__}\n")
