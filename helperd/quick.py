"""Starts helperd with a finder of its own modules that need not search.

For each module Python's own import looks into folders, tries suffixes and takes paths apart; that
was a third of a helper's start. Here it is known where a module lies, and its compiled form is
taken, if it is that of the source as it is now. All else is left to Python: a source that has
changed or was never compiled, other kinds of compiled forms, other packages.

Executed, rather than imported, by what starts helperd, with ``FOLDER`` set to where helperd lies.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader
from marshal import loads
from posix import O_CLOEXEC, O_RDONLY, close, open, read, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

#: A compiled form: magic number, what kind it is (0: of a source of that time and size), time and
#: size as 32-bit numbers, code. Source: PEP 552.
_PREFIX = MAGIC_NUMBER + bytes(4)
_TIME, _SIZE, _CODE = 8, 12, 16
_MASK = 0xFFFFFFFF
#: More than any module of ours has; a longer one is Python's.
_MOST_BYTES = 1 << 16


class Loader(SourceFileLoader):
    """A loader that has its module's code already."""

    code: CodeType | None = None

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code."""
        return self.code or super().get_code(fullname)


class Finder:
    """Finds modules of helperd's.

    Args:
        folder: where the package is.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._ending = f".{sys.implementation.cache_tag}.pyc"

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Return how to import a module; None to let others find it."""
        if not name.startswith("helperd"):
            return None
        base = f"{self._folder}/{name.replace('.', '/')}"
        parent, _, last = base.rpartition("/")
        return self._spec(name, parent, last, None) or self._spec(name, base, "__init__", base)

    def _spec(self, name: str, folder: str, stem: str, package: str | None) -> ModuleSpec | None:
        source, cached = f"{folder}/{stem}.py", f"{folder}/__pycache__/{stem}{self._ending}"
        try:
            fd = open(cached, O_RDONLY | O_CLOEXEC)
            compiled = read(fd, _MOST_BYTES)
            close(fd)
            status = stat(source)
        except OSError:
            return None
        stamp = (int(status.st_mtime) & _MASK).to_bytes(4, "little")
        stamp += (status.st_size & _MASK).to_bytes(4, "little")
        if compiled[:_CODE] != _PREFIX + stamp or len(compiled) == _MOST_BYTES:
            return None
        loader = Loader(name, source)
        loader.code = loads(memoryview(compiled)[_CODE:])
        spec = ModuleSpec(name, loader, origin=source, is_package=package is not None)
        if package is not None:
            spec.submodule_search_locations = [package]
        spec.has_location = True
        spec.cached = cached
        return spec


if not sys.flags.optimize and sys.pycache_prefix is None:
    sys.meta_path.insert(0, Finder(globals()["FOLDER"]))

from helperd.__main__ import start  # noqa: E402

start()
