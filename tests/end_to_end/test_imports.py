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
    script = f"import helperd.{module}, helperd.options, sys; print(*sys.modules)"
    # Without site: a package installed beside ours may have code in it that imports things.
    path = f"import sys; sys.path += {sys.path!r}; "
    command = [sys.executable, "-I", "-S", "-c", path + script]
    imported = set(subprocess.check_output(command, text=True).split())
    assert f"helperd.{module}" in imported
    assert imported.isdisjoint(unwanted), imported & unwanted
