#!/usr/bin/env python3
"""Generate the pb packages from protos/, or check that the committed modules are current.

Usage: scripts/protos.py [--check]

The compiler is the one of grpcio-tools, pinned in pyproject.toml, so that everyone generates the
same bytes.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGES = ("helperd/images/pb", "helperd/server/pb")


def generate(output: pathlib.Path) -> list[pathlib.Path]:
    """Compile every schema into ``output``; return the generated files, relative to it."""
    from grpc_tools import protoc

    sources = sorted(str(path) for name in PACKAGES for path in (PROTOS / name).glob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{PROTOS}", f"--python_out={output}", f"--pyi_out={output}", *sources]
    )
    if status != 0:
        raise SystemExit(f"protos.py: protoc failed with status {status}")
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
