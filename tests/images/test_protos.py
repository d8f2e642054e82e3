"""The generated modules are the ones that protos/ gives."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "protos.py"
PACKAGE = Path("helperd/images/pb")


@pytest.fixture(scope="module")
def protos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protos_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("protos")
def test_committed_modules_are_current() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_stale_missing_and_extra_modules_are_named(protos: ModuleType, tmp_path: Path) -> None:
    for package in protos.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    assert protos.check(tmp_path) == []
    with open(tmp_path / PACKAGE / "pagemap_pb2.py", "a") as module:
        module.write("# edited\n")
    (tmp_path / PACKAGE / "inventory_pb2.pyi").unlink()
    (tmp_path / PACKAGE / "gone_pb2.py").touch()
    assert protos.check(tmp_path) == [
        f"{PACKAGE}/inventory_pb2.pyi: stale or missing; run scripts/protos.py",
        f"{PACKAGE}/pagemap_pb2.py: stale or missing; run scripts/protos.py",
        f"{PACKAGE}/gone_pb2.py: has no schema in protos/; delete it",
    ]
