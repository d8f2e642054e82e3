"""Images in shards: what goes in comes out, and what is no image is refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.errors import EXIT_OK, EXIT_PROTOCOL
from helperd.wire.shards import Kind, Marker, encode_marker
from tests.images.checkpoints import content_of, levels_of
from tests.streamer.criu import Dumper, Restorer, files_of, read_all, streamer, write_all
from tests.streamer.test_capture import assert_whole
from tests.streamer.test_serve import assert_same_memory

MARKER = struct.Struct("<I")


def shards_of(files: dict[str, bytes], n_shards: int, seed: int = 1) -> list[bytes]:
    """Return shards as criu-image-streamer writes them: files interleaved, chunks anywhere."""
    rnd = random.Random(seed)
    shards = [bytearray() for _ in range(n_shards)]
    seq = 0
    current = None

    def put(kind: Kind, name: str = "", content: bytes = b"") -> None:
        nonlocal seq
        marker = encode_marker(Marker(seq, kind, name, len(content)))
        rnd.choice(shards).extend(marker + content)
        seq += 1

    waiting = [name for name in files if name != "inventory.img"]
    left = {name: memoryview(content) for name, content in files.items()}
    begun: list[str] = []
    while waiting or begun:
        if waiting and (not begun or rnd.random() < 0.5):
            begun.append(waiting.pop(0))
        name = rnd.choice(begun)
        if name != current:
            put(Kind.NAME, name)
            current = name
        chunk, left[name] = left[name][:60000], left[name][60000:]
        if chunk:
            put(Kind.DATA, content=bytes(chunk))
        else:
            put(Kind.FILE_EOF)
            begun.remove(name)
            current = None
    if "inventory.img" in files:
        put(Kind.NAME, "inventory.img")
        put(Kind.DATA, content=files["inventory.img"])
        put(Kind.FILE_EOF)
    put(Kind.IMAGE_EOF)
    return [bytes(shard) for shard in shards]


@contextlib.contextmanager
def fed(shards: list[bytes]) -> Iterator[list[int]]:
    """Give the read ends of pipes that the shards come from, each at its own pace."""
    pipes = [os.pipe() for _ in shards]

    def feed(pipe: int, shard: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            write_all(pipe, shard)
        os.close(pipe)

    threads = [
        threading.Thread(target=feed, args=(write_end, shard))
        for (_, write_end), shard in zip(pipes, shards, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield [read_end for read_end, _ in pipes]
    finally:
        for read_end, _ in pipes:
            with contextlib.suppress(OSError):
                os.close(read_end)
        for thread in threads:
            thread.join()


def extract(shards: list[bytes], target: Path, *words: object) -> tuple[int, str, list[str]]:
    """Return the exit status, what was said, and the progress of an extraction."""
    with fed(shards) as pipes:
        fds = ",".join(map(str, pipes))
        with streamer("-D", target, "-s", fds, *words, "extract") as running:
            for pipe in pipes:
                os.close(pipe)
            lines = []
            while line := running.line():
                lines.append(line)
            return *running.end(), lines


@pytest.mark.parametrize("n_shards", [1, 4])
@pytest.mark.parametrize("archive", ["tree", "criu-region256k"])
def test_shards_are_extracted(image_archive, tmp_path, archive, n_shards):
    files = files_of(levels_of(image_archive(archive))[-1])
    shards = shards_of(files, n_shards)
    code, said, lines = extract(shards, tmp_path / "images")
    assert (code, said) == (EXIT_OK, "")
    assert content_of(tmp_path / "images") == files
    (line,) = lines
    assert [shard["size"] for shard in json.loads(line)["shards"]] == list(map(len, shards))


@pytest.mark.parametrize("words", [("--compress", "page"), ("--region", "256K")])
@pytest.mark.parametrize("n_shards", [1, 4])
def test_shards_are_compressed_when_extracted(image_archive, tmp_path, words, n_shards):
    folder = levels_of(image_archive("tree"))[-1]
    shards = shards_of(files_of(folder), n_shards)
    assert extract(shards, tmp_path / "images", *words)[:2] == (EXIT_OK, "")
    assert_whole(folder, tmp_path / "images")


@pytest.mark.parametrize("n_shards", [1, 4])
@pytest.mark.parametrize("words", [(), ("--compress", "page"), ("--region", "256K")])
def test_a_capture_is_extracted_again(image_archive, tmp_path, words, n_shards):
    folder = levels_of(image_archive("tree"))[-1]
    pipes = [os.pipe() for _ in range(n_shards)]
    fds = ",".join(str(write_end) for _, write_end in pipes)
    shards = [b""] * n_shards

    def collect(index: int) -> None:
        shards[index] = read_all(pipes[index][0])

    threads = [threading.Thread(target=collect, args=(index,)) for index in range(n_shards)]
    for thread in threads:
        thread.start()
    with streamer("-D", tmp_path / "s", "-s", fds, *words, "capture") as running:
        for _, write_end in pipes:
            os.close(write_end)
        assert running.line() == "socket-init"
        criu = Dumper(tmp_path / "s")
        files = files_of(folder)
        criu.send({"cpuinfo.img": b""})
        criu.send(files)
        criu.end()
        assert running.line() == "checkpoint-start"
        sizes = [shard["size"] for shard in json.loads(running.line())["shards"]]
        assert running.end() == (EXIT_OK, "")
    for thread in threads:
        thread.join()
    assert sizes == list(map(len, shards))
    assert extract(shards, tmp_path / "images")[:2] == (EXIT_OK, "")
    if not words:
        assert content_of(tmp_path / "images") == {**files, "cpuinfo.img": b""}
    assert_whole(folder, tmp_path / "images")


@pytest.mark.parametrize("archive", ["tree", "criu-perpage"])
def test_shards_are_served(image_archive, tmp_path, archive):
    """CRIU asks first for what comes last, so all of it waits on disk, and is gone afterwards."""
    folder = levels_of(image_archive(archive))[-1]
    sockets, served = tmp_path / "s", tmp_path / "served"
    served.mkdir()
    with fed(shards_of(files_of(folder), 4)) as pipes:
        fds = ",".join(map(str, pipes))
        with streamer("-D", sockets, "-s", fds, "serve") as running:
            assert json.loads(running.line())["shards"]
            assert running.line() == "socket-init"
            criu = Restorer(sockets)
            for name in files_of(folder):
                (served / name).write_bytes(criu.read(name) or b"")
            criu.end()
            assert running.end() == (EXIT_OK, "")
    assert_same_memory(folder, served)
    assert not list(sockets.iterdir())


def test_further_files_travel_along(image_archive, tmp_path):
    """Files that are not CRIU's, such as a tar of the file system, from and to descriptors."""
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    tar = random.Random(2).randbytes(300_000)
    with fed(shards_of({"fs.tar": tar, **files}, 2)) as pipes:
        read_end, write_end = os.pipe()
        found = []
        thread = threading.Thread(target=lambda: found.append(read_all(read_end)))
        thread.start()
        words = ("-D", tmp_path / "images", "-s", ",".join(map(str, pipes)))
        with streamer(*words, "-e", f"fs.tar:{write_end}", "extract") as running:
            os.close(write_end)
            assert running.end() == (EXIT_OK, "")
        thread.join()
    assert found == [tar]
    assert content_of(tmp_path / "images") == files

    shard_out, shard_in = os.pipe()
    with fed([tar]) as (source,):
        shards = []
        thread = threading.Thread(target=lambda: shards.append(read_all(shard_out)))
        thread.start()
        words = ("-D", tmp_path / "s", "-s", shard_in, "-e", f"fs.tar:{source}")
        with streamer(*words, "capture") as running:
            os.close(shard_in)
            running.until("socket-init")
            criu = Dumper(tmp_path / "s")
            criu.send(files)
            criu.end()
            assert running.end() == (EXIT_OK, "")
        thread.join()
    assert extract(shards, tmp_path / "again")[:2] == (EXIT_OK, "")
    assert content_of(tmp_path / "again") == {**files, "fs.tar": tar}


