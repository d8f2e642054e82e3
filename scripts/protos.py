#!/usr/bin/env python3
"""Generate the pb packages from protos/, or check that the committed modules are current.

Usage: scripts/protos.py [--check]

The compiler is the one of grpcio-tools, pinned here so that everyone generates the same bytes, and
installed beside this interpreter's packages on first use. It is not one of them: the package would
choose the protobuf that the tests run with, and its own code does without.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGES = ("helperd/images/pb", "helperd/server/pb")
#: It generates code for protobuf 6.31.1, which runs with that version up to the next major.
COMPILER = "grpcio-tools==1.80.0"
_FOLDER = pathlib.Path(sys.prefix) / COMPILER


def generate(output: pathlib.Path) -> list[pathlib.Path]:
    """Compile every schema into ``output``; return the generated files, relative to it."""
    sources = sorted(str(path) for name in PACKAGES for path in (PROTOS / name).glob("*.proto"))
    _run(
        *("grpc_tools.protoc", f"-I{PROTOS}"),
        *(f"--python_out={output}", f"--pyi_out={output}", *sources),
    )
    return [path.relative_to(output) for path in _modules(output)]


def check(root: pathlib.Path = ROOT) -> list[str]:
    """Return one line for each committed module under ``root`` that is missing, stale or extra."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = {
            str(path): (pathlib.Path(scratch) / path).read_bytes()
            for path in generate(pathlib.Path(scratch))
        }
    committed = {str(path.relative_to(root)): path.read_bytes() for path in _modules(root)}
    return [
        f"{name}: stale or missing; run scripts/protos.py"
        for name, content in fresh.items()
        if committed.get(name) != content
    ] + [
        f"{name}: has no schema in protos/; delete it"
        for name in sorted(committed.keys() - fresh.keys())
    ]


def _run(*arguments: str) -> None:
    """Run the compiler, after installing it if need be."""
    if not _FOLDER.is_dir():
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
            installed = pathlib.Path(scratch) / "installed"
            # What pip warns of is no word of ours, unless it fails.
            done = subprocess.run(
                [sys.executable, *pip, "--target", str(installed), COMPILER],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise SystemExit(f"protos.py: cannot install {COMPILER}:\n{done.stderr}")
            installed.rename(_FOLDER)
    environment = {**os.environ, "PYTHONPATH": str(_FOLDER)}
    status = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, check=False
    ).returncode
    if status != 0:
        raise SystemExit(f"protos.py: protoc failed with status {status}")


def _modules(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for name in PACKAGES for path in (root / name).glob("*_pb2.py*"))


def main() -> int:
    """Run the script; return its exit status."""
    parser = argparse.ArgumentParser(description="Generate the pb packages from protos/.")
    parser.add_argument("--check", action="store_true", help="compare only, change nothing")
    if parser.parse_args().check:
        problems = check()
        for line in problems:
            print(line, file=sys.stderr)
        return 1 if problems else 0
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
