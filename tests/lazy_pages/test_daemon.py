"""The daemon against a process that does what CRIU's restorer does, without a CRIU."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import struct
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_RESOURCES
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY, PE_PRESENT
from helperd.lazy_pages import guard
from tests.images.checkpoints import Builder
from tests.images.test_chain import page
from tests.lazy_pages.client import BASE_PAGE, Daemon, RestoredProcess, address_of, digest
from tests.support.processes import DEADLINE_SECONDS, children_of, eventually

N_PAGES = 700
ZERO = bytes(PAGE_SIZE)
#: How the images may be: the schema and the pages of a block.
FORMS = [(Schema.NONE, None), (Schema.SIZES, 0), (Schema.SIZES, 64), (Schema.BLOCKS, 16)]


def content(n_pages: int, seed: int = 0) -> bytes:
    """Return pages of all kinds."""
    source = random.Random(seed)
    kinds = [ZERO if source.random() < 0.3 else page(source.randrange(40)) for _ in range(n_pages)]
    return b"".join(kinds)


def images_of(
    folder: Path, memory: bytes, schema: Schema = Schema.NONE, region: int | None = None
) -> Path:
    """Write a dump of one task, 7, all of which is lazy."""
    builder = Builder(folder, schema=schema)
    builder.add(BASE_PAGE, memory, region=region)
    builder.entries[0].flags = PE_PRESENT | PE_LAZY
    return builder.write()


def part(memory: bytes, first: int, n_pages: int = 1) -> str:
    """Return the hash of pages of a memory."""
    return digest(memory[first * PAGE_SIZE : (first + n_pages) * PAGE_SIZE])


@pytest.mark.parametrize(("schema", "region"), FORMS)
def test_all_memory_arrives(tmp_path: Path, schema: Schema, region: int | None) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, schema, region)
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert daemon.wait() == 0
        assert process.read(0, N_PAGES) == digest(memory)
    report = daemon.report()
    assert report["pages_by_fill"] == N_PAGES
    assert report["faults"] == 0


@pytest.mark.parametrize(("schema", "region"), FORMS)
def test_a_fault_brings_its_block(tmp_path: Path, schema: Schema, region: int | None) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, schema, region)
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        # Before the restore is over, too.
        assert process.read(300) == part(memory, 300)
        assert process.do("finish") == "ok"
        assert process.read(0, N_PAGES) == digest(memory)
        assert daemon.wait() == 0
    report = daemon.report()
    blocks = -(-N_PAGES // (16 if region == 16 else 64))
    # A page that is far from the last one comes alone, so its neighbour may be asked for, too.
    assert blocks <= report["faults"] <= blocks + 4
    assert report["pages_by_fault"] == N_PAGES


@pytest.mark.parametrize("around", [1, 5])
def test_as_many_pages_around_a_fault_as_are_asked_for(tmp_path: Path, around: int) -> None:
    memory = content(60)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    options = ("--fill", "never", "--around", str(around))
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, 60)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert process.read(0, 60) == digest(memory)
        assert daemon.wait() == 0
    # The page that was asked for comes first, so the next one may be asked for before the others
    # are there: two faults for so many pages, at the most.
    least = 60 // around
    assert least <= daemon.report()["faults"] <= (least + 1 if around == 1 else 2 * least)


def test_neighbouring_mappings_share_an_entry(tmp_path: Path) -> None:
    memory = content(64)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        for first, n_pages in ((0, 1), (1, 7), (8, 30), (38, 26)):
            process.map(first, n_pages)
            # Of another protection, or they would become one.
            protection = 1 if first % 2 else 3
            assert process.do("protect", address_of(first), n_pages * PAGE_SIZE, protection) == "ok"
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert daemon.wait() == 0
        assert process.read(0, 64) == digest(memory)


def test_memory_that_was_not_dumped_is_zero(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(4))
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, 20)
        process.connect(daemon, 7)
        assert process.read(10) == digest(ZERO)
        assert process.do("finish") == "ok"
        assert process.read(11, 9) == digest(ZERO * 9)
        assert process.read(0, 4) == part(content(4), 0, 4)
        assert daemon.wait() == 0


def test_what_is_thrown_away_does_not_come_back(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory)
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert process.do("dontneed", address_of(100), 200 * PAGE_SIZE) == "ok"
        assert process.do("unmap", address_of(500), 100 * PAGE_SIZE) == "ok"
        assert process.read(90, 10) == part(memory, 90, 10)
        assert process.read(100, 200) == digest(ZERO * 200)
        assert process.read(300, 200) == part(memory, 300, 200)
        # New memory in the old place is nobody's.
        assert process.do("map", address_of(550), 10 * PAGE_SIZE) == "ok"
        assert process.read(550, 10) == digest(ZERO * 10)
        daemon.process.send_signal(signal.SIGTERM)  # Bring the rest.
        assert daemon.wait() == 0
        assert process.read(600, 100) == part(memory, 600, 100)
        assert process.read(100, 200) == digest(ZERO * 200)


def test_memory_that_moves_is_filled_where_it_is(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        move = (address_of(150), 100 * PAGE_SIZE, address_of(2000))
        assert process.do("remap", *move) == "ok"
        assert process.read(2010, 5) == part(memory, 160, 5)
        # And on, a part of it, over other pages that nobody has brought.
        again = (address_of(2050), 20 * PAGE_SIZE, address_of(400))
        assert process.do("remap", *again) == "ok"
        assert process.read(405, 5) == part(memory, 205, 5)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert process.read(2000, 50) == part(memory, 150, 50)
        assert process.read(2070, 30) == part(memory, 220, 30)
        assert process.read(390, 10) == part(memory, 390, 10)
        assert process.read(400, 20) == part(memory, 200, 20)
        assert process.read(420, 280) == part(memory, 420, 280)


def test_a_forked_child_has_what_its_parent_lacked(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory)
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert process.do("write", address_of(3), PAGE_SIZE, 5) == "ok"
        process.do("fork")
        written = digest(b"\5" * PAGE_SIZE)
        child = ("child", 0, "read")
        assert process.do(*child, address_of(3), PAGE_SIZE) == written
        assert process.do(*child, address_of(200), 10 * PAGE_SIZE) == part(memory, 200, 10)
        assert process.read(200, 10) == part(memory, 200, 10)
        # What one throws away, the other keeps.
        assert process.do("dontneed", address_of(400), 50 * PAGE_SIZE) == "ok"
        assert process.do(*child, address_of(400), 50 * PAGE_SIZE) == part(memory, 400, 50)
        assert process.read(400, 50) == digest(ZERO * 50)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert process.do(*child, address_of(4), 600 * PAGE_SIZE) == part(memory, 4, 600)
        assert process.read(450, 250) == part(memory, 450, 250)


def test_what_was_recorded_comes_first(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    wanted = (10, 400, 200, 690)
    sizes = [min(64, N_PAGES - at // 64 * 64) for at in wanted]
    faults = []
    file = str(tmp_path / "set")
    for options in (("--record", file), ("--prefetch", file)):
        arguments = ("--fill", "never", *options)
        with Daemon(images, tmp_path / "work", *arguments) as daemon, RestoredProcess() as process:
            process.map(0, N_PAGES)
            process.connect(daemon, 7)
            if "--prefetch" in options:
                # Before it is told that the process runs.
                assert eventually(partial(is_resident, process, sum(sizes)))
            assert process.do("finish") == "ok"
            for at in wanted:
                assert process.read(at) == part(memory, at)
            process.process.kill()
            assert daemon.wait() == 0
        faults.append(daemon.report()["faults"])
    assert faults == [len(wanted), 0]
    report = daemon.report()
    # One page showed that the memory is in place.
    assert report["pages_by_prefetch"] == sum(sizes) - 1
    assert Path(file).read_text().splitlines()[1:] == [
        f"7 {address_of(at // 64 * 64):#x} {size} {address_of(at):#x}"
        for at, size in zip(wanted, sizes, strict=True)
    ]


def test_the_page_that_was_asked_for_needs_no_block(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    working_set = tmp_path / "set"
    asked = (500, 130, 650)
    working_set.write_text("".join(f"7 {address_of(0):#x} 1 {address_of(at):#x}\n" for at in asked))
    options = ("--fill", "never", "--prefetch", str(working_set))
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        # Before it is told that the process runs; with the page that showed where memory is.
        assert eventually(partial(is_resident, process, 1 + len(asked)))
        assert process.do("finish") == "ok"
        for at in asked:
            assert process.read(at) == part(memory, at)
        process.process.kill()
        assert daemon.wait() == 0
    report = daemon.report()
    assert report["pages_by_prefetch"] == len(asked)
    assert report["faults"] == 0


@pytest.mark.parametrize(
    "line",
    [
        *("7 0x1001 1", "7 -1 1", "7 0x1000", "0 0x1000 1", "7 0x1000 0", "x 0x1000 1"),
        *("7 0x1000 1 0x1001", "7 0x1000 1 -4096", "7 0x1000 1 0x1000 1", f"7 {1 << 64} 1"),
    ],
)
def test_a_working_set_that_is_none(tmp_path: Path, line: str) -> None:
    images = images_of(tmp_path / "images", content(4))
    (tmp_path / "set").write_text(f"# one\n7 0x1000 1 0x1000\n{line}\n7 0x1000 1\n")
    options = ("--prefetch", str(tmp_path / "set"))
    with Daemon(images, tmp_path / "work", *options) as daemon:
        assert daemon.wait() == 2
        assert daemon.process.stderr is not None
        assert b"set, line 3: not a pid, an address and pages" in daemon.process.stderr.read()


def test_many_restores_of_one_dump(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 64)
    with (
        Daemon(images, tmp_path / "work", "--listen") as daemon,
        RestoredProcess() as one,
        RestoredProcess() as other,
        RestoredProcess() as later,
    ):
        for process in (one, other):
            process.map(0, N_PAGES)
            process.connect(daemon, 7)
        for process in (other, one):
            assert process.do("finish") == "ok"
            assert process.read(0, N_PAGES) == digest(memory)
        later.map(0, N_PAGES)
        later.connect(daemon, 7)
        assert later.do("leave") == "ok"  # One that fails harms nobody.
        with RestoredProcess() as last:
            last.map(0, N_PAGES)
            last.connect(daemon, 7)
            assert last.do("finish") == "ok"
            assert last.read(0, N_PAGES) == digest(memory)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait()
    assert daemon.log.read_text().count("all there") >= 3


def test_a_picture(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    options = ("--svg", str(tmp_path / "picture.svg"))
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        process.read(3)
        assert process.do("finish") == "ok"
        assert daemon.wait() == 0
    picture = ElementTree.fromstring((tmp_path / "picture.svg").read_text())
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "memory there" in words
    assert any("2.7 MiB in" in str(text) for text in words)


def test_a_process_that_dies_is_forgotten(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        process.process.kill()
        assert daemon.wait() == 0


def test_a_second_signal_gives_up(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert eventually(lambda: "its tasks run" in daemon.log.read_text())
        (worker,) = children_of(daemon.process.pid)
        os.kill(worker, signal.SIGSTOP)  # As if its images were on a server that has gone.
        daemon.process.send_signal(signal.SIGTERM)
        # Sent before the first has been taken, the second would be one with it.
        assert eventually(lambda: "to end" in daemon.log.read_text())
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 128 + signal.SIGKILL
        assert process.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL


def test_who_sends_is_known_from_the_first_byte_on(tmp_path: Path) -> None:
    listener, _ = guard.listen(str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as restore, socket.socket(fileno=listener.detach()) as door:
        restore.connect(str(tmp_path / "socket"))
        accepted, _ = door.accept()
        restore.sendall(b"task")  # Nothing has been asked of the accepted socket yet.
        with accepted:
            _, ancillary, _, _ = accepted.recvmsg(4, socket.CMSG_SPACE(12))
    (credentials,) = ancillary
    assert credentials[:2] == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    assert struct.unpack("iII", credentials[2])[0] == os.getpid()


def test_a_task_that_cannot_be_held_is_refused(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    with Daemon(images, tmp_path / "work", "--listen") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        assert process.do("connect", daemon.socket) == "ok"
        assert eventually(lambda: "has connected" in daemon.log.read_text())
        # Room for the userfaultfd that comes, but not for the hold on who sends it.
        used = set(map(int, os.listdir(f"/proc/{daemon.process.pid}/fd")))
        limit = min(set(range(len(used) + 1)) - used) + 1
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        assert process.do("task", 7) == "ok"
        assert eventually(lambda: "cannot hold process" in daemon.log.read_text())
        assert "700 pages to bring" not in daemon.log.read_text()


def test_a_task_that_comes_twice(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        process.send("task", 7)
        assert daemon.wait() == 3
    assert "task 7 comes twice in one restore" in daemon.log.read_text()


def test_a_restore_that_fails(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, -3, 7)
        assert process.do("leave") == "ok"
        assert daemon.wait() == 3
    assert "the restore ended before it was over" in daemon.log.read_text()


def test_a_task_that_is_in_no_image(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.connect(daemon, 8)
        assert daemon.wait() == 3
    assert "task 8 of the restore is in no image here" in daemon.log.read_text()


def test_a_corrupt_block_is_never_zeros(tmp_path: Path) -> None:
    memory = b"".join(page(2 * seed) for seed in range(128))
    builder = Builder(tmp_path / "images", schema=Schema.SIZES)
    builder.add(BASE_PAGE, memory, region=64)
    builder.entries[0].flags = PE_PRESENT | PE_LAZY
    sizes = builder.entries[0].sizes
    assert sizes is not None
    builder.payload[sizes[0] + 5 : sizes[0] + 200] = b"\xff" * 195
    images = builder.write()
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, 128)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert daemon.wait() == 4
        # The good block is there; who touches the other gets SIGBUS, or has been killed.
        if process.process.poll() is None:
            assert process.read(0, 64) in (part(memory, 0, 64), "")
        assert process.do("touch", address_of(100)) == ""
        assert process.process.wait(DEADLINE_SECONDS) in (-signal.SIGBUS, -signal.SIGKILL)
    assert "cannot be brought" in daemon.log.read_text()


def test_who_got_a_page_of_a_corrupt_block_does_not_go_on(tmp_path: Path) -> None:
    memory = b"".join(page(2 * seed) for seed in range(64))
    builder = Builder(tmp_path / "images", schema=Schema.SIZES).add(BASE_PAGE, memory, region=64)
    builder.entries[0].flags = PE_PRESENT | PE_LAZY
    builder.payload[-40:] = b"\xff" * 40  # Far behind the first page.
    images = builder.write()
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, 64)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        process.do("touch", address_of(0))
        assert process.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        assert daemon.wait() == 4


def test_a_truncated_image_is_never_zeros(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        os.truncate(images / "pages-1.img", 300 * PAGE_SIZE)
        assert process.do("finish") == "ok"
        assert daemon.wait() == 4
        assert process.do("touch", address_of(690)) == ""
        assert process.process.wait(DEADLINE_SECONDS) in (-signal.SIGBUS, -signal.SIGKILL)


def test_the_worker_can_open_nothing(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory, Schema.SIZES, 0)
    options = ("--fill", "never", "--sandbox", "strict")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert process.read(0, N_PAGES) == digest(memory)
        assert daemon.wait() == 0
    assert (
        "confined: no new privileges, reduced capabilities, not dumpable, seccomp filter"
        in daemon.log.read_text()
    )


def test_the_workers_death_is_the_processes_death(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", content(N_PAGES))
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        child = int(process.do("fork"))
        assert process.do("child", 0, "touch", address_of(100)) != ""
        pidfd = os.pidfd_open(child)
        (worker,) = children_of(daemon.process.pid)
        os.kill(worker, signal.SIGKILL)
        assert daemon.wait() == 128 + signal.SIGKILL
        assert process.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        assert eventually(lambda: is_over(pidfd))
        os.close(pidfd)
    assert "would have read zeros" in daemon.log.read_text()


@pytest.mark.parametrize("place", ["fill.Fill._bring_piece", "faults.Faults.answer"])
def test_a_bug_leaves_nobody_waiting(tmp_path: Path, place: str) -> None:
    module = place.partition(".")[0]
    spoilt = (
        f"from helperd.lazy_pages import {module}\n"
        f"{place} = lambda *_: {{}}['nothing']\n"
        "from helperd.__main__ import start\n"
        "start()"
    )
    images = images_of(tmp_path / "images", content(N_PAGES))
    program = (sys.executable, "-c", spoilt)
    options = ("--fill", "now" if module == "fill" else "never")
    with (
        Daemon(images, tmp_path / "work", *options, program=program) as daemon,
        RestoredProcess() as process,
    ):
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        process.send("touch", address_of(3))
        assert daemon.wait() == EXIT_RESOURCES
        assert process.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    log = daemon.log.read_text()
    assert "internal error: KeyError: 'nothing' (a bug: please report it)" in log
    assert "would have read zeros" in log


def test_the_guards_death_before_the_restore_is_over(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory)
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.read(5) == part(memory, 5)
        daemon.process.kill()
        daemon.process.wait()
        assert process.read(0, N_PAGES) == digest(memory)


def test_the_guards_death_changes_nothing(tmp_path: Path) -> None:
    memory = content(N_PAGES)
    images = images_of(tmp_path / "images", memory)
    options = ("--fill", "never")
    with Daemon(images, tmp_path / "work", *options) as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("finish") == "ok"
        assert eventually(lambda: "its tasks run" in daemon.log.read_text())
        daemon.process.kill()
        daemon.process.wait()
        assert process.read(0, N_PAGES) == digest(memory)


def is_resident(process: RestoredProcess, n_pages: int) -> bool:
    """Say whether so many pages of the tests' memory are there."""
    with open(f"/proc/{process.process.pid}/pagemap", "rb") as stream:
        stream.seek(BASE_PAGE * 8)
        entries = stream.read(N_PAGES * 8)
    return n_pages == sum(entries[at + 7] >> 7 for at in range(0, len(entries), 8))


def is_over(pidfd: int) -> bool:
    """Say whether a process has ended."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False
