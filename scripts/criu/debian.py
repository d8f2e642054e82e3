"""Packages of a Debian suite, downloaded and unpacked into a folder.

apt works in a folder of its own there: its lists and its cache are not the system's, and of what
is installed it knows nothing, so that it downloads everything that a package needs. What was
unpacked runs through its own dynamic loader, on any distribution that has apt.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from criu.errors import SetupError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: Packages that others depend on, but nothing here runs. Prefixes.
_NOT_UNPACKED = (
    "adduser_",
    "debconf_",
    "dpkg_",
    "iso-codes_",
    "libperl",
    "libpython",
    "login_",
    "passwd_",
    "perl",
    "python3",
    "tar_",
    "udev_",
)

_LOADER = "ld-linux-x86-64.so.2"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


def unpack(suite: str, packages: Sequence[str], folder: Path) -> None:
    """Download packages of a suite with all that they need, and unpack them into ``folder``.

    Raises:
        SetupError: apt is missing, the archive cannot be reached, or it lacks a package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise SetupError("Debian's packages are unpacked with apt-get and dpkg, which are missing")
    if not os.path.exists(_KEYRING):
        raise SetupError(f"{_KEYRING} is missing: install debian-archive-keyring")
    state = folder.with_name(folder.name + ".apt")
    shutil.rmtree(state, ignore_errors=True)
    for name in ("lists/partial", "debs/partial", "sources"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources" / "suite.sources").write_text(
        f"Types: deb\nURIs: {_mirror()}\nSuites: {suite}\nComponents: main\n"
        f"Signed-By: {_KEYRING}\nArchitectures: amd64\n"
    )
    try:
        _apt(state, suite, "update")
        _apt(
            state,
            suite,
            "--yes",
            "--download-only",
            "--no-install-recommends",
            "install",
            *packages,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for archive in sorted((state / "debs").glob("*.deb")):
            if not archive.name.startswith(_NOT_UNPACKED):
                subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def loader(root: Path) -> tuple[str, ...]:
    """Return the words that run a program of an unpacked root, before the program's path.

    Raises:
        SetupError: the root has no dynamic loader.
    """
    libraries = [str(root / folder) for folder in _LIBRARIES]
    for folder in libraries:
        # Not lib64: a link from there may lead to the system's own.
        path = os.path.join(folder, _LOADER)
        if os.path.exists(path):
            return (path, "--library-path", ":".join(libraries))
    raise SetupError(f"{root} has no dynamic loader: remove it and run make criu again")


def made_once(folder: Path, recipe: str, make: Callable[[Path], None]) -> bool:
    """Make a folder unless it is there already, made in the same way and at the same place.

    It appears when everything is in it. Several processes may try at the same time.

    Args:
        folder: to make.
        recipe: what it is made of; a change makes it anew.
        make: fills the folder that it is called with.

    Returns:
        Whether it was made now.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made_from = f"{recipe}\n{folder.resolve()}\n"
    marker = folder / ".made-from"
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if marker.exists() and marker.read_text() == made_from:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        marker.write_text(made_from)
        return True


def is_made(folder: Path) -> bool:
    """Say whether a folder was made completely."""
    return (folder / ".made-from").exists()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _apt(state: Path, suite: str, *words: str) -> None:
    options = (
        # A testing suite's Release file may be past its date on a mirror.
        "Acquire::Check-Valid-Until=false",
        "Acquire::Retries=2",
        "Acquire::Languages=none",
        "APT::Architecture=amd64",
        "APT::Sandbox::User=root",
        "Debug::NoLocking=true",
        "Dir::Etc::sourcelist=/dev/null",
        f"Dir::Etc::sourceparts={state / 'sources'}",
        f"Dir::State::lists={state / 'lists'}",
        f"Dir::State::status={state / 'status'}",
        f"Dir::Cache::archives={state / 'debs'}",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
    )
    command = ["apt-get", "-q", *_each("-o", options), *words]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    # An update that reaches nothing ends with 0 and a warning.
    reasons = [
        line for line in result.stderr.splitlines() if line.startswith(("E:", "W: Failed to fetch"))
    ]
    if result.returncode or (words == ("update",) and reasons):
        reason = reasons[-1] if reasons else f"apt-get ended with {result.returncode}"
        raise SetupError(f"cannot get packages of Debian {suite} from {_mirror()}: {reason}")


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _mirror() -> str:
    """Return where Debian's packages are: what DEBIAN_MIRROR or this system's sources say."""
    if mirror := os.environ.get("DEBIAN_MIRROR"):
        return mirror
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for path in sorted(sources):
        if path.is_file():
            for word in path.read_text(errors="replace").split():
                if "://" in word and word.rstrip("/").endswith("/debian"):
                    return word.rstrip("/")
    raise SetupError("no Debian mirror in this system's apt sources: set DEBIAN_MIRROR to one")
