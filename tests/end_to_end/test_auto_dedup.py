"""--auto-dedup: the image shrinks behind the restore, and never loses a byte that is needed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target
from truth import differing_ranges, load_truth, map_ranges

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.block import encode_block
from helperd.errors import EXIT_PROTOCOL
from helperd.offline.compress import compress_directory
from helperd.restorer import inject
from tests.conftest import ImageArchive
from tests.support.helper import FrontEnd, HelperProcess, Outcome
from tests.support.image import noise, text
from tests.support.requests import ADDRESS, RawRequest

MIB = 1 << 20


@pytest.fixture(params=["tmpfs", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder in memory, and one on the file system of the temporary files."""
    if request.param == "disk":
        yield tmp_path
        return
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(prefix="helperd-test-", dir="/dev/shm") as path:
        yield Path(path)


class Dump:
    """Memory, the pages image that holds it, and requests of some pages each.

    Args:
        path: of the image.
        region_pages: 0 for per-page mode.
        request_pages: of a request, a multiple of the region.
        lead: bytes of somebody else before the payload.
        seed: of the random content.
        n_pages: of memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        region_pages: int = 0,
        request_pages: int = 21,
        lead: bytes = b"",
        seed: int = 0,
        n_pages: int = 1500,
    ) -> None:
        self.path = path
        self.lead = lead
        chance = random.Random(seed)
        pages = [
            chance.choice((bytes(PAGE_SIZE), noise(1, seed + i), text(1, seed + i)))
            for i in range(n_pages)
        ]
        self.memory = b"".join(pages)
        self._requests: list[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = []
        stored = bytearray(lead)
        step = region_pages or 1
        for first in range(0, n_pages, request_pages):
            last = min(first + request_pages, n_pages)
            parts = [pages[i : min(i + step, last)] for i in range(first, last, step)]
            blocks = [encode_block(b"".join(part)) for part in parts]
            block_pages = tuple(map(len, parts)) if region_pages else ()
            sizes = tuple(map(len, blocks))
            self._requests.append((len(stored), first, last, sizes, block_pages))
            stored += b"".join(blocks)
        self.region_pages = region_pages
        self.stored = bytes(stored)
        path.write_bytes(stored)
        os.sync()

    @property
    def allocated_bytes(self) -> int:
        return self.path.stat().st_blocks * 512

    def requests(self, pid: int) -> list[RawRequest]:
        return [
            RawRequest(
                remote_pid=pid,
                offs=offs,
                sizes=sizes,
                block_pages=block_pages,
                region_pages=self.region_pages,
                iovs=((ADDRESS + pages_to_bytes(first), pages_to_bytes(last - first)),),
            )
            for offs, first, last, sizes, block_pages in self._requests
        ]

    def part(self, index: int) -> tuple[int, bytes]:
        """Return the address and the content of the pages of request ``index``."""
        _, first, last, _, _ = self._requests[index]
        start, end = pages_to_bytes(first), pages_to_bytes(last)
        return ADDRESS + start, self.memory[start:end]


def succeeded(answer: int | None) -> bool:
    return answer is not None and answer >= 0


def restore(dump: Dump, target: Target, *options: str, order: list[int] | None = None) -> Outcome:
    target.map_anonymous(ADDRESS, len(dump.memory))
    requests = dump.requests(target.pid)
    with HelperProcess(dump.path, *options) as helper:
        for index in order if order is not None else range(len(requests)):
            assert succeeded(helper.ask(requests[index]))
        return helper.finish()


def test_nothing_is_consumed_by_a_request_that_could_not_be_answered(
    target: Target, folder: Path
) -> None:
    """The restorer does not know that its pages are there: it has to be able to ask again."""
    dump = Dump(folder / "pages.img", request_pages=1500)
    target.map_anonymous(ADDRESS, len(dump.memory))
    (request,) = dump.requests(target.pid)
    allocated = dump.allocated_bytes
    with HelperProcess(dump.path, "--auto-dedup") as helper:
        helper.close_answer_pipe()
        helper.send(request.encode())
        assert helper.wait().status == EXIT_PROTOCOL
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory, "it was carried out"
    assert dump.path.read_bytes() == dump.stored
    assert dump.allocated_bytes == allocated
    with HelperProcess(dump.path, "--auto-dedup") as helper:
        assert succeeded(helper.ask(request))
        assert helper.finish().status == 0
    assert dump.allocated_bytes == 0


@pytest.mark.parametrize("when", ["answered", "early"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("request_pages", [64, 1500])
@pytest.mark.parametrize("region_pages", [0, 16])
def test_a_consumed_image_has_no_blocks(
    target: Target, folder: Path, region_pages: int, request_pages: int, threads: int, when: str
) -> None:
    dump = Dump(folder / "pages.img", region_pages=region_pages, request_pages=request_pages)
    assert dump.allocated_bytes >= len(dump.stored)
    outcome = restore(dump, target, f"--auto-dedup={when}", f"--threads={threads}")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    assert dump.allocated_bytes == 0
    assert dump.path.stat().st_size == len(dump.stored)


def test_in_any_order(target: Target, folder: Path) -> None:
    dump = Dump(folder / "pages.img", request_pages=7)
    order = list(range(len(dump.requests(1))))
    random.Random(3).shuffle(order)
    outcome = restore(dump, target, "--auto-dedup", order=order)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    assert dump.allocated_bytes == 0


def test_a_neighbours_bytes_stay(target: Target, folder: Path) -> None:
    lead = noise(2, 99)[:5000]
    dump = Dump(folder / "pages.img", lead=lead)
    outcome = restore(dump, target, "--auto-dedup")
    assert outcome.status == 0
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    left = dump.path.read_bytes()
    assert left[:5000] == lead
    assert not any(left[5000:])
    assert dump.allocated_bytes == 2 * PAGE_SIZE


def test_two_helpers_leave_nothing_between_them(target: Target, folder: Path) -> None:
    """The block in which one helper's part ends and the other's begins goes too."""
    dump = Dump(folder / "pages.img")
    target.map_anonymous(ADDRESS, len(dump.memory))
    requests = dump.requests(target.pid)
    for part in (requests[::2], requests[1::2]):
        with HelperProcess(dump.path, "--auto-dedup") as helper:
            for request in part:
                assert succeeded(helper.ask(request))
            assert helper.finish().status == 0
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    assert dump.allocated_bytes == 0


def test_only_what_was_asked_for(target: Target, folder: Path) -> None:
    dump = Dump(folder / "pages.img")
    requests = dump.requests(target.pid)
    outcome = restore(dump, target, "--auto-dedup", order=[3, 4, 5, 20])
    assert outcome.status == 0
    left = dump.path.read_bytes()
    used = set()
    for index in (3, 4, 5, 20):
        start = requests[index].offs
        used.update(range(start, start + sum(requests[index].sizes)))
    for at, (before, after) in enumerate(zip(dump.stored, left, strict=True)):
        assert after == (0 if at in used else before)


@pytest.mark.parametrize("when", ["answered", "early"])
def test_nothing_is_restored_twice(target: Target, folder: Path, when: str) -> None:
    """What was punched reads as zeros, and raw pages of it would be restored as such."""
    dump = Dump(folder / "pages.img")
    target.map_anonymous(ADDRESS, len(dump.memory))
    requests = dump.requests(target.pid)
    with HelperProcess(dump.path, f"--auto-dedup={when}") as helper:
        for request in requests[:3]:
            assert succeeded(helper.ask(request))
        assert helper.ask(requests[1]) == -errno.EIO
        outcome = helper.finish()
    assert outcome.status == 4
    assert "has been consumed by an earlier request" in outcome.error_line
    address, content = dump.part(1)
    assert target.read(address, len(content)) == content


@pytest.mark.parametrize("when", ["answered", "early"])
def test_a_failed_request_keeps_its_bytes(target: Target, folder: Path, when: str) -> None:
    dump = Dump(folder / "pages.img")
    target.map_anonymous(ADDRESS, len(dump.memory))
    requests = dump.requests(target.pid)
    target.unmap(dump.part(1)[0] + PAGE_SIZE, PAGE_SIZE)
    with HelperProcess(dump.path, f"--auto-dedup={when}") as helper:
        assert succeeded(helper.ask(requests[0]))
        assert not succeeded(helper.ask(requests[1]))
        assert helper.finish().status == 5
    answered = requests[1].offs
    assert dump.path.read_bytes()[answered:] == dump.stored[answered:]


def test_a_read_only_image(target: Target, folder: Path) -> None:
    dump = Dump(folder / "pages.img")
    target.map_anonymous(ADDRESS, len(dump.memory))
    options = dump.path, "--auto-dedup"
    with HelperProcess(*options, front_end=FrontEnd.FDS) as helper:
        for request in dump.requests(target.pid):
            assert succeeded(helper.ask(request))
        outcome = helper.finish()
    assert outcome.status == 0
    assert "cannot be punched: it is open for reading only" in outcome.error_line
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    assert dump.path.read_bytes() == dump.stored


def test_a_file_that_cannot_be_punched(target: Target, tmp_path: Path) -> None:
    """A sealed memory file is open for writing, and refuses it."""
    dump = Dump(tmp_path / "pages.img")
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, dump.stored)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    dump.path = Path(f"/proc/{os.getpid()}/fd/{fd}")
    outcome = restore(dump, target, "--auto-dedup")
    assert outcome.status == 0
    assert "cannot be punched" in outcome.error_line
    assert target.read(ADDRESS, len(dump.memory)) == dump.memory
    assert os.pread(fd, len(dump.stored), 0) == dump.stored
    os.close(fd)


def test_memory_does_not_hold_everything_twice(target: Target) -> None:
    """Image in tmpfs and target together stay below the larger of the two and some requests."""
    with tempfile.TemporaryDirectory(prefix="helperd-test-", dir="/dev/shm") as path:
        image = Path(path) / "pages.img"
        piece = noise(1024, 5)
        n_pieces, request_bytes = 16, len(piece)
        image.write_bytes(b"".join(piece[i:] + piece[:i] for i in range(n_pieces)))
        size = n_pieces * request_bytes
        target.map_anonymous(ADDRESS, size)
        rss_before = target.rss_bytes()
        peak = 0
        with HelperProcess(image, "--auto-dedup") as helper:
            for at in range(0, size, request_bytes):
                request = RawRequest(
                    remote_pid=target.pid,
                    offs=at,
                    sizes=(PAGE_SIZE,) * (request_bytes // PAGE_SIZE),
                    iovs=((ADDRESS + at, request_bytes),),
                )
                assert helper.ask(request) == request_bytes
                peak = max(peak, image.stat().st_blocks * 512 + target.rss_bytes() - rss_before)
            assert helper.finish().status == 0
        assert peak <= size + 2 * request_bytes
        assert image.stat().st_blocks == 0


@pytest.mark.parametrize("seed", range(100))
def test_killed_at_any_moment(target_program: Path, seed: int) -> None:
    """What was answered is in the target; what was not can be restored from what is left."""
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="helperd-test-", dir="/dev/shm") as path,
        Target(target_program) as target,
        Target(target_program) as second,
    ):
        dump = Dump(
            Path(path) / "pages.img",
            region_pages=chance.choice((0, 8)),
            request_pages=chance.choice((8, 64, 256)),
            seed=seed,
            n_pages=600,
        )
        target.map_anonymous(ADDRESS, len(dump.memory))
        requests = dump.requests(target.pid)
        killed = chance.choice(("worker", "parent", "target"))
        at = chance.randrange(len(requests))
        n_answered = 0
        with HelperProcess(dump.path, "--auto-dedup") as helper:
            assert helper.ask(RawRequest(target.pid, 0, (), ())) == 0
            victim = {
                "worker": helper.worker_pid,
                "parent": helper.pid,
                "target": target.pid,
            }[killed]
            while n_answered < at:
                assert succeeded(helper.ask(requests[n_answered]))
                n_answered += 1
            helper.send(requests[at].encode())
            time.sleep(chance.random() * 0.003)
            os.kill(victim, 9)
            if succeeded(helper.receive()):
                n_answered += 1
            helper.close_request_pipe()
            helper.wait()
        if killed != "target":
            for index in range(n_answered):
                address, content = dump.part(index)
                assert target.read(address, len(content)) == content
        second.map_anonymous(ADDRESS, len(dump.memory))
        with HelperProcess(dump.path) as helper:
            for index, request in enumerate(dump.requests(second.pid)):
                if index >= n_answered:
                    assert succeeded(helper.ask(request))
                    address, content = dump.part(index)
                    assert second.read(address, len(content)) == content
            assert helper.finish().status == 0


@pytest.mark.parametrize("region_bytes", [0, 65536])
def test_a_whole_chain(
    image_archive: ImageArchive, target_program: Path, tmp_path: Path, region_bytes: int
) -> None:
    archive = image_archive("incremental")
    for level in ("1", "2", "3"):
        source = str(archive / "images" / level)
        compress_directory(source, output=str(tmp_path / level), region_bytes=region_bytes)
    files = sorted(tmp_path.glob("*/pages-*.img"))
    before = {path: path.stat().st_blocks for path in files}
    shared = archive / "images" / "3"
    untouched = {
        tmp_path / "3" / path.name
        for path in shared.glob("pages-*.img")
        if path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()
    }
    for process in load_truth(archive).processes:
        with Target(target_program) as target:
            map_ranges(target, process.ranges)
            report = inject(tmp_path / "3", target.pid, image_pid=process.pid, auto_dedup=True)
            assert report.warnings == ""
            assert differing_ranges(target, process.ranges) == []
    for path in files:
        left = path.stat().st_blocks
        if path in untouched:  # shared memory, which was not restored
            assert left == before[path]
        elif path.parent.name == "3":
            assert left == 0
        else:  # what the later dumps superseded stays
            assert 0 < left < before[path]
