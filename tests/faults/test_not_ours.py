"""Files that a helper must not harm, whatever its command line says by a slip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from target import Target

from helperd.errors import EXIT_TARGET, EXIT_USAGE
from helperd.targets.mappings import why_not_written
from tests.support.helper import HelperProcess, run_helper
from tests.support.image import BlockImage, noise
from tests.support.requests import ADDRESS


@pytest.fixture
def image(target: Target) -> BlockImage:
    """Return enough raw pages for whole blocks to be punched."""
    image = BlockImage()
    for page in range(64):
        image.add_raw(noise(1, page))
    target.map_anonymous(ADDRESS, len(image.memory))
    return image


@pytest.fixture
def pages(image: BlockImage, tmp_path: Path) -> Path:
    """Return the pages image of ``image``."""
    return image.write(tmp_path / "pages-1.img")


@pytest.mark.parametrize("option", ["--stats", "--log-file"])
@pytest.mark.parametrize("how", ["itself", "link", "hard-link"])
@pytest.mark.parametrize("client", ["direct", "attach"])
def test_an_output_that_is_the_image(
    image: BlockImage, pages: Path, tmp_path: Path, option: str, how: str, client: str
) -> None:
    name = pages
    if how != "itself":
        name = tmp_path / "name"
        (os.symlink if how == "link" else os.link)(pages, name)
    command = ("attach", "--socket", "/nowhere") if client == "attach" else ()
    outcome = run_helper(*command, "--stdin-pipes", "--pages", str(pages), option, str(name), "-v4")
    assert outcome.status == EXIT_USAGE
    assert "is the pages image" in outcome.error_line
    assert pages.read_bytes() == image.payload


def test_stderr_is_the_image(image: BlockImage, pages: Path) -> None:
    wrapper = ("sh", "-c", f'exec "$@" 2>>{pages}', "sh")
    with HelperProcess(pages, "-v0", wrapper=wrapper) as helper:
        assert helper.finish().status == EXIT_USAGE
    assert pages.read_bytes().startswith(image.payload)


def test_an_earlier_restores_numbers_are_gone_at_once(pages: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    stats.write_text("those of yesterday")
    with HelperProcess(pages, "--stats", str(stats)) as helper:
        while stats.read_text():
            os.sched_yield()
        helper.finish()
    assert stats.read_text().startswith("{")


@pytest.mark.parametrize("how", ["link", "hard-link"])
@pytest.mark.parametrize("when", ["answered", "early"])
def test_nothing_is_punched_out_of_somebody_elses_image(
    target: Target, image: BlockImage, pages: Path, tmp_path: Path, how: str, when: str
) -> None:
    name = tmp_path / "name"
    (os.symlink if how == "link" else os.link)(pages, name)
    with HelperProcess(name, f"--auto-dedup={when}") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        outcome = helper.finish()
    assert outcome.status == 0
    assert "cannot be punched" in outcome.error_line
    assert target.read(ADDRESS, len(image.memory)) == image.memory
    assert pages.read_bytes() == image.payload


def test_a_file_of_one_name_is_punched(target: Target, image: BlockImage, pages: Path) -> None:
    """The tests above do not pass for another reason."""
    with HelperProcess(pages, "--auto-dedup") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().stderr == ""
    assert pages.read_bytes() == bytes(len(image.payload))


# What numbers must not become.


def test_a_target_that_is_a_number_of_64_bits(tmp_path: Path, pages: Path, target: Target) -> None:
    """2^32 + N is sent as N in a field of 32 bits."""
    for command in ((), ("attach", "--socket", str(tmp_path / "s"))):
        outcome = run_helper(
            *command, "--stdin-pipes", "--pages", str(pages), f"--target={2**32 + target.pid}"
        )
        assert outcome.status == EXIT_USAGE
        assert f"--target {2**32 + target.pid}: from 1 to" in outcome.error_line


# What is said of memory that cannot be written.


def test_memory_that_is_not_there(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        helper.ask(image.request(target.pid, ADDRESS + len(image.memory)))
        outcome = helper.finish()
    assert outcome.status == EXIT_TARGET
    assert "is not mapped writable: nothing is mapped there" in outcome.error_line


def test_what_is_mapped_is_not_said_not_to_be() -> None:
    lines = [
        "7f0000000000-7f0000001000 rw-s 00000000 00:01 7   /memfd:x (deleted)",
        "7f0000001000-7f0000002000 r--p 00000000 00:00 0",
        "7f0000200000-7f0000400000 rw-p 00000000 00:10 9   /anon_hugepage (deleted)",
    ]
    assert "is mapped rw-s /memfd:x (deleted), but" in why_not_written(lines, 0x7F0000000000)
    read_only = why_not_written(lines, 0x7F0000001000)
    assert read_only == "is not mapped writable: its mapping is r--p"
    assert "no huge page is free" in why_not_written(lines, 0x7F00002FF000)
    assert "nothing is mapped there" in why_not_written(lines, 0x7F0000002000)
