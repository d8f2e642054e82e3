"""Archives as container engines make them, around images of tests/data."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from helperd.images.outer import open_outer, outer_of

#: What each engine puts beside ``checkpoint/``.
MEMBERS = {
    "podman": ("network.status", "stats-dump", "artifacts", "rootfs-diff.tar", "deleted.files"),
    "cri-o": ("bind.mounts", "rootfs-diff.tar", "deleted.files", "stats-dump", "dump.log"),
    "containerd": ("status.dump", "status", "stats-dump", "dump.log", "container.log"),
}
MANAGERS = {"podman": "libpod", "cri-o": "cri-o", "containerd": "containerd"}


def lay_out(folder: Path, engine: str, checkpoint: Path, parent: Path | None = None) -> Path:
    """Lay out what an engine archives: the images, and what it knows of the container."""
    folder.mkdir()
    shutil.copytree(checkpoint, folder / "checkpoint", symlinks=True)
    if parent is not None:
        shutil.copytree(parent, folder / "pre-checkpoint", symlinks=True)
        link = folder / "checkpoint" / "parent"
        link.unlink(missing_ok=True)
        link.symlink_to("../pre-checkpoint")
        (folder / "pre-checkpoint" / "parent").unlink(missing_ok=True)
    for name in MEMBERS[engine]:
        (folder / name).write_bytes(os.urandom(3000))
    config = {"id": "4ac1", "name": "web", "rootfsImageName": "docker.io/library/nginx:1.27"}
    config |= {"runtime": "crun", "createdTime": "2026-11-25T03:00:00Z"}
    (folder / "config.dump").write_text(json.dumps(config))
    spec = {"annotations": {"io.container.manager": MANAGERS[engine]}}
    (folder / "spec.dump").write_text(json.dumps(spec | {"process": {"args": ["nginx", "-g"]}}))
    return folder


def pack(folder: Path, path: Path, *options: str) -> Path:
    """Archive a folder with tar."""
    subprocess.run(["tar", *options, "-C", str(folder), "-cf", str(path), "."], check=True)
    return path


def unpacked(path: Path, folder: Path) -> Path:
    """Unpack an archive with tar, into a new folder."""
    folder.mkdir()
    with path.open("rb") as raw:
        # tar itself would need a program for each kind of compression.
        content = open_outer(raw, outer_of(str(path)), str(path)).read()
    subprocess.run(["tar", "-C", str(folder), "-xf", "-"], input=content, check=True)
    return folder


def tree_of(folder: Path) -> dict[str, bytes | str]:
    """Return the content of every file and link below a folder, by its path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def hostile(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    """Write an archive of members as they are."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return the header of an empty member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


#: How archives are compressed, and how they are uncompressed again.
def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return bytes(zstd.compress(data))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gz": gzip.compress,
    "zst": _zstd,
}
