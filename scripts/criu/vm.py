"""Sets up the virtual machine: Debian 12's kernel, QEMU, and the CRIU of that release.

CRIU 3.17.1 does not run on today's kernels, and not every kernel tracks changed pages (soft-dirty),
without which there are no pre-dumps and no parents. QEMU emulates: no access to KVM is needed.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

from criu.debian import is_made, loader, made_once, unpack
from criu.errors import SetupError
from criu.native import CACHE, write_launcher

_SUITE = "bookworm"
_PACKAGES = (
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "criu",
    "linux-image-cloud-amd64",
)
_INIT = Path(__file__).with_name("init.sh")
#: Drivers that the guest needs before it sees the host's files; it loads others from there.
_EARLY_MODULES = ("virtio_pci", "virtiofs", "virtio_rng", "crc32c_generic", "tun")

FOLDER = CACHE / "vm"
ROOT = FOLDER / "root"
KERNEL = FOLDER / "kernel"
INITRAMFS = FOLDER / "initramfs.gz"
#: Starts CRIU 3.17.1, in the guest.
CRIU_PROGRAM = FOLDER / "criu"


def set_up_vm() -> None:
    """Download and unpack what the machine consists of, unless that was done.

    Raises:
        SetupError: it cannot be had.
    """
    recipe = f"vm of {_SUITE}, {' '.join(_PACKAGES)}, 2\n{_INIT.read_text()}"
    if made_once(FOLDER, recipe, _make):
        print(f"criu: {FOLDER} has Linux {kernel_version()} and CRIU 3.17.1", flush=True)


def is_vm_ready() -> bool:
    """Say whether the machine was set up."""
    return is_made(FOLDER)


def kernel_version() -> str:
    """Return the release of the guest's kernel.

    Raises:
        SetupError: there is none.
    """
    for path in (KERNEL / "lib/modules").glob("*"):
        return path.name
    raise SetupError(f"{KERNEL} has no kernel: remove {FOLDER} and run make criu again")


def _make(folder: Path) -> None:
    print(f"criu: unpacking QEMU, Linux and CRIU of Debian {_SUITE}", flush=True)
    unpack(_SUITE, _PACKAGES, ROOT)
    for part in ("boot", "lib/modules"):
        (KERNEL / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(ROOT / part, KERNEL / part)
    for name in ("depmod", "modprobe"):  # kmod looks at the name that it is called by
        link = ROOT / "bin" / name
        if not link.exists():
            link.symlink_to("kmod")
    _kmod("depmod", "-b", str(KERNEL), kernel_version())
    write_launcher(CRIU_PROGRAM, ROOT, "usr/sbin/criu")
    write_launcher(folder / "modprobe-anywhere", ROOT, "bin/modprobe")
    modprobe = folder / "modprobe"
    modprobe.write_text(f"#!/bin/sh\nexec '{folder}/modprobe-anywhere' -d '{KERNEL}' \"$@\"\n")
    modprobe.chmod(0o755)
    _make_initramfs()


def _make_initramfs() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("bin", "proc", "sys", "dev", "modules", "newroot"):
            (folder / part).mkdir()
        shutil.copy(ROOT / "bin" / "busybox", folder / "bin")
        shutil.copy(_INIT, folder / "init")
        (folder / "init").chmod(0o755)
        order: list[str] = []
        for module in _EARLY_MODULES:
            depends = _kmod(
                "modprobe", "-d", str(KERNEL), "-S", kernel_version(), "--show-depends", module
            )
            for line in depends.splitlines():
                action, _, path = line.strip().partition(" ")
                if action == "insmod" and path not in order:
                    order.append(path)
                    shutil.copy(path, folder / "modules")
        (folder / "order").write_text("".join(f"{Path(path).name}\n" for path in order))
        paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        cpio = subprocess.run(
            [*loader(ROOT), str(ROOT / "bin" / "cpio"), "-o", "-H", "newc", "--quiet"],
            input="\n".join(paths).encode(),
            capture_output=True,
            cwd=folder,
            check=True,
        )
        INITRAMFS.write_bytes(gzip.compress(cpio.stdout, 1, mtime=0))


def _kmod(name: str, *words: str) -> str:
    command = [*loader(ROOT), str(ROOT / "bin" / name), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetupError(f"{name} {words[-1]} has failed: {result.stderr.strip()}")
    return result.stdout
