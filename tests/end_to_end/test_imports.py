"""A restore waits for the start of a helper: what it imports stays small."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Needed for offline commands and the server, or for rare options only.
_NEVER = {"argparse", "enum", "google", "json", "logging", "socket", "typing"}
_NEVER |= {"functools", "queue", "threading"}
_OFFLINE = {"helperd.commands", "helperd.images", "helperd.restorer"}
#: All of the server but its client.
_SERVER = {"helperd.server.listener", "helperd.server.session", "helperd.server.pb"}
#: What a worker needs besides, which a client of the server is not.
_WORK = {"ctypes", "helperd.engine", "helperd.kernel.syscalls", "lz4", "prctl"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("helper.direct", _NEVER | _OFFLINE | {"helperd.server"}),
        ("server.attach", _NEVER | _OFFLINE | _SERVER | _WORK),
    ],
)
def test_imports_nothing_it_can_do_without(module: str, unwanted: set[str]) -> None:
    found = imported_by(f"helperd.{module}", "helperd.options")
    assert f"helperd.{module}" in found
    if "ctypes" in found:
        # From Python 3.14 on ctypes itself imports sysconfig, and that threading.
        found -= imported_by("ctypes")
    assert found.isdisjoint(unwanted), found & unwanted


def imported_by(*modules: str) -> set[str]:
    """Return all modules that there are once some have been imported."""
    script = f"import sys; sys.path += {sys.path!r}; import {', '.join(modules)}"
    # Without site: a package installed beside ours may have code in it that imports things.
    command = [sys.executable, "-I", "-S", "-c", f"{script}; print(*sys.modules)"]
    return set(subprocess.check_output(command, text=True).split())
