"""Real sessions of CRIU's restorer, replayed: the restored bytes are the dumped bytes."""

from __future__ import annotations

import hashlib

import pytest
from target import Target
from truth import Process, differing_ranges, load_truth, map_ranges

from helperd.blocks import PAGE_SIZE, ZERO_PAGE
from tests.conftest import ImageArchive
from tests.support.helper import FrontEnd, HelperProcess
from tests.support.processes import exists
from tests.support.replay import load_recording

RECORDINGS = ["criu-perpage", "criu-region256k", "criu-fragmented"]


def prepared(image_archive: ImageArchive, name: str, target: Target) -> Process:
    """Return the one process of an archive after mapping its memory in the target."""
    (process,) = load_truth(image_archive(name)).processes
    map_ranges(target, process.ranges)
    return process


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_session(
    image_archive: ImageArchive, target: Target, front_end: FrontEnd, name: str
) -> None:
    process = prepared(image_archive, name, target)
    recording = load_recording(image_archive(name), target.pid)
    assert differing_ranges(target, process.ranges), "the memory is right before the restore"
    with HelperProcess(recording.pages, front_end=front_end) as helper:
        answers = tuple(helper.ask(request) for request in recording.requests)
        worker = helper.worker_pid
        outcome = helper.finish()
        # At this point the restored task creates its threads with exact TIDs: none may be taken.
        assert not exists(worker)
    assert answers == recording.answers
    assert (outcome.status, outcome.stderr, outcome.stdout) == (0, "", b"")
    assert differing_ranges(target, process.ranges) == []


@pytest.mark.parametrize("name", ["criu-perpage", "criu-region256k"])
def test_zero_pages_over_a_private_file_mapping(
    image_archive: ImageArchive, target: Target, name: str
) -> None:
    process = prepared(image_archive, name, target)
    recording = load_recording(image_archive(name), target.pid)
    pages = process.zero_pages_over_file
    assert len(pages) == 17
    with HelperProcess(recording.pages) as helper:
        for request in recording.requests:
            helper.ask(request)
        assert helper.finish().status == 0
    assert [target.read(page, PAGE_SIZE) for page in pages] == [ZERO_PAGE] * 17


def test_file_pages_are_there_before(image_archive: ImageArchive, target: Target) -> None:
    """Without this, the test above could pass over memory that was never the file's."""
    process = prepared(image_archive, "criu-perpage", target)
    assert all(target.read(page, PAGE_SIZE) != ZERO_PAGE for page in process.zero_pages_over_file)
    rows = image_archive("criu-perpage") / "files" / "rows.bin"
    first = hashlib.sha256(target.read(process.zero_pages_over_file[0], PAGE_SIZE)).digest()
    assert first == hashlib.sha256(rows.read_bytes()[16 * PAGE_SIZE :][:PAGE_SIZE]).digest()


def test_one_byte_at_a_time(image_archive: ImageArchive, target: Target) -> None:
    process = prepared(image_archive, "criu-region256k", target)
    recording = load_recording(image_archive("criu-region256k"), target.pid)
    with HelperProcess(recording.pages) as helper:
        for request in recording.requests:
            for at in range(len(request)):
                helper.send(request[at : at + 1])
        answers = [helper.receive() for _ in recording.requests]
        assert helper.finish().status == 0
    assert tuple(answers) == recording.answers
    assert differing_ranges(target, process.ranges) == []


def test_all_requests_at_once(
    image_archive: ImageArchive, target: Target, front_end: FrontEnd
) -> None:
    process = prepared(image_archive, "criu-fragmented", target)
    recording = load_recording(image_archive("criu-fragmented"), target.pid)
    with HelperProcess(recording.pages, front_end=front_end) as helper:
        helper.send(b"".join(recording.requests))
        answers = [helper.receive() for _ in recording.requests]
        assert helper.finish().status == 0
    assert tuple(answers) == recording.answers
    assert differing_ranges(target, process.ranges) == []


def test_twice_with_one_helper(image_archive: ImageArchive, target: Target) -> None:
    """A second pass over restored memory finds every page populated."""
    process = prepared(image_archive, "criu-perpage", target)
    recording = load_recording(image_archive("criu-perpage"), target.pid)
    with HelperProcess(recording.pages) as helper:
        for item in process.ranges:
            target.fill(item.address, item.n_bytes, 0xAA)
        for _ in range(2):
            assert tuple(map(helper.ask, recording.requests)) == recording.answers
            assert differing_ranges(target, process.ranges) == []
        assert helper.finish().status == 0