def _name(seq: int, name: str) -> bytes:
    return encode_marker(Marker(seq, Kind.NAME, name))


def _data(seq: int, content: bytes) -> bytes:
    return encode_marker(Marker(seq, Kind.DATA, size=len(content))) + content


def _eof(seq: int) -> bytes:
    return encode_marker(Marker(seq, Kind.FILE_EOF))


def _end(seq: int) -> bytes:
    return encode_marker(Marker(seq, Kind.IMAGE_EOF))


@pytest.mark.parametrize(
    "shards",
    [
        [b""],
        [_name(0, "a.img")],
        [_name(0, "a.img") + _data(1, b"12345")[:-2]],
        [_name(0, "a.img")[:-1]],
        [_name(0, "a.img")[:2]],
        [_data(0, b"1")],
        [_name(0, "a.img") + _eof(2) + _end(1)],
        [_name(0, "a.img") + _eof(0) + _end(1)],
        [_name(0, "a.img") + _end(1)],
        [_name(0, "a.img") + _eof(1) + _name(2, "a.img") + _eof(3) + _end(4)],
        [_name(0, "../a.img") + _eof(1) + _end(2)],
        [_name(0, "a.img") + _eof(1) + _end(2) + _name(3, "b.img")],
        [_name(0, "a.img") + _eof(1) + _end(2) + b"\0"],
        [MARKER.pack(10 << 10) + bytes(10 << 10)],
        [MARKER.pack(0)],
        [b"\x04\x22\x4d\x18 compressed"],
        [_name(0, "a.img"), _eof(0)],
        [_name(0, "a.img"), b""],
        [_name(0, "a.img") + _eof(1), _name(4, "b.img")],
    ],
)
def test_what_is_no_image_is_refused(tmp_path, shards):
    code, said, _ = extract(shards, tmp_path / "images")
    assert code == EXIT_PROTOCOL
    assert said.startswith("helperd: ")
    assert said.count("\n") == 1
    assert not list((tmp_path / "images").iterdir())


def test_shards_that_nobody_reads_are_noticed(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with streamer("-D", tmp_path / "s", "-s", write_end, "capture") as running:
        os.close(write_end)
        running.until("socket-init")
        criu = Dumper(tmp_path / "s")
        os.close(criu.begin("a.img"))
        code, said = running.end()
    assert code == EXIT_PROTOCOL
    assert said.count("\n") == 1


def test_helperd_answers_to_the_name_criu_image_streamer(image_archive, tmp_path):
    """Started under that name, with its options in its order, it is a drop-in for it."""
    files = files_of(levels_of(image_archive("py-heap"))[-1])
    program = tmp_path / "criu-image-streamer"
    program.symlink_to(Path(sys.executable).parent / "helperd")
    subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
    progress, write_end = os.pipe()
    words = [program, "--images-dir", tmp_path / "x", "--progress-fd", str(write_end), "extract"]
    (shard,) = shards_of(files, 1)
    done = subprocess.run(words, input=shard, pass_fds=[write_end], check=True, capture_output=True)
    os.close(write_end)
    assert json.loads(read_all(progress))["shards"][0]["size"] == len(shard)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert content_of(tmp_path / "x") == files
