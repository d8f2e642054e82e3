"""A restore waits for the start of a helper: what it imports stays small.

Modules are counted, not time: a module costs about as much as any other, and time is the machine's.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from helperd import quick

#: Needed for offline commands and the server, or for rare options only.
_NEVER = {"argparse", "enum", "google", "json", "logging", "socket", "typing"}
_NEVER |= {"functools", "queue", "threading", "collections", "ctypes", "lz4", "prctl", "struct"}
_NEVER |= {"operator", "bisect", "os", "stat", "_collections_abc", "resource", "fcntl"}
_OFFLINE = {"helperd.commands", "helperd.images", "helperd.restorer"}
#: All of the server but its client.
_SERVER = {"helperd.server.listener", "helperd.server.session", "helperd.server.pb"}
#: What a worker needs, which a client of the server does not.
_WORK = {"helperd.engine", "helperd.codec", "helperd.kernel.syscalls", "_ctypes", "mmap", "_queue"}
#: Until the worker is forked, and what its parent needs besides.
_DIRECT = ["helperd.options", "helperd.helper.direct"]
_PARENT = ["helperd.targets.permissions", "helperd.reports.end"]
_CLIENT = ["helperd.options", "helperd.server.attach"]

#: From Python 3.14 on the extension module that ctypes consists of imports ctypes itself, and that
#: imports some more.
_NEW = sys.version_info >= (3, 14)
_BY_PYTHON = (
    {"ctypes", "struct", "threading"} | {"os", "stat", "_collections_abc"} if _NEW else set()
)
_MORE_BY_PYTHON = 24 if _NEW else 0

_SCRIPT = """
import sys
before = set(sys.modules)
sys.path += {path!r}
from helperd import quick
if {array}:
    quick.import_array()
import helperd.__main__
for name in {modules!r}:
    __import__(name)
print(*(set(sys.modules) - before - {{"helperd.quick"}}))
"""

_PARSES = """
from helperd import commands
parser = commands._Parser(prog="helperd")
sys.modules["helperd.commands.lazy_pages"].add_parser(parser.add_subparsers(prog="helperd"))
parser.parse_args(["lazy-pages", "-D", "."])
"""

_LOADED = """
import os, sys
sys.path += {path!r}
from helperd import quick
folder = os.path.dirname(os.path.dirname(quick.__file__))
for name in [name for name in sys.modules if name.startswith("helperd")]:
    del sys.modules[name]
found = []
class Finder(quick.Finder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("helperd"):
            found.append(name)
finder = Finder(folder)
sys.meta_path.insert(0, finder)
def own():
    return sorted(name for name in sys.modules if name.startswith("helperd"))
finder.load(["", *quick.FIRST.split(), *{listed!r}.split()])
print(*own())
for name in {modules!r}:
    __import__(name)
print(*own())
print(found)
"""


@pytest.mark.parametrize(
    ("modules", "most", "unwanted"),
    [
        (_DIRECT, 75, _NEVER | _OFFLINE | {"helperd.server"}),
        (_DIRECT + _PARENT, 75, _NEVER | _OFFLINE | {"helperd.server"}),
        (
            _CLIENT,
            31,
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


@pytest.mark.parametrize(
    ("modules", "listed"),
    [(_DIRECT + _PARENT, quick.HELPER), (_CLIENT, quick.CLIENT)],
    ids=["helper", "attach"],
)
def test_all_that_is_imported_is_loaded_at_once(modules: list[str], listed: str) -> None:
    """And no more; each when all are there that it needs."""
    script = _LOADED.format(path=sys.path, modules=modules, listed=listed)
    command = [sys.executable, "-I", "-S", "-B", "-c", script]
    loaded, imported, found = subprocess.check_output(command, text=True).splitlines()
    assert set(loaded.split()) == set(imported.split())
    assert found == "[]"


def test_a_restore_on_demand_waits_for_no_library_that_it_can_do_without() -> None:
    """Until it runs the restore, all options being there."""
    modules = ["helperd.commands.lazy_pages", "helperd.lazy_pages.service"]
    script = _SCRIPT.format(path=sys.path, modules=modules, array=False)
    script = script.replace("print(", _PARSES + "print(")
    command = [sys.executable, "-I", "-S", "-c", script]
    imported = set(subprocess.check_output(command, text=True).split())
    assert imported.issuperset(modules)
    assert imported.isdisjoint({"google", "lz4", "shutil", "socket", "typing"} - _BY_PYTHON)
