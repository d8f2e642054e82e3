"""What a dump leaves behind ``helperd stream capture``: all of it, or nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helperd.errors import EXIT_IMAGE, EXIT_OK, EXIT_PROTOCOL, EXIT_SIGNAL_BASE, EXIT_USAGE
from helperd.images.directory import ImageDirectory
from helperd.images.fields import encode_varint
from helperd.images.inventory import Schema
from helperd.images.mappings import read_mappings
from helperd.offline.check import check_directories
from helperd.streamer.endpoint import HOLD_SOCKET
from helperd.wire.stream import encode_request
from tests.images.checkpoints import content_of, levels_of, memory_of
from tests.streamer.criu import Dumper, files_of, interleave, streamer, write_all

PLAIN = ["py-heap", "tree"]


def capture(
    files: dict[str, bytes], target: Path, *words: object, piece: int | None = None
) -> Path:
    """Dump files as CRIU does into ``target``."""
    sockets = target.parent / f"{target.name}.sock"
    target.mkdir()
    with streamer("-D", sockets, "--to", target, *words, "capture") as running:
        running.until("socket-init")
        criu = Dumper(sockets)
        if piece is None:
            criu.send(files)
        else:
            inventory = files.pop("inventory.img")
            interleave(criu, files, piece)
            criu.send({"inventory.img": inventory})
        criu.end()
        assert running.end() == (EXIT_OK, "")
    assert not list(sockets.iterdir())
    return target


def assert_whole(folder: Path, captured: Path) -> None:
    """Check that a capture holds what the checkpoint in ``folder`` does."""
    report = check_directories([str(captured)], threads=1)
    assert not report.problems
    images, got = ImageDirectory(str(folder)), ImageDirectory(str(captured))
    assert got.pids == images.pids
    assert got.shmem_ids == images.shmem_ids
    for pid in images.pids:
        assert memory_of(captured, pid=pid) == memory_of(folder, pid=pid)
    for shmem_id in images.shmem_ids:
        assert memory_of(captured, shmem_id=shmem_id) == memory_of(folder, shmem_id=shmem_id)


@pytest.mark.parametrize("archive", [*PLAIN, "criu-region256k"])
def test_files_are_stored_as_they_are(image_archive, tmp_path, archive):
    folder = levels_of(image_archive(archive))[-1]
    files = files_of(folder)
    captured = capture(dict(files), tmp_path / "images")
    assert content_of(captured) == files


@pytest.mark.parametrize("schema", ["sizes", "blocks"])
@pytest.mark.parametrize(
    "words", [("--compress", "page"), ("--region", "256K")], ids=["page", "256K"]
)
@pytest.mark.parametrize("archive", PLAIN)
def test_pages_are_compressed(image_archive, tmp_path, archive, words, schema):
    folder = levels_of(image_archive(archive))[-1]
    captured = capture(files_of(folder), tmp_path / "images", *words, "--schema", schema)
    assert_whole(folder, captured)
    images = ImageDirectory(str(captured))
    assert images.schema is Schema(schema)
    for pid in images.pids:
        entries = images.pagemap(pid=pid).entries
        # Raw blocks alone have no table in the blocks schema.
        stored = [entry for entry in entries if entry.present and not entry.is_raw]
        assert all(entry.sizes is not None for entry in stored)
        assert {entry.region_pages for entry in stored} == {0 if words[0] == "--compress" else 64}
    for shmem_id in images.shmem_ids:
        assert all(entry.sizes is None for entry in images.pagemap(shmem_id=shmem_id).entries)


def test_blocks_end_where_mappings_end(image_archive, tmp_path):
    folder = levels_of(image_archive("tree"))[-1]
    captured = capture(files_of(folder), tmp_path / "images", "--region", "256K")
    images = ImageDirectory(str(captured))
    for pid in images.pids:
        mappings = read_mappings(str(folder / f"mm-{pid}.img"))
        assert mappings
        for entry in images.pagemap(pid=pid).entries:
            assert any(m.start <= entry.vaddr and entry.end <= m.end for m in mappings)


def _with_huge_pages(files: dict[str, bytes]) -> dict[str, bytes]:
    """Say that all memory is in mappings of huge pages."""
    name = next(name for name in files if name.startswith("mm-"))
    mapping = b"\x08\0\x10" + encode_varint(1 << 47) + b"\x30" + encode_varint(0x40022)
    record = bytes((14 << 3 | 2, len(mapping))) + mapping
    return {**files, name: files[name][:8] + len(record).to_bytes(4, "little") + record}


def test_huge_pages_stay_raw(image_archive, tmp_path):
    """Where the mappings are known in time; else merged CRIU is not given what it refuses."""
    folder = levels_of(image_archive("py-heap"))[-1]
    files = _with_huge_pages(files_of(folder))
    words = ("--region", "64K", "--schema", "blocks")
    captured = capture(files, tmp_path / "images", *words)
    (pid,) = ImageDirectory(str(captured)).pids
    assert memory_of(captured, pid=pid) == memory_of(folder, pid=pid)
    entries = ImageDirectory(str(captured)).pagemap(pid=pid).entries
    assert all(entry.sizes is None for entry in entries)
    (tmp_path / "other").mkdir()
    words = ("--compress", "page", "--schema", "blocks")
    with streamer("-D", tmp_path / "s", "--to", tmp_path / "other", *words, "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        criu.send(files)
        criu.end()
        code, said = running.end()
    assert code == EXIT_IMAGE
    assert "--region" in said
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("words", [(), ("--compress", "page"), ("--region", "16K")])
def test_pipes_are_drained_side_by_side(image_archive, tmp_path, words):
    """All files under way at once, each pipe filled as far as it goes: nobody waits for anybody."""
    folder = levels_of(image_archive("py-heap"))[-1]
    captured = capture(files_of(folder), tmp_path / "images", *words, piece=5000)
    assert_whole(folder, captured)


def test_nothing_is_kept_of_a_dump_that_fails(image_archive, tmp_path):
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    del files["inventory.img"]
    (tmp_path / "images").mkdir()
    with streamer("-D", tmp_path / "s", "--to", tmp_path / "images", "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        criu.send(files)
        criu.end()
        code, said = running.end()
    assert code == EXIT_PROTOCOL
    assert "inventory.img" in said
    _one_line(said)
    assert not list((tmp_path / "images").iterdir())
    assert not list((tmp_path / "s").iterdir())


def test_a_signal_ends_a_capture_that_waits_for_pages(tmp_path):
    target = tmp_path / "images"
    target.mkdir()
    words = ("-D", tmp_path / "s", "--to", target, "--compress", "page", "capture")
    with streamer(*words) as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        pipes = [criu.begin("pagemap-7.img"), criu.begin("pages-1.img")]
        write_all(pipes[1], bytes(5000))
        running.until("checkpoint-start")
        running.process.terminate()
        assert running.end() == (EXIT_SIGNAL_BASE + signal.SIGTERM, "")
    with pytest.raises(BrokenPipeError):
        os.write(pipes[1], b"x")
    for pipe in pipes:
        os.close(pipe)
    assert not list(target.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "core-7.img").write_bytes(b"precious")
    with streamer("-D", tmp_path / "s", "--to", tmp_path / "images", "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        os.close(criu.begin("core-7.img"))
        code, said = running.end()
    assert code == EXIT_IMAGE
    _one_line(said)
    assert content_of(tmp_path / "images") == {"core-7.img": b"precious"}


@pytest.mark.parametrize(
    "sent",
    [
        encode_request("../evil") + b"\0",
        encode_request("a.img") + b"\0",
        encode_request("a.img")[:-1],
        b"\xff\xff\xff\x7f",
        b"\4\0\0\0\0\0\0\0",
    ],
    ids=["name", "no pipe", "cut off", "too long", "no message"],
)
def test_bad_requests_end_the_capture(tmp_path, sent):
    (tmp_path / "images").mkdir()
    with streamer("-D", tmp_path / "s", "--to", tmp_path / "images", "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        criu.socket.sendall(sent)
        criu.socket.shutdown(socket.SHUT_WR)
        code, said = running.end()
    assert code == EXIT_PROTOCOL
    _one_line(said)
    assert not list(tmp_path.rglob("*.img"))
    assert not list((tmp_path / "s").iterdir())


def test_a_file_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with streamer("-D", tmp_path / "s", "--to", tmp_path / "images", "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        criu.send({"a.img": b"1"})
        os.close(criu.begin("a.img"))
        code, said = running.end()
    assert code == EXIT_IMAGE
    assert "second time" in said
    _one_line(said)


@pytest.mark.parametrize("words", [(), ("--compress", "page"), ("--region", "256K")])
def test_processes_are_held_until_the_images_are_on_disk(image_archive, tmp_path, words):
    """The script that CRIU runs ends when the images are in effect, not before."""
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    script = tmp_path / "criu"
    # Stands for CRIU: runs the action script that it was given, in the name of the test.
    script.write_text(
        "#!/bin/sh\nfor word; do last=$word; done\n"
        f'mkfifo "{tmp_path}/go"; cat "{tmp_path}/go"\n'
        'CRTOOLS_SCRIPT_ACTION=pre-dump "$last" || exit 9\n'
        f'CRTOOLS_SCRIPT_ACTION=post-dump "$last"; echo $? > "{tmp_path}/said"\n'
    )
    script.chmod(0o755)
    target = tmp_path / "images"
    words = ("-D", target, *words, "capture", "--", script, "dump", "--stream", "-D", "{}")
    with streamer(*words) as running:
        running.until("socket-init")
        criu = Dumper(target)
        criu.send(files)
        with open(tmp_path / "go", "w"):
            pass
        # CRIU closes the connection behind the script only.
        assert running.end() == (EXIT_OK, "")
    assert (tmp_path / "said").read_text() == "0\n"
    assert set(files) <= set(content_of(target))
    assert not (target / HOLD_SOCKET).exists()


def test_processes_live_on_when_images_cannot_be_stored(image_archive, tmp_path):
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    mappings = next(name for name in files if name.startswith("mm-"))
    del files[mappings]  # without it no regions can be made
    script = tmp_path / "criu"
    script.write_text(
        "#!/bin/sh\nfor word; do last=$word; done\n"
        f'mkfifo "{tmp_path}/go"; cat "{tmp_path}/go"\n'
        f'CRTOOLS_SCRIPT_ACTION=post-dump "$last" 2> "{tmp_path}/why"\n'
        f'echo $? > "{tmp_path}/said"; exit 1\n'
    )
    script.chmod(0o755)
    target = tmp_path / "images"
    words = ("-D", target, "--region", "64K", "capture", "--", script, "dump", "--stream")
    with streamer(*words) as running:
        running.until("socket-init")
        Dumper(target).send(files)
        with open(tmp_path / "go", "w"):
            pass
        code, said = running.end()
    assert code == EXIT_IMAGE
    assert mappings in said
    assert (tmp_path / "said").read_text() != "0\n"
    assert not list(target.iterdir())


def test_a_dump_that_criu_calls_failed_is_not_kept(image_archive, tmp_path):
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    target = tmp_path / "images"
    go = tmp_path / "go"
    os.mkfifo(go)
    words = ("-D", target, "--no-hold", "capture", "--", "sh", "-c", f"cat {go}; exit 5")
    with streamer(*words) as running:
        running.until("socket-init")
        criu = Dumper(target)
        criu.send(files)
        criu.end()
        with open(go, "w"):
            pass
        code, said = running.end()
    assert code == 5
    _one_line(said)
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("capture", "--tcp-listen-remap", "1:2"),
        ("serve", "--to", "x"),
        ("capture", "--region", "5000"),
        ("capture", "--region", "8M"),
        ("capture", "--compress", "page", "--region", "8K"),
        ("capture", "-s", "x"),
        ("capture", "-s", "999"),
        ("capture", "-e", "a"),
        ("serve", "-e", "a/b:1"),
        ("serve", "--tcp-listen-remap", "1:70000"),
        ("serve", "--threads", "1000"),
        ("serve", "--clients", "-1"),
        ("extract", "--", "true"),
    ],
)
def test_calls_that_make_no_sense(tmp_path, words):
    words = (sys.executable, "-m", "helperd", "stream", "-D", str(tmp_path / "s"), *words)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USAGE
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("threads", [2, 64])
def test_a_large_capture_takes_little_memory(tmp_path, threads):
    """The memory is that of a few pieces, not of the image; a byte of it in 4096 is a table."""
    size = 96 << 20
    target = tmp_path / "images"
    target.mkdir()
    words = ("-D", tmp_path / "s", "--to", target, "--compress", "page", "--threads", threads)
    with streamer(*words, "capture") as running:
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        pagemap = criu.begin("pagemap-7.img")
        pages = criu.begin("pages-1.img")
        piece = b"".join(i.to_bytes(4, "little") for i in range(1 << 18))
        for _ in range(size // len(piece)):
            write_all(pages, piece)
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        os.close(pages)
        os.close(pagemap)
        criu.end()
        assert running.end()[0] == EXIT_PROTOCOL
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 64 << 10


def _one_line(said: str) -> None:
    assert said.startswith("helperd: ")
    assert said.count("\n") == 1
