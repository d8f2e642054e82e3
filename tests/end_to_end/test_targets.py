"""Whom a helper may write to, and what happens when the target is not what the request says."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import EXIT_IMAGE, EXIT_PERMISSION, EXIT_TARGET
from helperd.kernel.syscalls import HUGE_PAGE_SIZE
from tests.support.helper import FrontEnd, HelperProcess
from tests.support.image import BlockImage, all_kinds, noise, text
from tests.support.requests import ADDRESS, scattered

#: Runs the helper as the child of a shell, which then is its spawner.
UNDER_A_SHELL = ("sh", "-c", '"$@"; exit $?', "sh")


@pytest.fixture
def image() -> BlockImage:
    """Return 16 pages of all kinds."""
    return all_kinds(16)


@pytest.fixture
def pages(image: BlockImage, tmp_path: Path) -> Path:
    """Return the pages image of ``image``."""
    return image.write(tmp_path / "pages-1.img")


@pytest.fixture
def second_target(target_program: Path) -> Iterator[Target]:
    """Return another target, a sibling of the first."""
    with Target(target_program) as process:
        yield process


def assert_refused(helper: HelperProcess, answer: int | None, number: int, status: int) -> str:
    """Check a failed answer and the end that follows; return the one line of the log."""
    assert answer == -number
    outcome = helper.finish()
    assert outcome.status == status
    return outcome.error_line


# Whom it may write to.


def test_the_spawner_itself(image: BlockImage, pages: Path, front_end: FrontEnd) -> None:
    """CRIU's case: the task that is being restored starts the helper, and is the target."""
    with mmap.mmap(-1, len(image.memory)) as memory:
        anchor = ctypes.c_char.from_buffer(memory)
        request = image.request(os.getpid(), ctypes.addressof(anchor))
        del anchor
        with HelperProcess(pages, front_end=front_end) as helper:
            assert helper.ask(request) == image.answer
            assert helper.finish().status == 0
        assert memory[:] == image.memory


def test_a_grandchild_of_the_spawner(target: Target, image: BlockImage, pages: Path) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    child = target.fork()
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(child, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory), pid=child) == image.memory
    assert not any(target.present_pages(ADDRESS, image.n_pages))


def test_two_targets_in_turn(
    target: Target, second_target: Target, image: BlockImage, pages: Path
) -> None:
    targets = (target, second_target)
    for process in targets:
        process.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        for process in (*targets, *targets):
            assert helper.ask(image.request(process.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    for process in targets:
        assert process.read(ADDRESS, len(image.memory)) == image.memory


def test_a_foreign_process(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    """The target is the spawner's sibling: neither the spawner nor a descendant of it."""
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages, front_end=front_end, wrapper=UNDER_A_SHELL) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        line = assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)
    assert str(target.pid) in line
    assert "--target" in line
    assert not any(target.present_pages(ADDRESS, image.n_pages))


@pytest.mark.parametrize("foreign", [1, os.getppid()], ids=["init", "parent-of-spawner"])
def test_an_ancestor_of_the_spawner(image: BlockImage, pages: Path, foreign: int) -> None:
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(foreign, ADDRESS))
        assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)


def test_a_foreign_process_after_an_allowed_one(
    target: Target, image: BlockImage, pages: Path
) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        answer = helper.ask(image.request(1, ADDRESS))
        assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)


def test_a_foreign_process_named_on_the_command_line(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    options = ("--target", str(target.pid))
    with HelperProcess(pages, *options, front_end=front_end, wrapper=UNDER_A_SHELL) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_target_option_allows_no_other_process(
    target: Target, second_target: Target, image: BlockImage, pages: Path
) -> None:
    second_target.map_anonymous(ADDRESS, len(image.memory))
    options = ("--target", str(target.pid))
    with HelperProcess(pages, *options, wrapper=UNDER_A_SHELL) as helper:
        answer = helper.ask(image.request(second_target.pid, ADDRESS))
        assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)
    assert not any(second_target.present_pages(ADDRESS, image.n_pages))


def test_a_dead_process_named_on_the_command_line(
    target: Target, image: BlockImage, pages: Path
) -> None:
    target.kill()
    with HelperProcess(pages, "--target", str(target.pid)) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)


def test_the_helper_itself(image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(helper.pid, ADDRESS))
        assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)


