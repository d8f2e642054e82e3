"""Real CRIUs dump into helperd's streams and restore from them; the processes find all right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from criu.dumper import Criu, log_tail
from criu.processes import descendants, wait_until_gone
from criu.redis import Redis

from tests.criu.conftest import IN_VM, StartWorkload, helperd, not_in_vm

_MIB = 6 if IN_VM else 24
WORKLOADS = {
    "memory": (("memory", f"text={_MIB}", f"random={_MIB // 4}", "zero=4", "sparse=2"), 1),
    "tree": (("tree", str(_MIB // 4)), 4),
    "threads": (("threads", str(_MIB // 4), "4"), 1),
}
MODES = {
    "plain": (),
    "page": ("--compress", "page"),
    "region": ("--region", "256K"),
    "blocks": ("--schema", "blocks", "--region", "64K"),
}
CASES = [
    pytest.param(*WORKLOADS[workload], MODES[mode], id=f"{workload}-{mode}")
    for workload, mode in (
        [("tree", "region"), ("memory", "page")]
        if IN_VM
        else [
            *(("memory", mode) for mode in MODES),
            *(("tree", mode) for mode in ("page", "region")),
            ("threads", "page"),
        ]
    )
]


def stream(operation: str, images: Path, command: list[str], *options: str) -> tuple[int, str]:
    """Run ``helperd stream`` with a CRIU; return its exit status and what was said."""
    images.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "helperd", "stream", "-D", str(images), *options, operation]
    result = subprocess.run(
        [*words, "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    print(result.stdout, log_tail(images))
    return result.returncode, result.stdout


def capture(criu: Criu, pid: int, images: Path, *options: str) -> None:
    """Dump, and wait until the pids are free."""
    everybody = descendants(pid)
    command = criu.dump_command(pid, Path("{}"), "--stream")
    assert stream("capture", images, command, *options)[0] == 0
    wait_until_gone(*everybody)


def serve(criu: Criu, images: Path, *options: str) -> None:
    """Restore; ``--lazy-pages`` is an option of both."""
    lazy = [option for option in options if option == "--lazy-pages"]
    command = criu.restore_command(Path("{}"), "--stream", *lazy)
    assert stream("serve", images, command, *options)[0] == 0


@pytest.mark.parametrize(("arguments", "processes", "mode"), CASES)
def test_dumped_and_restored(
    criu: Criu,
    folder: Path,
    start_workload: StartWorkload,
    arguments: tuple[str, ...],
    processes: int,
    mode: tuple[str, ...],
) -> None:
    process = start_workload(*arguments, processes=processes)
    images = folder / "images"
    capture(criu, process.pid, images, *mode)
    helperd("check", images)
    serve(criu, images)
    process.check()


@not_in_vm
def test_captured_images_are_ordinary_ones(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    """A stock CRIU restores them from the directory, once they are not compressed any more."""
    process = start_workload(*WORKLOADS["tree"][0], processes=4)
    images = folder / "images"
    capture(criu, process.pid, images, "--compress", "page")
    helperd("decompress", "--in-place", images)
    criu.restore(images)
    process.check()


@pytest.mark.parametrize("mode", ["region"] if IN_VM else ["plain", "region"])
def test_streamed_and_on_demand(
    criu: Criu, folder: Path, start_workload: StartWorkload, mode: str
) -> None:
    """The process runs while most of its memory is still in the images."""
    process = start_workload(*WORKLOADS["tree"][0], processes=4)
    images = folder / "images"
    capture(criu, process.pid, images, *MODES[mode])
    serve(criu, images, "--lazy-pages")
    process.check()


@pytest.mark.soft_dirty
@pytest.mark.parametrize("mode", [("--region", "256K")], ids=["region"])
@pytest.mark.parametrize("lazy", [(), ("--lazy-pages",)], ids=["", "lazy"])
def test_a_compressed_chain(
    criu: Criu,
    folder: Path,
    start_workload: StartWorkload,
    mode: tuple[str, ...],
    lazy: tuple[str, ...],
) -> None:
    """What no CRIU can do by itself: a stream from a chain, and a compressed one."""
    process = start_workload("memory", "text=4", "random=1", "zero=1", "sparse=1")
    criu.pre_dump(process.pid, folder / "0")
    process.ask("change 1 200")
    criu.pre_dump(process.pid, folder / "1", "--prev-images-dir", "../0")
    process.ask("change 2 200")
    options = ("--track-mem", "--prev-images-dir", "../1")
    criu.dump(process.pid, folder / "images", *options)
    helperd("compress", "--in-place", "--chain", *mode, folder / "images")
    serve(criu, folder / "images", *lazy)
    process.check()


@not_in_vm
def test_redis(criu: Criu, folder: Path, redis: Redis) -> None:
    n_keys = 1_000 if IN_VM else 50_000
    redis.fill(n_keys)
    digest = redis.digest()
    images = folder / "images"
    capture(criu, redis.pid, images, "--region", "256K")
    serve(criu, images)
    redis.wait_until_it_listens()
    assert redis.digest() == digest


@not_in_vm
def test_a_dump_that_cannot_be_stored_leaves_the_processes_running(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    """The images are refused at the very end, and CRIU has not ended anything yet."""
    process = start_workload("memory", "text=2")
    images = folder / "images"
    images.mkdir()
    # There already, and never overwritten; CRIU sends it last but one.
    (images / "inventory.img").write_bytes(b"precious")
    command = criu.dump_command(process.pid, Path("{}"), "--stream")
    code, said = stream("capture", images, command, "--region", "64K")
    assert code != 0
    assert "inventory.img" in said
    assert (images / "inventory.img").read_bytes() == b"precious"
    assert not list(images.glob("core-*"))
    assert process.is_running()
    process.check()


@not_in_vm
def test_a_restore_that_is_lied_to_fails(
    criu: Criu, folder: Path, start_workload: StartWorkload
) -> None:
    """A block that does not decode: both say so, and nothing wrong is left running."""
    process = start_workload("memory", "text=4", "random=1")
    images = folder / "images"
    capture(criu, process.pid, images, "--region", "64K")
    pages = max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    middle = pages.stat().st_size // 2
    with open(pages, "r+b") as file:
        file.seek(middle)
        file.write(b"\xff" * 100_000)
    command = criu.restore_command(Path("{}"), "--stream")
    code, said = stream("serve", images, command)
    assert code == 4
    assert pages.name in said
    wait_until_gone(process.pid)


@pytest.mark.parametrize("n_shards", [4] if IN_VM else [1, 4])
def test_over_shards(
    criu: Criu, folder: Path, start_workload: StartWorkload, n_shards: int
) -> None:
    """A capture on one side, a serve on the other, pipes between them; nothing in between."""
    process = start_workload(*WORKLOADS["tree"][0], processes=4)
    everybody = descendants(process.pid)
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    pipes = [os.pipe() for _ in range(n_shards)]

    def helper(operation: str, fds: list[int], directory: Path, command: list[str]):
        words = [sys.executable, "-m", "helperd", "stream", "-D", str(directory)]
        words += ["-s", ",".join(map(str, fds)), operation, "--", *command]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=fds)

    # The restore must not begin before the pids are free.
    gone = folder / "gone"
    wait = f'until [ -e {gone} ]; do sleep 0.05; done; exec "$@"'
    restore = ["sh", "-c", wait, "sh", *criu.restore_command(target, "--stream")]
    dump = criu.dump_command(process.pid, source, "--stream")
    capturing = helper("capture", [write for _, write in pipes], source, dump)
    serving = helper("serve", [read for read, _ in pipes], target, restore)
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)
    assert capturing.wait(300) == 0
    wait_until_gone(*everybody)
    gone.touch()
    assert serving.wait(300) == 0
    process.check()
