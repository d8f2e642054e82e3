"""The finder of our own modules: what it finds is what Python would, or it leaves it to Python."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import helperd

_START = """
import sys
sys.argv = ["helperd", "--version"]
FOLDER = {folder!r}
sys.path += [FOLDER]
before = set(sys.modules)
try:
    code = open(FOLDER + "/helperd/quick.py").read()
    exec(code, {{"FOLDER": FOLDER, "__name__": "helperd.quick"}})
finally:
    own = [m for n, m in sys.modules.items() if n.startswith("helperd")]
    quick = [m for m in own if type(m.__loader__).__name__ == "Loader"]
    print(len(own), len(quick), file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of helperd, compiled."""
    package = Path(helperd.__file__).parent
    shutil.copytree(package, tmp_path / "helperd", ignore=shutil.ignore_patterns("__pycache__"))
    for source in (tmp_path / "helperd").rglob("*.py"):
        py_compile.compile(str(source))
    return tmp_path


def start(folder: Path, *options: str) -> tuple[str, int, int]:
    """Return what is printed, how many of our modules there are then, and how many were found."""
    code = _START.format(folder=str(folder))
    command = [sys.executable, "-I", "-S", *options, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    own, quick = map(int, result.stderr.split())
    return result.stdout, own, quick


def test_finds_all_of_them(folder: Path) -> None:
    printed, own, quick = start(folder)
    assert printed == f"helperd {helperd.__version__}\n"
    assert own == quick > 1


def test_modules_are_as_python_makes_them(folder: Path) -> None:
    look = """
for name in ("helperd", "helperd.errors", "helperd.kernel", "helperd.kernel.signals"):
    m = sys.modules[name]
    print(m.__name__, m.__file__, m.__cached__, m.__package__, getattr(m, "__path__", None),
          m.__spec__.name, m.__spec__.origin, m.__spec__.has_location, m.__doc__)
"""
    quick = _START.format(folder=str(folder)).replace(
        "    print(len", f"    exec({look!r})\n    print(len"
    )
    plain = f"import sys; sys.path += [{str(folder)!r}]; import helperd.__main__" + look
    told = [
        subprocess.check_output(
            [sys.executable, "-I", "-S", "-c", code], text=True, stderr=subprocess.DEVNULL
        )
        for code in (quick, plain)
    ]
    assert told[0].partition("\n")[2] == told[1] or told[0].endswith(told[1])


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_source_is_seen(folder: Path, same_size: bool) -> None:
    source = folder / "helperd/__init__.py"
    new = "9.9.9" if same_size else "9.9.9.dev1"
    source.write_text(source.read_text().replace(helperd.__version__, new))
    # Whoever edits does so later than whoever has compiled.
    os.utime(source, (2_000_000_000, 2_000_000_000))
    printed, own, quick = start(folder)
    assert printed == f"helperd {new}\n"
    assert quick == own - 1


def test_what_was_never_compiled_is_python_s(folder: Path) -> None:
    shutil.rmtree(folder / "helperd/kernel/__pycache__")
    assert start(folder, "-B")[0] == f"helperd {helperd.__version__}\n"


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"x"])
def test_a_damaged_compiled_form_is_python_s(folder: Path, damage: bytes) -> None:
    (compiled,) = (folder / "helperd/__pycache__").glob("errors.*.pyc")
    compiled.write_bytes(damage)
    printed, own, quick = start(folder)
    assert (printed, quick) == (f"helperd {helperd.__version__}\n", own - 1)


def test_compiled_by_content_is_python_s(folder: Path) -> None:
    """Python decides by what it was told whether to look at the source."""
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    py_compile.compile(str(folder / "helperd/errors.py"), invalidation_mode=mode)
    _, own, quick = start(folder)
    assert quick == own - 1


def test_optimized_is_python_s(folder: Path) -> None:
    assert start(folder, "-O", "-B")[2] == 0