def test_the_helper_s_own_worker(target: Target, image: BlockImage, pages: Path) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        answer = helper.ask(image.request(helper.worker_pid, ADDRESS))
        assert_refused(helper, answer, errno.EPERM, EXIT_PERMISSION)


def test_the_helper_itself_named_on_the_command_line(pages: Path) -> None:
    named = ("sh", "-c", 'exec "$@" --target $$', "sh")
    with HelperProcess(pages, wrapper=named) as helper:
        line = assert_refused(helper, helper.receive(), errno.EPERM, EXIT_PERMISSION)
        assert f"process {helper.pid} is the helper itself" in line


# A target that is gone.


def test_target_dead_before_its_first_request(
    target: Target, image: BlockImage, pages: Path
) -> None:
    target.kill()
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        line = assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)
    assert str(target.pid) in line


def test_target_dies_between_requests(target: Target, image: BlockImage, pages: Path) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        target.kill()
        answer = helper.ask(image.request(target.pid, ADDRESS))
        line = assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)
    assert str(target.pid) in line


def test_all_zero_request_for_a_dead_target(target: Target, tmp_path: Path) -> None:
    """There is nothing to write, and still nothing that could be called restored."""
    image = BlockImage()
    image.add_zero(1)
    target.map_anonymous(ADDRESS, PAGE_SIZE)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == 0
        target.kill()
        answer = helper.ask(image.request(target.pid, ADDRESS))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)


def test_a_zombie_is_gone(target: Target, image: BlockImage, pages: Path) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(pid, ADDRESS))
        os.waitpid(pid, 0)
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)


def test_a_target_that_never_existed(image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(2**31 - 1, ADDRESS))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)


# Memory that is not there.


def restored_pages(line: str) -> int:
    """Return how many pages an error line says had been written."""
    (count,) = re.findall(r"(\d+) of the request's \d+ pages", line)
    return int(count)


def test_nothing_is_mapped(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        line = assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)
    assert f"{ADDRESS:#x}" in line
    assert restored_pages(line) == 0


@pytest.mark.parametrize("mapped", [1, 5, 15])
@pytest.mark.parametrize("kind", ["raw", "lz4", "region"])
def test_mapping_ends_within_an_iovec(
    target: Target, tmp_path: Path, mapped: int, kind: str
) -> None:
    image = BlockImage()
    if kind == "region":
        for seed in range(4):
            image.add_lz4(text(4, seed=seed))
    else:
        for page in range(16):
            image.add_raw(noise(1, page)) if kind == "raw" else image.add_lz4(text(1, page))
    target.map_anonymous(ADDRESS, pages_to_bytes(mapped))
    region_pages = 4 if kind == "region" else 0
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS, region_pages=region_pages))
        line = assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)
    assert f"{ADDRESS + pages_to_bytes(mapped):#x}" in line
    written = target.present_pages(ADDRESS, mapped).count(True)
    assert restored_pages(line) == written
    restored = target.read(ADDRESS, pages_to_bytes(written))
    assert restored == image.memory[: len(restored)], "what was written is at least right"


def test_one_of_many_scattered_pages_is_unmapped(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    for seed in range(4):
        image.add_lz4(text(500, seed))
    iovs = scattered(ADDRESS, 2000, stride_pages=2)
    hole, _ = iovs[1500]
    target.map_anonymous(ADDRESS, pages_to_bytes(4000))
    target.advise(ADDRESS, pages_to_bytes(4000), hugepage=False)
    target.unmap(hole, PAGE_SIZE)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, iovs, region_pages=500))
        line = assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)
    assert f"{hole:#x}" in line
    present = target.present_pages(ADDRESS, 4000)
    assert restored_pages(line) == present.count(True)
    assert not any(present[1::2]), "a page that no iovec names was written"


