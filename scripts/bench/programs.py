"""Compiles the C programs of the benchmark."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from target import TargetError, compile_target

from bench.rows import BenchError

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


@dataclass(frozen=True)
class Programs:
    """Paths of the compiled programs."""

    target: Path
    daemon: Path
    inprocess: Path
    latency: Path
    life: Path
    liblz4alone: Path


def compile_programs(folder: Path) -> Programs:
    """Compile everything into ``folder``.

    Raises:
        BenchError: there is no compiler or no liblz4 to compile against.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        target = compile_target(folder)
    except TargetError as error:
        raise BenchError(str(error)) from error
    return Programs(
        target=target,
        daemon=_compile("daemon", folder, "-llz4"),
        inprocess=_compile("inprocess", folder, "-llz4", "-pthread"),
        latency=_compile("latency", folder),
        life=_compile("life", folder),
        liblz4alone=_compile("liblz4alone", folder, "-llz4", "-pthread"),
    )


def compiler_version() -> str:
    """Return the first line that the compiler says about itself."""
    command = [os.environ.get("CC", "cc"), "--version"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]


def _compile(name: str, folder: Path, *libraries: str) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BenchError("no C compiler found: install gcc, or set CC to a compiler")
    source, program = _SOURCES / f"{name}.c", folder / name
    command = [compiler, *_FLAGS, "-o", str(program), str(source), *libraries]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        if "lz4" in result.stderr:
            raise BenchError(
                "the C programs need liblz4 to compile: apt-get install liblz4-dev, or what holds"
                f" lz4.h on this system ({result.stderr.splitlines()[0]})"
            )
        raise BenchError(f"cannot compile {source}: {result.stderr.strip()}")
    return program
