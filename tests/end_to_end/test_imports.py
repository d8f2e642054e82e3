"""A restore waits for the start of a helper: what it imports stays small.

Modules are counted, not time: a module costs about as much as any other, and time is the machine's.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Needed for offline commands and the server, or for rare options only.
_NEVER = {"argparse", "enum", "google", "json", "logging", "socket", "typing"}
_NEVER |= {"functools", "queue", "threading", "collections", "ctypes", "lz4", "prctl", "struct"}
_NEVER |= {"operator", "bisect"}
_OFFLINE = {"helperd.commands", "helperd.images", "helperd.restorer"}
#: All of the server but its client.
_SERVER = {"helperd.server.listener", "helperd.server.session", "helperd.server.pb"}
#: What a worker needs, which a client of the server does not.
_WORK = {"helperd.engine", "helperd.codec", "helperd.kernel.syscalls", "_ctypes", "mmap", "_queue"}
#: Until the worker is forked, and what its parent needs besides.
_DIRECT = ["helperd.options", "helperd.helper.direct"]
_PARENT = ["helperd.targets.permissions", "helperd.reports.end"]

#: From Python 3.14 on the extension module that ctypes consists of imports ctypes itself, and that
#: imports some more.
_NEW = sys.version_info >= (3, 14)
_BY_PYTHON = {"ctypes", "struct", "threading"} if _NEW else set()
_MORE_BY_PYTHON = 15 if _NEW else 0

_SCRIPT = """
import sys
before = set(sys.modules)
sys.path += {path!r}
import helperd.__main__
if {array}:
    helperd.__main__._import_array()
for name in {modules!r}:
    __import__(name)
print(*(set(sys.modules) - before))
"""


@pytest.mark.parametrize(
    ("modules", "most", "unwanted"),
    [
        (_DIRECT, 82, _NEVER | _OFFLINE | {"helperd.server"}),
        (_DIRECT + _PARENT, 83, _NEVER | _OFFLINE | {"helperd.server"}),
        (
            ["helperd.options", "helperd.server.attach"],
            35,
            _NEVER | _OFFLINE | _SERVER | _WORK,
        ),
    ],
    ids=["helper", "parent", "attach"],
)
def test_imports_nothing_it_can_do_without(
    modules: list[str], most: int, unwanted: set[str]
) -> None:
    # Without site: a package installed beside ours may have code in it that imports things.
    script = _SCRIPT.format(path=sys.path, modules=modules, array="attach" not in modules[-1])
    command = [sys.executable, "-I", "-S", "-c", script]
    imported = set(subprocess.check_output(command, text=True).split())
    assert imported.issuperset(modules)
    unwanted = unwanted - _BY_PYTHON
    assert imported.isdisjoint(unwanted), imported & unwanted
    assert len(imported) <= most + _MORE_BY_PYTHON, sorted(imported)