@pytest.mark.parametrize("region_pages", [0, 16], ids=["perpage", "region"])
@pytest.mark.parametrize("cause", ["unmapped", "corrupt"])
def test_a_big_request_fails_in_the_middle(
    target: Target, tmp_path: Path, region_pages: int, cause: str
) -> None:
    """Whatever was being worked on at the same time: the log says what has been written."""
    n_pages, bad_page = 8192, 5008
    image = BlockImage()
    for page in range(0, n_pages, region_pages or 1):
        if page == bad_page and cause == "corrupt":
            image.add_stored(b"\xff" * 100, bytes(pages_to_bytes(region_pages or 1)))
        else:
            image.add_raw(noise(region_pages or 1, page))
    target.map_anonymous(ADDRESS, pages_to_bytes(n_pages))
    target.advise(ADDRESS, pages_to_bytes(n_pages), hugepage=False)
    if cause == "unmapped":
        target.unmap(ADDRESS + pages_to_bytes(bad_page), PAGE_SIZE)
        number, status = errno.EFAULT, EXIT_TARGET
    else:
        number, status = errno.EBADMSG, EXIT_IMAGE
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS, region_pages=region_pages))
        line = assert_refused(helper, answer, number, status)
    present = target.present_pages(ADDRESS, n_pages)
    assert restored_pages(line) == present.count(True)
    for page in (page for page, is_present in enumerate(present) if is_present):
        restored = target.read(ADDRESS + pages_to_bytes(page), PAGE_SIZE)
        start = pages_to_bytes(page)
        assert restored == image.memory[start : start + PAGE_SIZE]


def test_zero_pages_into_unmapped_memory(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    image.add_zero(1)
    image.add_zero(1)
    target.map_anonymous(ADDRESS, PAGE_SIZE)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        line = assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)
    assert f"{ADDRESS + PAGE_SIZE:#x}" in line


def test_zero_pages_beyond_the_address_space_of_processes(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    image.add_zero(1)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, 0xFFFF_8000_0000_0000))
        assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)


@pytest.mark.parametrize("kind", ["zero", "raw", "lz4"])
def test_read_only_memory_is_not_written(target: Target, tmp_path: Path, kind: str) -> None:
    image = BlockImage()
    if kind == "zero":
        image.add_zero()
    elif kind == "raw":
        image.add_raw(noise(1))
    else:
        image.add_lz4(text(1))
    target.map_anonymous(ADDRESS, PAGE_SIZE)
    target.fill(ADDRESS, PAGE_SIZE, 0xAA)
    target.protect(ADDRESS, PAGE_SIZE, "r")
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)
    assert target.read(ADDRESS, PAGE_SIZE) == b"\xaa" * PAGE_SIZE


def test_unmapped_between_requests(target: Target, image: BlockImage, pages: Path) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        target.unmap(ADDRESS, len(image.memory))
        answer = helper.ask(image.request(target.pid, ADDRESS))
        assert_refused(helper, answer, errno.EFAULT, EXIT_TARGET)


def test_target_executes_another_program(target: Target, image: BlockImage, pages: Path) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        target.exec()
        target.map_anonymous(ADDRESS, len(image.memory))
        answer = helper.ask(image.request(target.pid, ADDRESS))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)
    assert not any(target.present_pages(ADDRESS, image.n_pages))


def test_huge_pages_are_not_asked_for_in_another_program(target: Target, tmp_path: Path) -> None:
    """Preparing a huge page writes to it, before the pages themselves are written."""
    image = BlockImage()
    for seed in range(1024):
        image.add_lz4(text(1, seed=seed))
    n_bytes = len(image.memory)
    address = ADDRESS & -HUGE_PAGE_SIZE
    target.map_anonymous(address, n_bytes)
    pages = image.write(tmp_path / "pages.img")
    with HelperProcess(pages, "--thp", "always") as helper:
        assert helper.ask(image.request(target.pid, address)) == image.answer
        target.exec()
        target.map_anonymous(address, n_bytes)
        target.fill(address, n_bytes, 0x55)
        answer = helper.ask(image.request(target.pid, address))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)
    assert target.read(address, n_bytes) == b"\x55" * n_bytes


def test_killed_before_a_request_that_asks_for_huge_pages(target: Target, tmp_path: Path) -> None:
    """Whether it wants huge pages is looked up when they are first possible: then it is gone."""
    image = BlockImage()
    for seed in range(1024):
        image.add_lz4(text(1, seed=seed))
    address = ADDRESS & -HUGE_PAGE_SIZE
    target.map_anonymous(address, len(image.memory))
    small = BlockImage()
    small.add_lz4(text(1, seed=0))
    pages = image.write(tmp_path / "pages.img")
    with HelperProcess(pages, "--target", str(target.pid)) as helper:
        assert helper.ask(small.request(target.pid, address)) == small.answer
        os.kill(target.pid, signal.SIGKILL)
        os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        answer = helper.ask(image.request(target.pid, address))
        assert_refused(helper, answer, errno.ESRCH, EXIT_TARGET)


