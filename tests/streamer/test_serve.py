"""What a restore gets from ``helperd stream serve``: the dumped memory, from images of any kind."""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_IMAGE, EXIT_OK, EXIT_PROTOCOL
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY, PE_PARENT, PagemapEntry
from helperd.offline.compress import compress_directory
from helperd.wire.stream import encode_request
from tests.images.checkpoints import Builder, clone, levels_of, memory_of
from tests.streamer.criu import Restorer, read_all, streamer

ARCHIVES = ["py-heap", "tree", "criu-perpage", "criu-region256k", "criu-fragmented"]
CHAINS = ["incremental", "incremental-criu317"]


def restore(folder: Path, target: Path, *words: object) -> Path:
    """Ask for everything as CRIU does, and put what comes into ``target``."""
    sockets = target.parent / f"{target.name}.sock"
    target.mkdir()
    with streamer("-D", sockets, "--from", folder, *words, "serve") as serve:
        serve.until("socket-init")
        criu = Restorer(sockets)
        for name in ["inventory.img", *sorted(os.listdir(folder))]:
            if name != "inventory.img" or not (target / name).exists():
                _ask(criu, name, target)
        assert criu.read("no-such.img") is None
        criu.end()
        assert serve.end() == (EXIT_OK, "")
    assert not list(sockets.iterdir())
    return target


def _ask(criu: Restorer, name: str, target: Path) -> None:
    # As CRIU does: a pagemap and its pages are open at the same time, the pagemap read first.
    if not name.endswith(".img") or name.startswith("pages-") or (target / name).exists():
        return
    content = criu.read(name)
    assert content is not None, name
    (target / name).write_bytes(content)
    if name.startswith("pagemap-"):
        pages = f"pages-{content[13]}.img"
        found = criu.read(pages)
        if found is not None:
            (target / pages).write_bytes(found)


