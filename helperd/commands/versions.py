"""``helperd --version -v``: which libraries are in use, and where they were found."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys

from helperd import __version__
from helperd.codec import frames, libblosc, liblz4

_NO_BLOSC = "not found: compress is slower per page; pip install helperd[fast]"

_NO_FRAMES = ", of an unknown kind: pages are decoded one by one, which is slower"


def describe() -> str:
    """Return a line for helperd, for Python, and for each library: name, version, place.

    Raises:
        ResourceError: there is no liblz4.
    """
    lines = [
        f"helperd {__version__}",
        f"Python {platform.python_version()} ({sys.executable})",
        "liblz4 {} ({})".format(*liblz4.in_use()) + ("" if frames.usable() else _NO_FRAMES),
        f"libblosc {_blosc()}",
        f"protobuf {_protobuf()}",
        f"python-prctl {_installed('python-prctl', 'prctl')}",
    ]
    return "\n".join(lines) + "\n"


def _blosc() -> str:
    found = libblosc.in_use()
    return _NO_BLOSC if found is None else "{} ({})".format(*found)


def _protobuf() -> str:
    from google.protobuf.internal import api_implementation

    version = _installed("protobuf", "google.protobuf")
    return f"{version}, {api_implementation.Type()}"


def _installed(distribution: str, module: str) -> str:
    """Return the version of a package, as its metadata has it, and its file."""
    place = importlib.import_module(module).__file__
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "of an unknown version"
    return f"{version} ({place})"
