"""The C libraries are found wherever a wheel or a system keeps them; what is missing is told."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from _imp import extension_suffixes
from pathlib import Path

import lz4.frame
import pytest

from helperd import commands
from helperd.blocks import PAGE_SIZE
from helperd.codec import libblosc, liblz4, libraries
from helperd.commands import versions
from helperd.errors import EXIT_OK, ResourceError
from tests.images.checkpoints import Builder
from tests.support.helper import run_helper

SYMBOLS = ("LZ4_decompress_safe", "LZ4F_decompress")
REAL = Path(lz4.frame._frame.__file__)
SUFFIX = extension_suffixes()[0]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the only one in which packages are looked for."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


@pytest.fixture(scope="module")
def without_symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a shared library that exports nothing of LZ4's."""
    path = tmp_path_factory.mktemp("library") / "hidden.so"
    source = b"int nothing_of_lz4;"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], input=source, check=True
    )
    return path


def put(library: Path, path: Path) -> str:
    path.parent.mkdir(parents=True)
    path.symlink_to(library)
    return str(path)


def test_in_the_extension_module(site: Path) -> None:
    path = put(REAL, site / f"lz4/frame/_frame{SUFFIX}")
    assert libraries.lz4(SYMBOLS).name == path


def test_beside_a_module_that_hides_it(site: Path, without_symbols: Path) -> None:
    put(without_symbols, site / f"lz4/frame/_frame{SUFFIX}")
    path = put(REAL, site / "lz4.libs/liblz4-0a1b2c3d.so.1.10.0")
    assert libraries.lz4(SYMBOLS).name == path


def test_on_the_system(site: Path, without_symbols: Path) -> None:
    put(without_symbols, site / f"lz4/frame/_frame{SUFFIX}")
    assert libraries.lz4(SYMBOLS).name == libraries.LZ4_SYSTEM_NAME


def test_nowhere(site: Path, without_symbols: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(without_symbols, site / f"lz4/frame/_frame{SUFFIX}")
    monkeypatch.setattr(libraries, "LZ4_SYSTEM_NAME", "liblz4.so.no-such-version")
    with pytest.raises(ResourceError, match="install lz4 with pip, or liblz4") as caught:
        libraries.lz4(SYMBOLS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["", ".", "site"])
def test_never_from_the_current_folder(
    folder: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(REAL, site / f"lz4/frame/_frame{SUFFIX}")
    monkeypatch.chdir(site.parent if folder == "site" else site)
    monkeypatch.setattr(sys, "path", [folder])
    assert list(libraries.lz4_candidates()) == [libraries.LZ4_SYSTEM_NAME]


def test_what_setup_installs_is_in_use() -> None:
    """A library that lies on the system must not stand in for one that no wheel has any more."""
    for found, distribution in ((liblz4.in_use(), "lz4"), (libblosc.in_use(), "blosc")):
        assert found is not None, f"{distribution} is installed, but its library is not found"
        files = importlib.metadata.files(distribution)
        assert files is not None
        assert os.path.realpath(found[1]) in {os.path.realpath(str(f.locate())) for f in files}


def test_version_tells_them() -> None:
    lines = run_helper("--version", "-v").stdout.decode().splitlines()
    told = {line.partition(" ")[0]: line for line in lines}
    blosc = libblosc.in_use()
    assert blosc is not None
    assert told["liblz4"] == "liblz4 {} ({})".format(*liblz4.in_use())
    assert told["libblosc"] == "libblosc {} ({})".format(*blosc)
    assert told["protobuf"].endswith(", upb"), "protobuf in pure Python is many times slower"
    for name in ("protobuf", "python-prctl"):
        assert told[name].split()[1] == importlib.metadata.version(name)


def test_without_blosc_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", no_package)
    monkeypatch.setattr(libraries, "BLOSC_SYSTEM_NAME", "libblosc.so.no-such-version")
    assert list(libraries.blosc_candidates()) == ["libblosc.so.no-such-version"]
    assert libblosc._load() is None


def test_version_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libblosc, "_library", None)
    assert "\nlibblosc not found: " in versions.describe()


@pytest.mark.parametrize(("options", "times"), [((), 1), (("--region", "64K"), 0)])
def test_compress_says_once_what_it_does_without(
    options: tuple[str, ...],
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def checkpoint(name: str) -> str:
        Builder(tmp_path / name).add(16, b"page" * PAGE_SIZE).write()
        return str(tmp_path / name)

    fast, slow = [[checkpoint(f"{kind}-{n}") for n in range(2)] for kind in ("fast", "slow")]
    assert commands.run(["compress", "--in-place", *options, *fast]) == EXIT_OK
    assert "blosc" not in capsys.readouterr().err
    monkeypatch.setattr(libblosc, "_library", None)
    assert commands.run(["compress", "--in-place", *options, *slow]) == EXIT_OK
    assert capsys.readouterr().err.count("helperd[fast]") == times