# Destinations of every shape.


@pytest.mark.parametrize("region_pages", [0, 1, 7, 1024])
def test_five_thousand_iovecs(target: Target, tmp_path: Path, region_pages: int) -> None:
    memory = text(5000)
    image = BlockImage()
    step = pages_to_bytes(region_pages or 1)
    for at in range(0, len(memory), step):
        image.add_lz4(memory[at : at + step])
    target.map_anonymous(ADDRESS, pages_to_bytes(10000))
    target.advise(ADDRESS, pages_to_bytes(10000), hugepage=False)
    iovs = scattered(ADDRESS, 5000, stride_pages=2)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, iovs, region_pages=region_pages))
        assert answer == image.answer == len(memory)
        assert helper.finish().status == 0
    assert target.present_pages(ADDRESS, 10000) == [True, False] * 5000
    assert b"".join(target.read(base, length) for base, length in iovs) == memory


def test_destinations_in_any_order(target: Target, image: BlockImage, pages: Path) -> None:
    """Page order is the order of the iovecs, not of their addresses."""
    target.map_anonymous(ADDRESS, len(image.memory))
    iovs = scattered(ADDRESS, image.n_pages, stride_pages=1)[::-1]
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, iovs)) == image.answer
        assert helper.finish().status == 0
    assert b"".join(target.read(*iovec) for iovec in iovs) == image.memory


@pytest.mark.parametrize("cuts", [(3, 64, 65, 130), (1,), (64, 128), (199,)])
def test_iovecs_cut_blocks_anywhere(target: Target, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    image = BlockImage()
    image.add_lz4(text(64, seed=1))
    image.add_zero(64)
    image.add_raw(noise(64, seed=2))
    image.add_lz4(text(8, seed=3))
    target.map_anonymous(ADDRESS, pages_to_bytes(1000))
    starts, ends = (0, *cuts), (*cuts, image.n_pages)
    iovs = [
        (ADDRESS + pages_to_bytes(start + 100 * index), pages_to_bytes(end - start))
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, iovs, region_pages=64))
        assert answer == image.answer
        assert helper.finish().status == 0
    assert b"".join(target.read(*iovec) for iovec in iovs) == image.memory


def test_payload_from_the_middle_of_the_image(
    target: Target, image: BlockImage, tmp_path: Path
) -> None:
    prefix = noise(3)[:-5]
    path = tmp_path / "pages.img"
    path.write_bytes(prefix + image.payload + noise(1))
    request = image.request(target.pid, ADDRESS)
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(path) as helper:
        assert helper.ask(replace(request, offs=len(prefix))) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_payload_behind_four_gigabytes(target: Target, image: BlockImage, tmp_path: Path) -> None:
    offset = 5 << 30
    path = tmp_path / "pages.img"
    with path.open("wb") as file:  # sparse: it takes no room
        file.seek(offset)
        file.write(image.payload)
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(path) as helper:
        request = replace(image.request(target.pid, ADDRESS), offs=offset)
        assert helper.ask(request) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


@pytest.mark.parametrize("region_pages", [0, 1, 4])
def test_lz4_blocks_larger_than_what_they_hold(
    target: Target, tmp_path: Path, region_pages: int
) -> None:
    """No dump stores them, but they are valid up to LZ4's own bound."""
    image = BlockImage()
    for seed in range(200):
        image.add_lz4(noise(region_pages or 1, seed))
        assert image.sizes[-1] > pages_to_bytes(region_pages or 1)
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        request = image.request(target.pid, ADDRESS, region_pages=region_pages)
        assert helper.ask(request) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_both_modes_in_turn(target: Target, image: BlockImage, pages: Path) -> None:
    """A region of one page is a page: the same blocks, both ways, again and again."""
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        for region_pages in (0, 1, 1024, 0, 1):
            target.fill(ADDRESS, len(image.memory), 0xAA)
            request = image.request(target.pid, ADDRESS, region_pages=region_pages)
            assert helper.ask(request) == image.answer
            assert target.read(ADDRESS, len(image.memory)) == image.memory
        assert helper.finish().status == 0
