"""Start, end and signals: exit statuses that restore tools rely on, and no process left."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_PROTOCOL, EXIT_SIGNAL_BASE, EXIT_USAGE
from tests.support.helper import FrontEnd, HelperProcess, run_helper
from tests.support.image import BlockImage, text
from tests.support.processes import ends
from tests.support.requests import ADDRESS

#: Starts the helper without any of the three standard descriptors.
WITHOUT_STANDARD_FDS = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
#: As a daemon's child may be started: stdin alone is missing.
WITHOUT_STDIN = ("sh", "-c", 'exec "$@" <&-', "sh")


@pytest.fixture
def image(target: Target) -> BlockImage:
    """Return four pages, with memory for them mapped in the target."""
    image = BlockImage()
    for page in range(4):
        image.add_lz4(text(1, seed=page))
    target.map_anonymous(ADDRESS, len(image.memory))
    return image


@pytest.fixture
def pages(image: BlockImage, tmp_path: Path) -> Path:
    """Return the pages image of ``image``."""
    return image.write(tmp_path / "pages-1.img")


# The end of input.


def test_no_request_at_all(pages: Path, front_end: FrontEnd) -> None:
    with HelperProcess(pages, front_end=front_end) as helper:
        outcome = helper.finish()
    assert (outcome.status, outcome.stderr, outcome.stdout) == (0, "", b"")


def test_a_request_of_no_pages(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    with HelperProcess(pages, front_end=front_end) as helper:
        assert helper.ask(BlockImage().request(target.pid, ())) == 0
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0


def test_answer_pipe_is_closed(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    with HelperProcess(pages, front_end=front_end) as helper:
        helper.close_answer_pipe()
        helper.send(image.request(target.pid, ADDRESS).encode())
        outcome = helper.wait()
    assert outcome.status == EXIT_PROTOCOL
    assert outcome.error_line


def test_answer_pipe_is_closed_before_a_refusal(
    target: Target, image: BlockImage, pages: Path
) -> None:
    with HelperProcess(pages) as helper:
        helper.close_answer_pipe()
        helper.send(image.request(target.pid, ADDRESS + 1).encode())
        outcome = helper.wait()
    assert outcome.status == EXIT_PROTOCOL
    assert "Traceback" not in outcome.stderr


# Descriptors.


@pytest.mark.parametrize("wrapper", [WITHOUT_STANDARD_FDS, WITHOUT_STDIN], ids=["none", "no-stdin"])
def test_without_standard_descriptors(
    target: Target, image: BlockImage, pages: Path, wrapper: tuple[str, ...]
) -> None:
    with HelperProcess(pages, front_end=FrontEnd.FDS, wrapper=wrapper) as helper:
        for _ in range(2):
            assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        outcome = helper.finish()
    assert (outcome.status, outcome.stderr, outcome.stdout) == (0, "", b"")
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_an_error_without_standard_descriptors(
    target: Target, image: BlockImage, pages: Path
) -> None:
    """The log line must not go to whatever got the number of stderr."""
    options = {"front_end": FrontEnd.FDS, "wrapper": WITHOUT_STANDARD_FDS}
    with HelperProcess(pages, **options) as helper:  # type: ignore[arg-type]
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        outcome = helper.finish()
    assert (outcome.status, outcome.stderr, outcome.stdout) == (EXIT_PROTOCOL, "", b"")
    assert pages.read_bytes() == image.payload


def test_image_is_replaced_after_the_start(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        pages.unlink()
        target.fill(ADDRESS, len(image.memory), 0xAA)
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


# The log.


def test_log_file(target: Target, image: BlockImage, pages: Path, tmp_path: Path) -> None:
    log = tmp_path / "helperd.log"
    with HelperProcess(pages, "--log-file", str(log)) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        outcome = helper.finish()
    assert (outcome.status, outcome.stderr) == (EXIT_PROTOCOL, "")
    (line,) = log.read_text().splitlines()
    assert "iovec" in line


def test_silence(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages, "-v0") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        outcome = helper.finish()
    assert (outcome.status, outcome.stderr) == (EXIT_PROTOCOL, "")


def test_most_words_go_to_stderr_only(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    with HelperProcess(pages, "-v4", front_end=front_end) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        outcome = helper.finish()
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert outcome.stderr
    assert "Traceback" not in outcome.stderr


# Signals.


def test_worker_is_killed(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.worker_pid, signal.SIGKILL)
        outcome = helper.wait()
        assert helper.receive() is None
    assert outcome.status == EXIT_SIGNAL_BASE + signal.SIGKILL
    assert outcome.error_line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_parent_is_killed(target: Target, image: BlockImage, pages: Path, number: int) -> None:
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        worker = os.pidfd_open(helper.worker_pid)
        try:
            os.kill(helper.pid, number)
            outcome = helper.wait()
            assert ends(worker), "the worker outlives its parent"
        finally:
            os.close(worker)
    assert outcome.status != 0
    assert "Traceback" not in outcome.stderr


def test_worker_keeps_no_pipe_open(target: Target, image: BlockImage, pages: Path) -> None:
    """A restorer that waits for the end of the answers must see it when the helper is gone."""
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
        assert helper.receive() is None


# Options.


@pytest.mark.parametrize(
    "options",
    [
        ["--bogus"],
        ["--stdin-pipes"],
        ["--stdin-pipes", "--pages"],
        ["--pages", "pages-1.img"],
        ["--stdin-pipes", "--pages-fd", "5"],
        ["--pages-fd", "5"],
        ["--pages-fd", "5", "--request-fd", "6"],
        ["--pages-fd", "0", "--request-fd", "6", "--reply-fd", "7"],
        ["--pages-fd", "5", "--request-fd", "1", "--reply-fd", "7"],
        ["--pages-fd", "5", "--request-fd", "6", "--reply-fd", "2"],
        ["--pages-fd", "five", "--request-fd", "6", "--reply-fd", "7"],
        ["--pages-fd", "-1", "--request-fd", "6", "--reply-fd", "7"],
        ["--stdin-pipes", "--pages", "pages-1.img", "--target", "init"],
        ["--stdin-pipes", "--pages", "pages-1.img", "--target", "-5"],
        ["--stdin-pipes", "--pages", "pages-1.img", "--max-request", "much"],
        ["--stdin-pipes", "--pages", "pages-1.img", "--max-request", "0"],
        ["--stdin-pipes", "--pages", "pages-1.img", "-v9"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(options: list[str]) -> None:
    outcome = run_helper(*options)
    assert outcome.status == EXIT_USAGE
    assert outcome.stdout == b""
    assert outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_options_that_only_tell(option: str) -> None:
    outcome = run_helper(option)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert b"helperd" in outcome.stdout


def test_descriptors_that_are_not_open(tmp_path: Path) -> None:
    outcome = run_helper("--pages-fd", "701", "--request-fd", "702", "--reply-fd", "703")
    assert outcome.status not in (0, 7)
    assert outcome.error_line


def test_empty_environment_in_the_image_directory(
    target: Target, image: BlockImage, pages: Path, front_end: FrontEnd
) -> None:
    """This is what a restored task hands down. The directory must not be taken for modules."""
    (pages.parent / "helperd.py").write_text("raise SystemExit(99)")
    (pages.parent / "struct.py").write_text("raise SystemExit(99)")
    before = sorted(os.listdir(pages.parent))
    wrapper = ("env", "-i", "-C", str(pages.parent))
    with HelperProcess(pages, front_end=front_end, wrapper=wrapper) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert sorted(os.listdir(pages.parent)) == before
    assert target.read(ADDRESS, PAGE_SIZE) == image.memory[:PAGE_SIZE]
