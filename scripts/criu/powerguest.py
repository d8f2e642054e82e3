"""Changes checkpoints on a disk, again and again, in the virtual machine: see powercuts.py.

Says on stdout what it begins and what is done. Each turn works on copies of its own; those of the
turn before stay, so that whoever looks at the disk can see whether what was said holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helperd import tools

_MOUNT = Path("/tmp/disk")
_KEPT_TURNS = 3


def main() -> None:
    """Mount the disk and go on until the power goes."""
    busybox, modprobe, *forget = sys.argv[1:]
    sync = os.sync
    if forget:  # to see that it is noticed
        os.fsync = os.fdatasync = lambda fd: None
    for module in ("virtio_blk", "ext4"):
        subprocess.run([modprobe, module], check=True)
    _MOUNT.mkdir()
    # Without auto_da_alloc, ext4 makes up for no fsync that was forgotten before a rename.
    mount = [busybox, "mount", "-t", "ext4", "-o", "noauto_da_alloc", "/dev/vda", str(_MOUNT)]
    subprocess.run(mount, check=True)
    turn = 0
    while True:
        turn += 1
        shutil.rmtree(_MOUNT / f"{turn - _KEPT_TURNS}", ignore_errors=True)
        for job in ("compress", "decompress", "dedup"):
            folder = _MOUNT / f"{turn}" / job
            shutil.copytree(_MOUNT / job, folder, symlinks=True)
            sync()
            print(f"begin {turn} {job}", flush=True)
            if job == "compress":
                tools.compress(str(folder), in_place=True, threads=1)
            elif job == "decompress":
                tools.decompress(str(folder), in_place=True, threads=1)
            else:
                tools.dedup(str(folder / "3"), threads=1)
            print(f"done {turn} {job}", flush=True)


if __name__ == "__main__":
    main()
