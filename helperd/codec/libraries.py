"""Where the C libraries are: inside the wheels of Python packages, else on the system.

A wheel carries its library in one of three ways: linked into an extension module that still exports
it, beside the modules in a folder named after the package (``lz4.libs``), or as a data file of the
environment (``lib64/libblosc.so.1``). Which, is the packager's choice and may change with the next
release, so each place is tried and the symbols decide. No package is imported for that.

The helper loads liblz4 while a restore waits for it: what its candidates take is a few stat calls.
"""

from __future__ import annotations

import posix as os
import sys
from _imp import extension_suffixes

from helperd.errors import ResourceError
from helperd.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LZ4_SYSTEM_NAME = "liblz4.so.1"
BLOSC_SYSTEM_NAME = "libblosc.so.1"


def first_with(symbols: Iterable[str], candidates: Iterable[str]) -> native.Library | None:
    """Return the first of the libraries that can be loaded and has all symbols, or None.

    Args:
        symbols: names that the library must export, itself or through what it is linked to.
        candidates: paths, or names for the dynamic linker to look up.
    """
    for path in candidates:
        try:
            library = native.Library(path)
        except OSError:
            continue
        if all(hasattr(library, symbol) for symbol in symbols):
            return library
    return None


def lz4(symbols: Iterable[str]) -> native.Library:
    """Return the liblz4 of the lz4 package, or that of the system.

    Raises:
        ResourceError: neither has all the symbols.
    """
    library = first_with(symbols, lz4_candidates())
    if library is None:
        raise ResourceError(
            "no liblz4 with the frame functions in the lz4 package or on the system:"
            " install lz4 with pip, or liblz4 1.8 or newer"
        )
    return library


def lz4_candidates() -> Iterator[str]:
    """Yield the paths at which liblz4 may be, the best first, and its name at last."""
    folders = _folders()
    for folder in folders:
        for suffix in extension_suffixes():
            path = f"{folder}/lz4/frame/_frame{suffix}"
            if os.access(path, os.R_OK):
                yield path
    for folder in folders:
        try:
            names = os.listdir(f"{folder}/lz4.libs")
        except OSError:
            continue
        yield from (f"{folder}/lz4.libs/{name}" for name in names if name.startswith("liblz4"))
    yield LZ4_SYSTEM_NAME


def blosc_candidates() -> Iterator[str]:
    """Yield the paths at which libblosc may be, the best first, and its name at last."""
    # Slow to import, and of use to the offline tools only.
    import importlib.metadata
    from os.path import normpath

    try:
        files = importlib.metadata.files("blosc") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for beginning in ("libblosc.so", "blosc_extension"):
        for file in files:
            if file.name.startswith(beginning) and ".so" in file.name:
                yield normpath(str(file.locate()))
    yield BLOSC_SYSTEM_NAME


def _folders() -> list[str]:
    """Return where Python looks for packages, but never a folder relative to the current one."""
    return [folder for folder in sys.path if folder.startswith("/")]