def assert_same_memory(folder: Path, served: Path) -> None:
    """Check that a stock CRIU has got all memory of the checkpoint in ``folder``."""
    images, plain = ImageDirectory(str(folder)), ImageDirectory(str(served))
    assert plain.schema is Schema.NONE
    assert plain.pids == images.pids
    for pid in images.pids:
        assert memory_of(served, pid=pid) == memory_of(folder, pid=pid)
        assert not any(entry.in_parent for entry in plain.pagemap(pid=pid).entries)
    for shmem_id in images.shmem_ids:
        assert memory_of(served, shmem_id=shmem_id) == memory_of(folder, shmem_id=shmem_id)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_any_image_is_served_as_a_plain_one(image_archive, tmp_path, archive):
    folder = levels_of(image_archive(archive))[-1]
    served = restore(folder, tmp_path / "served")
    assert_same_memory(folder, served)
    for path in folder.iterdir():
        if path.suffix == ".img" and not path.name.startswith(("pages-", "pagemap-", "inventory")):
            assert (served / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("schema", [Schema.NONE, Schema.SIZES, Schema.BLOCKS])
@pytest.mark.parametrize("region", [0, 256 << 10])
@pytest.mark.parametrize("archive", CHAINS)
def test_chains_are_flattened(image_archive, tmp_path, archive, region, schema):
    images = clone(image_archive(archive) / "images", tmp_path / "images")
    levels = sorted(path.parent for path in images.rglob("inventory.img"))
    if schema is not Schema.NONE:
        for level in levels:
            compress_directory(str(level), in_place=True, region_bytes=region, schema=schema)
    assert_same_memory(levels[-1], restore(levels[-1], tmp_path / "served"))


def test_parts_of_regions_are_served(tmp_path):
    """Pages out of the middle of a parent's blocks, in turn with the child's own."""
    old = b"".join(bytes([1 + page % 200]) * 4096 for page in range(96))
    Builder(tmp_path / "0", schema=Schema.SIZES).add(100, old, region=64).write()
    top = Builder(tmp_path / "1", schema=Schema.SIZES)
    for page in range(100, 196, 6):
        top.refer(page, 3).add(page + 3, bytes([255]) * 4096 + bytes(4096), region=0)
        top.refer(page + 5, 1)
    folder = top.write(parent="../0")
    assert_same_memory(folder, restore(folder, tmp_path / "served"))


@pytest.mark.parametrize("region", [0, 64])
def test_buffers_are_not_used_again_while_the_pipe_holds_them(tmp_path, region):
    """A reader that lags by all that the pipe holds finds what was meant for it."""
    content = b"".join(page.to_bytes(8, "little") * 512 for page in range(20_000))
    folder = Builder(tmp_path / "0", schema=Schema.SIZES).add(16, content, region=region).write()
    with streamer("-D", tmp_path / "s", "--from", folder, "serve") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        criu.read("inventory.img")
        criu.read("pagemap-7.img")
        pipe = criu.begin("pages-1.img")
        got = bytearray()
        while part := os.read(pipe, 4096 * 3 + 8):
            got += part
        os.close(pipe)
        criu.end()
        assert serve.end() == (EXIT_OK, "")
    assert bytes(got) == content


@pytest.mark.parametrize("region", [0, 64])
def test_zero_pages_among_others_are_served(tmp_path, region):
    """Those that are stored as nothing, and those that turn out to be zero, whole jobs of them."""
    rnd = random.Random(3)
    kinds = (bytes(4096), rnd.randbytes(4096), b"some text " * 409 + b"......")
    content = b"".join(rnd.choice(kinds) for _ in range(2000)) + bytes(700 * 4096)
    folder = Builder(tmp_path / "0", schema=Schema.SIZES).add(16, content, region=region).write()
    assert_same_memory(folder, restore(folder, tmp_path / "served"))


def test_many_pipes_at_once_take_little_memory(tmp_path):
    """As when all processes of a large tree read their pages at the same time."""
    content = {}
    for pid in range(1, 41):
        pages = [bytes([pid]) * 4000 + page.to_bytes(96, "little") for page in range(1200)]
        content[pid] = b"".join(pages)
        builder = Builder(tmp_path / "0", schema=Schema.SIZES, pid=pid, pages_id=pid)
        builder.add(16, content[pid], region=16).write()
    with streamer("-D", tmp_path / "s", "--from", tmp_path / "0", "serve") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        pipes = {}
        for pid in content:
            assert criu.read(f"pagemap-{pid}.img")
            pipes[pid] = criu.begin(f"pages-{pid}.img")
        found = {pid: os.read(pipe, 1) for pid, pipe in pipes.items()}
        status = Path(f"/proc/{serve.process.pid}/status").read_text()
        for pid, pipe in pipes.items():
            assert found[pid] + read_all(pipe) == content[pid]
        criu.end()
        assert serve.end() == (EXIT_OK, "")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 128 << 10


def test_two_clients_are_served_at_once(image_archive, tmp_path):
    folder = levels_of(image_archive("criu-region256k"))[-1]
    name = ImageDirectory(str(folder)).pagemap_names[0]
    with streamer("-D", tmp_path, "--from", folder, "--clients", 2, "serve") as serve:
        serve.until("socket-init")
        first, second = Restorer(tmp_path), Restorer(tmp_path)
        maps = [criu.read(name) for criu in (first, second)]
        assert maps[0] == maps[1]
        pages = f"pages-{maps[0][13]}.img"
        pipes = [criu.begin(pages) for criu in (first, second)]
        found = [b"", b""]

        def take(index):
            found[index] = read_all(pipes[index])

        threads = [threading.Thread(target=take, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1]
        first.end()
        second.end()
        assert serve.end() == (EXIT_OK, "")


def _serve(folder: Path, sockets: Path):
    return streamer("-D", sockets, "--from", folder, "serve")


def _one_line(said: str) -> None:
    assert said.startswith("helperd: ")
    assert said.count("\n") == 1


@pytest.fixture
def folder(image_archive, tmp_path):
    return clone(levels_of(image_archive("criu-region256k"))[-1], tmp_path / "images")


def test_a_file_is_not_sent_twice(folder, tmp_path):
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        assert criu.read("inventory.img")
        criu.socket.sendall(encode_request("inventory.img"))
        assert criu.socket.recv(1) == b""
        code, said = serve.end()
    assert code == EXIT_PROTOCOL
    assert "second time" in said
    _one_line(said)


@pytest.mark.parametrize("name", ["../secret", "a/b", "/etc/passwd", ".", ".helperd"])
def test_nothing_outside_is_sent(folder, tmp_path, name):
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        criu.socket.sendall(encode_request(name))
        assert criu.socket.recv(1) == b""
        code, said = serve.end()
    assert code == EXIT_PROTOCOL
    _one_line(said)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("kind", ["pages", "file"])
def test_a_pipe_that_is_closed_early(folder, tmp_path, kind, goes_on):
    """CRIU does not want all of everything: a restore that goes on is none that has died."""
    (folder / "ghost.img").write_bytes(bytes(8 << 20))
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        name = ImageDirectory(str(folder)).pagemap_names[0]
        pagemap = criu.read(name)
        pipe = criu.begin(f"pages-{pagemap[13]}.img" if kind == "pages" else "ghost.img")
        os.read(pipe, 1)
        os.close(pipe)
        if goes_on:
            assert criu.read("inventory.img")
        criu.end()
        code, said = serve.end()
    assert not list((tmp_path / "s").iterdir())
    if goes_on:
        assert (code, said) == (EXIT_OK, "")
    else:
        assert code == EXIT_PROTOCOL
        _one_line(said)


def test_a_restore_that_leaves_inside_a_request_is_noticed(folder, tmp_path):
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        criu.socket.sendall(encode_request("inventory.img")[:-2])
        criu.end()
        code, said = serve.end()
    assert code == EXIT_PROTOCOL
    _one_line(said)


@pytest.mark.parametrize("what", ["file", "wrong end", "nothing"])
def test_what_is_no_pipe_is_refused(folder, tmp_path, what):
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        criu.socket.sendall(encode_request("inventory.img"))
        criu.socket.recv(100)
        read_end, write_end = os.pipe()
        precious = tmp_path / "precious"
        precious.write_bytes(b"precious")
        with open(precious, "r+b") as file:
            fds = {"file": [file.fileno()], "wrong end": [read_end], "nothing": []}[what]
            socket.send_fds(criu.socket, [b"\0"], fds)
            code, said = serve.end()
        os.close(read_end)
        os.close(write_end)
    assert code == EXIT_PROTOCOL
    _one_line(said)
    assert precious.read_bytes() == b"precious"


def test_a_corrupt_block_ends_the_restore(folder, tmp_path):
    images = ImageDirectory(str(folder))
    pagemap = images.pagemap_by_name(images.pagemap_names[0])
    entry = next(e for e in pagemap.entries if e.sizes and 0 < e.sizes[0] < 4096 * e.block_pages)
    with open(folder / pagemap.pages_name, "r+b") as file:
        file.seek(entry.offset)
        file.write(b"\xff" * min(64, entry.sizes[0]))
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        criu = Restorer(tmp_path / "s")
        criu.read("inventory.img")
        assert criu.read(images.pagemap_names[0])
        got = criu.read(pagemap.pages_name)
        assert len(got) < 4096 * pagemap.n_pages
        code, said = serve.end()
    assert code == EXIT_IMAGE
    assert pagemap.pages_name in said
    _one_line(said)


@pytest.mark.parametrize("broken", ["no inventory", "short pages", "no pages"])
def test_a_broken_image_is_told(folder, tmp_path, broken):
    images = ImageDirectory(str(folder))
    name = images.pagemap_names[0]
    pages = folder / images.pagemap_by_name(name).pages_name
    if broken == "no inventory":
        (folder / "inventory.img").unlink()
    elif broken == "short pages":
        os.truncate(pages, 4096)
    else:
        pages.unlink()
    with _serve(folder, tmp_path / "s") as serve:
        if broken != "no inventory":
            serve.until("socket-init")
            criu = Restorer(tmp_path / "s")
            criu.read("inventory.img")
            criu.socket.sendall(encode_request(name))
            assert criu.socket.recv(1) == b""
        code, said = serve.end()
    assert code == EXIT_IMAGE
    _one_line(said)


def test_sigterm_leaves_nothing(folder, tmp_path):
    with _serve(folder, tmp_path / "s") as serve:
        serve.until("socket-init")
        serve.process.terminate()
        assert serve.end()[0] == 128 + 15
    assert not list((tmp_path / "s").iterdir())


def test_a_program_that_never_connects_is_its_own_error(folder):
    with streamer("-D", folder, "serve", "--", "sh", "-c", "exit 3") as serve:
        code, said = serve.end()
    assert code == 3
    _one_line(said)
    assert not (folder / "streamer-serve.sock").exists()


def test_ports_are_remapped_only_where_something_listens(tmp_path):
    folder = Builder(tmp_path / "0").add(1, bytes(4096)).write()
    listener = bytes.fromhex("08051007180220012806300a38901f4000")
    other = bytes.fromhex("08061008180220012806300138901f4000")
    records = [b"\x08\x02\x10\x01\x22" + bytes([len(isk)]) + isk for isk in (listener, other)]
    magic = bytes.fromhex("1943565438313056")
    framed = b"".join(len(r).to_bytes(4, "little") + r for r in records)
    (folder / "files.img").write_bytes(magic + framed)
    served = restore(folder, tmp_path / "served", "--tcp-listen-remap", "3984:80")
    expected = (magic + framed).replace(bytes.fromhex("300a38901f"), bytes.fromhex("300a3850"))
    old_length, new_length = bytes([len(listener)]), bytes([len(listener) - 1])
    first = 4 + 4
    got = (served / "files.img").read_bytes()
    assert len(got) == len(expected)
    assert got[first : first + 4] == (len(records[0]) - 1).to_bytes(4, "little")
    assert got.count(new_length + listener[:2]) == 1
    assert old_length + other in got
    shutil.rmtree(served)
    with streamer(
        "-D", tmp_path / "s", "--from", folder, "--tcp-listen-remap", "81:80", "serve"
    ) as serve:
        code, said = serve.end()
    assert code == EXIT_IMAGE
    assert "3984" in said
    _one_line(said)


def test_what_a_daemon_brings_is_not_streamed(image_archive, tmp_path):
    """Entries that only ``--lazy-pages`` can restore, and the rest of the pages."""
    folder = levels_of(image_archive("criu-region256k"))[-1]
    images = ImageDirectory(str(folder))
    (pid,) = images.pids
    whole = images.pagemap(pid=pid).entries
    with streamer("-D", tmp_path / "s", "--from", folder, "--lazy-pages", "serve") as serve:
        serve.until("socket-init")
        assert (tmp_path / "s" / "lazy-pages.socket").exists()
        criu = Restorer(tmp_path / "s")
        (tmp_path / "inventory.img").write_bytes(criu.read("inventory.img"))
        name = f"pagemap-{pid}.img"
        (tmp_path / name).write_bytes(criu.read(name))
        thin = ImageDirectory(str(tmp_path)).pagemap(pid=pid)
        pages = criu.read(thin.pages_name)
        serve.process.terminate()
        assert serve.end()[0] == 128 + 15
    assert not list((tmp_path / "s").iterdir())
    memory = memory_of(folder, pid=pid)
    eager = [page for e in thin.entries if e.present for page in _pages(e)]
    left = [page for e in thin.entries if not e.present for page in _pages(e)]
    assert left == [page for e in whole if e.flags & PE_LAZY for page in _pages(e)]
    assert all(e.flags == PE_LAZY | PE_PARENT for e in thin.entries if not e.present)
    assert sorted(eager + left) == sorted(memory)
    assert eager
    assert pages == b"".join(memory[page] for page in eager)


def _pages(entry: PagemapEntry) -> range:
    return range(entry.vaddr, entry.end, PAGE_SIZE)
