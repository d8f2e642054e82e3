"""Real CRIUs send their pages to helperd's page server; what they restore afterwards is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from criu.dumper import Criu
from criu.errors import CriuError
from criu.processes import descendants, wait_until_gone
from criu.workload import Workload

from tests.criu.conftest import IN_VM, StartWorkload, helperd, not_in_vm
from tests.support.page_server import PageServerProcess

_MIB = 6 if IN_VM else 24
WORKLOADS = {
    "memory": (("memory", f"text={_MIB}", f"random={_MIB // 2}", "zero=4", "sparse=2"), 1),
    "tree": (("tree", str(_MIB // 4)), 4),
}
MODES = {
    "none": ("--compress", "none"),
    "page": (),
    "region": ("--region", "256K"),
    "blocks": ("--schema", "blocks"),
}
CASES = [
    pytest.param(*WORKLOADS[workload], MODES[mode], id=f"{workload}-{mode}")
    for workload, mode in (
        [("tree", "page")] if IN_VM else [(work, mode) for work in WORKLOADS for mode in MODES]
    )
]


def restore(criu: Criu, images: Path, mode: tuple[str, ...]) -> None:
    """Restore with the stock CRIU, which wants uncompressed images."""
    if mode != MODES["none"]:
        helperd("complete", images)
        helperd("check", images)
        helperd("decompress", "--in-place", images)
    criu.restore(images)


@pytest.mark.parametrize(("arguments", "processes", "mode"), CASES)
def test_over_the_network(
    criu: Criu,
    folder: Path,
    start_workload: StartWorkload,
    arguments: tuple[str, ...],
    processes: int,
    mode: tuple[str, ...],
) -> None:
    process = start_workload(*arguments, processes=processes)
    images = folder / "images"
    images.mkdir()
    with PageServerProcess(images, "--once", *mode) as server:
        criu.dump(process.pid, images, *server.client_options)
        assert server.wait() == 0
    restore(criu, images, mode)
    process.check()


@not_in_vm
def test_pages_and_images_in_two_directories(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    """As on two machines; the server goes on listening."""
    process = start_workload(*WORKLOADS["tree"][0], processes=4)
    images, pages = folder / "images", folder / "pages"
    pages.mkdir()
    with PageServerProcess(pages) as server:
        criu.dump(process.pid, images, *server.client_options)
        assert server.stop() == 0
    assert not list(images.glob("pages-*"))
    for file in images.iterdir():
        file.rename(pages / file.name)
    restore(criu, pages, MODES["page"])
    process.check()


def with_command(
    criu: Criu,
    pid: int,
    images: Path,
    *options: str,
    mode: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run helperd page-server -- criu dump; wait until the pids are free if it succeeds."""
    everybody = descendants(pid)
    images.mkdir()
    command = [*before, *criu.dump_command(pid, images, *options)]
    result = subprocess.run(
        [sys.executable, "-m", "helperd", "page-server", "-D", str(images), *mode, "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        wait_until_gone(*everybody)
    return result


@pytest.mark.parametrize("mode", ["page"] if IN_VM else ["page", "region"])
def test_in_one_command(criu: Criu, folder: Path, start_workload: StartWorkload, mode: str) -> None:
    process = start_workload(*WORKLOADS["memory"][0])
    images = folder / "images"
    result = with_command(criu, process.pid, images, mode=MODES[mode])
    assert (result.returncode, result.stderr) == (0, "")
    helperd("check", images)
    helperd("decompress", "--in-place", images)
    criu.restore(images)
    process.check()


@not_in_vm
def test_a_command_that_fails_leaves_no_pages(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    """Even if it fails when the pages are safe."""
    process = start_workload(*WORKLOADS["memory"][0])
    images = folder / "images"
    failing = ("sh", "-c", '"$@"; exit 3', "sh")
    result = with_command(criu, process.pid, images, "--leave-running", before=failing)
    assert (result.returncode, result.stderr) == (3, "")
    process.check()
    assert (images / "inventory.img").exists()
    assert [path.name for path in images.iterdir() if "page" in path.name] == []


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """Return a directory with little room."""
    path = folder / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fails(criu: Criu, process: Workload, images: Path, *options: str) -> None:
    """Assert that a dump fails, and that the process is as it was."""
    with pytest.raises(CriuError):
        criu.dump(process.pid, images, *options)
    process.check()


@pytest.mark.parametrize("mode", ["page"] if IN_VM else ["page", "none"])
def test_a_full_disk_fails_the_dump_and_the_process_lives(
    criu: Criu, folder: Path, small_disk: Path, start_workload: StartWorkload, mode: str
) -> None:
    process = start_workload(*WORKLOADS["memory"][0])
    with PageServerProcess(small_disk, "--once", *MODES[mode]) as server:
        fails(criu, process, folder / "images", *server.client_options)
        assert server.wait() == 7
        assert "No space left" in server.log()
    assert list(small_disk.iterdir()) == []


def under_way(images: Path) -> bool:
    """Return whether pages have been written."""
    return any(file.stat().st_size for file in images.glob(".helperd-*/pages-*"))


@not_in_vm
def test_a_killed_server_fails_the_dump_and_the_process_lives(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    process = start_workload(*WORKLOADS["memory"][0])
    pages = folder / "pages"
    pages.mkdir()
    with PageServerProcess(pages, "--once", "--compress", "none") as server:
        words = criu.dump_command(process.pid, folder / "images", *server.client_options)
        (folder / "images").mkdir()
        dump = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        while not under_way(pages):
            assert dump.poll() is None
            time.sleep(0.001)
        os.kill(server.pid, signal.SIGKILL)
        assert dump.wait() != 0
        process.check()
    assert any(name.startswith(".helperd-") for name in os.listdir(pages))
    # The next one cleans up, and the same dump succeeds.
    with PageServerProcess(pages, "--once") as server:
        criu.dump(process.pid, folder / "images", *server.client_options)
        assert server.wait() == 0
    assert not [name for name in os.listdir(pages) if name.startswith(".")]


@pytest.mark.soft_dirty
@pytest.mark.parametrize("mode", ["page", "none"])
def test_two_predumps_and_a_dump_with_dedup(
    criu: Criu, folder: Path, start_workload: StartWorkload, mode: str
) -> None:
    process = start_workload("memory", "text=4", "random=1", "zero=1", "sparse=1")
    before = 0
    options: tuple[str, ...] = ()
    for level in ("1", "2", "3"):
        images = folder / level
        images.mkdir()
        if level == "3":
            before = blocks(folder)
        more = ("--auto-dedup",) if level == "3" else ()
        with PageServerProcess(images, "--once", *options, *MODES[mode], *more) as server:
            if level == "3":
                criu.dump(process.pid, images, "--track-mem", *options, *server.client_options)
            else:
                criu.pre_dump(process.pid, images, *options, *server.client_options)
            assert server.wait() == 0
        if level != "3":
            process.ask(f"change {level} 400")
            options = ("--prev-images-dir", f"../{level}")
    levels = [folder / level for level in ("1", "2", "3")]
    after = blocks(folder) - sum(path.stat().st_blocks for path in levels[2].glob("pages-*"))
    assert after < before
    if mode != "none":
        helperd("complete", *levels)
    # Offline, nothing is found that could be freed beyond it.
    helperd("check", levels[2])
    freed = helperd("dedup", "--dry-run", levels[2])
    assert " 0K" in freed.splitlines()[-1], freed
    if mode != "none":
        helperd("decompress", "--in-place", "--chain", levels[2])
    criu.restore(levels[2])
    process.check()


def blocks(folder: Path) -> int:
    """Return the blocks that all pages files take."""
    return sum(path.stat().st_blocks for path in folder.glob("*/pages-*"))
