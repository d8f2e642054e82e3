"""CRIUs that run on this kernel: those of Debian's newer suites."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from criu.debian import is_made, loader, made_once, unpack
from criu.errors import SetupError

CHECKOUT = Path(__file__).resolve().parents[2]
#: Where everything is kept; git ignores it. Several checkouts can share a folder.
CACHE = Path(os.environ.get("CRIU_CACHE") or CHECKOUT / ".criu")


@dataclass(frozen=True)
class Release:
    """A CRIU of a Debian suite.

    Attributes:
        suite: the name of the suite.
        version: of CRIU, as it was when this was written; the suite may have gone on.
    """

    suite: str
    version: str

    @property
    def program(self) -> Path:
        """Return what starts it."""
        return CACHE / self.suite / "criu"

    def is_ready(self) -> bool:
        """Say whether it was set up."""
        return is_made(CACHE / self.suite)

    def set_up(self) -> None:
        """Download and unpack it, unless that was done.

        Raises:
            SetupError: it cannot be had, or does not start.
        """
        if made_once(CACHE / self.suite, f"criu of {self.suite}, 2", self._make):
            print(f"criu: {self.program} is {version_of(self.program)}", flush=True)

    def _make(self, folder: Path) -> None:
        print(f"criu: unpacking criu of Debian {self.suite}", flush=True)
        root = folder / "root"
        unpack(self.suite, ["criu"], root)
        program = folder / "criu"
        write_launcher(program, root, "usr/sbin/criu")
        version = version_of(program)
        if version != self.version:
            print(f"criu: Debian {self.suite} has {version} now, not {self.version}", flush=True)


RELEASES = (Release("trixie", "4.1.1"), Release("forky", "4.2.1"))


def write_launcher(path: Path, root: Path, name: str) -> None:
    """Write a script that runs a program of an unpacked root.

    It holds absolute paths: the folder must not be moved.
    """
    words = " ".join(f"'{word}'" for word in (*loader(root), str(root / name)))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)


def version_of(program: Path) -> str:
    """Return the version that a CRIU says it has, such as ``4.2.1``.

    Raises:
        SetupError: it does not start.
    """
    result = subprocess.run(
        [str(program), "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    for line in result.stdout.splitlines():
        name, _, version = line.partition(":")
        if name == "Version":
            return version.strip()
    raise SetupError(f"{program} does not start: {result.stderr.strip() or result.returncode}")
