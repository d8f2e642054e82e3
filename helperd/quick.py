"""Starts helperd: its modules are loaded at once, and no more of Python's than they need.

For each module Python's own import looks into folders, tries suffixes and takes paths apart; that
was a third of a helper's start. Here it is known where a module lies, and its compiled form is
taken, if it is that of the source as it is now. All else is left to Python: a source that has
changed or was never compiled, other kinds of compiled forms, other packages.

Executed, rather than imported, by what starts helperd, with ``FOLDER`` set to where helperd lies.
"""

# Nothing is imported from __future__ here: that is a module, too, see below.

import gc
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader, SourceFileLoader
from _imp import extension_suffixes
from marshal import loads
from posix import F_OK, O_CLOEXEC, O_RDONLY, access, close, open, readv, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
else:
    ModuleType = type(sys)

#: A compiled form: magic number, what kind it is (0: of a source of that time and size), time and
#: size as 32-bit numbers, code. Source: PEP 552.
_PREFIX = MAGIC_NUMBER + bytes(4)
_TIME, _SIZE, _CODE = 8, 12, 16
_MASK = 0xFFFFFFFF
#: More than any module of ours has; a longer one is Python's.
_MOST_BYTES = 1 << 16

#: What is loaded first; what a client of a server needs besides; and what a helper needs. None
#: needs one behind it, and packages end with a slash.
FIRST = "errors kernel/ kernel/descriptors kernel/signals __main__"
CLIENT = """blocks modes reports/ kernel/pipes reports/log options helper/ kernel/hints
helper/descriptors reports/openlog reports/statsfile server/ wire/ wire/protobuf wire/session
server/attach"""
HELPER = """blocks modes reports/ kernel/pipes reports/log options helper/ kernel/hints
helper/descriptors reports/openlog reports/statsfile confined/ confined/broker kernel/native
kernel/syscalls confined/supervisor confined/worker_filter confined/seccomp kernel/privileges
confined/confine engine/ codec/ codec/chunk codec/libraries codec/liblz4 codec/frames
reports/phases codec/decode codec/decoders engine/crew engine/plan engine/readahead engine/thp
kernel/zeros engine/write kernel/holes engine/engine codec/consumed engine/release wire/ wire/pipe
helper/answers helper/statistics reports/end reports/failures targets/ kernel/procfs
targets/mappings targets/target targets/targets helper/worker kernel/pidfd targets/hold
targets/permissions helper/session helper/direct"""

#: Modules of Python's own that a helper needs, and which many Pythons have in files of their own.
_EXTENSIONS = {"_socket", "array", "_struct", "_ctypes", "mmap", "select", "_bisect"}


class Loader(SourceFileLoader):
    """A loader that has its module's code already."""

    code: "CodeType | None" = None

    def get_code(self, fullname: str) -> "CodeType | None":
        """Return the module's code."""
        return self.code or super().get_code(fullname)


class Finder:
    """Finds modules of helperd's.

    Args:
        folder: where the package is.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # One for all: new ones would each take memory from the system, and give most of it back.
        self._compiled = memoryview(bytearray(_MOST_BYTES))
        self._ending = f".{sys.implementation.cache_tag}.pyc"
        self._extensions = _EXTENSIONS.difference(sys.builtin_module_names)

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> "ModuleSpec | None":
        """Return how to import a module; None to let others find it."""
        if name in self._extensions:
            return _extension(name)
        if not name.startswith("helperd"):
            return None
        base = f"{self._folder}/{name.replace('.', '/')}"
        parent, _, last = base.rpartition("/")
        found = self._find(name, parent, last, None) or self._find(name, base, "__init__", base)
        return None if found is None else found[0]

    def load(self, paths: "list[str]") -> None:
        """Load modules one after the other, as importing them does.

        It ends at the first one that has to be left to Python, or fails: whoever imports that one
        will find it, or meet the failure.
        """
        for path in paths:
            package, _, stem = f"helperd/{path}".rpartition("/")
            parent = package.replace("/", ".")
            folder = f"{self._folder}/{package}"
            if stem:
                name = f"{parent}.{stem}"
                found = self._find(name, folder, stem, None)
            else:
                name = parent
                parent = name.rpartition(".")[0]
                found = self._find(name, folder, "__init__", folder)
            if found is None or not _execute(*found, name, parent):
                return

    def _find(
        self, name: str, folder: str, stem: str, package: "str | None"
    ) -> "tuple[ModuleSpec, CodeType] | None":
        source, cached = f"{folder}/{stem}.py", f"{folder}/__pycache__/{stem}{self._ending}"
        try:
            fd = open(cached, O_RDONLY | O_CLOEXEC)
            size = readv(fd, (self._compiled,))
            close(fd)
            status = stat(source)
        except OSError:
            return None
        stamp = (int(status.st_mtime) & _MASK).to_bytes(4, "little")
        stamp += (status.st_size & _MASK).to_bytes(4, "little")
        compiled = self._compiled[:size]
        if compiled[:_CODE] != _PREFIX + stamp or size == _MOST_BYTES:
            return None
        loader = Loader(name, source)
        loader.code = code = loads(compiled[_CODE:])
        spec = ModuleSpec(name, loader, origin=source, is_package=package is not None)
        if package is not None:
            spec.submodule_search_locations = [package]
        spec.has_location = True
        spec.cached = cached
        return spec, code


def _extension(name: str) -> "ModuleSpec | None":
    """Return how to import one of _EXTENSIONS; None if it is not where Pythons have it."""
    for folder in sys.path:
        if folder.endswith("/lib-dynload"):
            path = f"{folder}/{name}{extension_suffixes()[0]}"
            if access(path, F_OK):
                return ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
    return None


def _execute(spec: ModuleSpec, code: "CodeType", name: str, parent: str) -> bool:
    """Make the module of ``spec`` as import does; return whether there is one now."""
    module = ModuleType(name)
    names = module.__dict__
    names["__loader__"] = spec.loader
    names["__spec__"] = spec
    names["__file__"] = spec.origin
    names["__cached__"] = spec.cached
    if spec.submodule_search_locations is None:
        names["__package__"] = parent
    else:
        names["__package__"] = name
        names["__path__"] = spec.submodule_search_locations
    sys.modules[name] = module
    try:
        exec(code, names)
    except Exception:
        del sys.modules[name]
        return False
    if parent:
        setattr(sys.modules[parent], name[len(parent) + 1 :], module)
    return True


def import_array() -> None:
    """Import array without collections.abc.

    It enters its type there among the mutable sequences, as which nobody looks for it in a helper;
    that takes longer than all modules of ours that are imported before the worker is forked.
    """
    if "collections" in sys.modules:
        return

    class Sequences:
        register = callable  # Takes the type, and does nothing with it.

    stand_in = ModuleType("collections.abc")
    stand_in.__dict__["MutableSequence"] = Sequences
    names = ("collections", "collections.abc")
    sys.modules.update(dict.fromkeys(names, stand_in))
    try:
        import array  # noqa: F401
    finally:
        for name in names:
            del sys.modules[name]


def _run(folder: str) -> None:
    # What is imported stays: looking through it for garbage takes a tenth of the start.
    gc.disable()
    finder = None
    if not sys.flags.optimize and sys.pycache_prefix is None:
        finder = Finder(folder)
        sys.meta_path.insert(0, finder)
    # All modules of ours import this, which has been in force since they were compiled.
    future = ModuleType("__future__")
    future.__dict__["annotations"] = None
    sys.modules["__future__"] = future
    if finder is not None:
        finder.load(["", *FIRST.split()])
    from helperd.__main__ import serves, start
    from helperd.kernel.descriptors import fill_standard

    # Before all else: libffi, for one, keeps a descriptor, which would pass for a missing pipe.
    fill_standard()
    arguments = sys.argv[1:]
    if not serves(arguments):
        # Garbage is looked for again once the command is imported.
        del sys.modules["__future__"]
    else:
        attaches = arguments[0] == "attach"
        if not attaches:
            import_array()
        if finder is not None:
            finder.load((CLIENT if attaches else HELPER).split())
    start()


if "FOLDER" in globals():
    _run(globals()["FOLDER"])
