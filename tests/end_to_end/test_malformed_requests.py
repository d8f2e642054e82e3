"""Requests that break the protocol: an answer of -EPROTO, exit status 3, not one byte written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE, pages_to_bytes
from helperd.errors import EXIT_PROTOCOL
from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, noise, text
from tests.support.processes import peak_rss_bytes
from tests.support.requests import ADDRESS, RawRequest

Change = Callable[[RawRequest], RawRequest]

MIB = 1 << 20
N_PAGES = 8
END = ADDRESS + N_PAGES * PAGE_SIZE
INT_MIN, INT_MAX = -(2**31), 2**31 - 1

#: Raw and LZ4 in turn, so that a helper that goes on would write something.
PER_PAGE = BlockImage()
for _page in range(N_PAGES // 2):
    PER_PAGE.add_raw(noise(1, _page))
    PER_PAGE.add_lz4(text(1, _page))

#: Blocks of 3, 3 and 2 pages.
REGIONS = BlockImage()
REGIONS.add_lz4(text(3))
REGIONS.add_raw(noise(3))
REGIONS.add_lz4(text(2))


def fields(**values: object) -> Change:
    """Return a change that sets fields of a request."""
    return lambda request: replace(request, **values)  # type: ignore[arg-type]


def size_of_first_block(size: int) -> Change:
    """Return a change of one stored size; the sum agrees with it."""
    return lambda request: replace(request, sizes=(size, *request.sizes[1:]))


def iovs(*values: tuple[int, int]) -> Change:
    return fields(iovs=values)


IN_ANY_MODE: dict[str, Change] = {
    "remote_pid 0": fields(remote_pid=0),
    "remote_pid -1": fields(remote_pid=-1),
    "remote_pid INT_MIN": fields(remote_pid=INT_MIN),
    "offs -1": fields(offs=-1),
    "offs INT64_MIN": fields(offs=-(2**63)),
    "payload ends behind 2**63": fields(offs=2**63 - 100),
    "total 0": fields(total_compressed_size=0),
    "total too small by 1": lambda r: replace(r, total_compressed_size=sum(r.sizes) - 1),
    "total too large by 1": lambda r: replace(r, total_compressed_size=sum(r.sizes) + 1),
    "total UINT64_MAX": fields(total_compressed_size=2**64 - 1),
    "total off by 2**32": lambda r: replace(r, total_compressed_size=sum(r.sizes) + 2**32),
    "n_pages 0": fields(n_pages=0),
    "n_pages -1": fields(n_pages=-1),
    "n_pages INT_MIN": fields(n_pages=INT_MIN),
    "n_pages INT_MAX": fields(n_pages=INT_MAX),
    "n_pages one less": fields(n_pages=N_PAGES - 1),
    "n_pages one more": fields(n_pages=N_PAGES + 1),
    "nr_iovs -1": fields(nr_iovs=-1),
    "nr_iovs INT_MIN": fields(nr_iovs=INT_MIN),
    "nr_iovs INT_MAX": fields(nr_iovs=INT_MAX),
    "nr_iovs 0": fields(nr_iovs=0, iovs=()),
    "n_blocks 0": fields(n_blocks=0, sizes=(), block_pages=(), total_compressed_size=0),
    "n_blocks -1": fields(n_blocks=-1),
    "n_blocks INT_MIN": fields(n_blocks=INT_MIN),
    "n_blocks INT_MAX": fields(n_blocks=INT_MAX),
    "region_pages 1025": fields(region_pages=MAX_REGION_PAGES + 1),
    "region_pages UINT32_MAX": fields(region_pages=2**32 - 1),
    "base unaligned": iovs((ADDRESS + 1, N_PAGES * PAGE_SIZE)),
    "base unaligned by 8": iovs((ADDRESS + 8, N_PAGES * PAGE_SIZE)),
    "len unaligned": iovs((ADDRESS, 100), (ADDRESS + PAGE_SIZE, N_PAGES * PAGE_SIZE - 100)),
    "len too small": iovs((ADDRESS, (N_PAGES - 1) * PAGE_SIZE)),
    "len too large": iovs((ADDRESS, (N_PAGES + 1) * PAGE_SIZE)),
    "len with a remainder": iovs((ADDRESS, N_PAGES * PAGE_SIZE + 1)),
    "len right in its low 32 bits": iovs((ADDRESS, 2**32 + N_PAGES * PAGE_SIZE)),
    "len 0 among others": iovs((ADDRESS, 0), (ADDRESS, N_PAGES * PAGE_SIZE)),
    "lens wrap around to the right sum": iovs(
        (ADDRESS, 2**64 - PAGE_SIZE), (ADDRESS, (N_PAGES + 1) * PAGE_SIZE)
    ),
    "range wraps around the address space": iovs((2**64 - PAGE_SIZE, N_PAGES * PAGE_SIZE)),
    "same range twice": iovs(*[(ADDRESS, N_PAGES * PAGE_SIZE // 2)] * 2),
    "ranges overlap by a page": iovs(
        (ADDRESS, 5 * PAGE_SIZE), (ADDRESS + 4 * PAGE_SIZE, 3 * PAGE_SIZE)
    ),
    "ranges overlap in descending order": iovs(
        (ADDRESS + 4 * PAGE_SIZE, 4 * PAGE_SIZE), (ADDRESS + PAGE_SIZE, 4 * PAGE_SIZE)
    ),
}

PER_PAGE_ONLY: dict[str, Change] = {
    "compressed_size beyond the bound": size_of_first_block(4129),
    "compressed_size UINT32_MAX": size_of_first_block(2**32 - 1),
    "fewer blocks than pages": lambda r: replace(r, n_pages=N_PAGES, sizes=r.sizes[1:]),
    "more blocks than pages": lambda r: replace(r, n_pages=N_PAGES, sizes=(*r.sizes, 0)),
}

REGION_ONLY: dict[str, Change] = {
    "compressed_size beyond the bound": size_of_first_block(3 * 4096 + 48 + 16 + 1),
    "compressed_size UINT32_MAX": size_of_first_block(2**32 - 1),
    # All zero, so that no size is wrong for the pages of its block.
    "block of 0 pages": fields(sizes=(0, 0, 0), block_pages=(0, 5, 3), region_pages=5),
    "block of more pages than a region": fields(
        sizes=(0, 0, 0), block_pages=(1, 2, 5), region_pages=4
    ),
    "block of 65535 pages": fields(block_pages=(3, 3, 65535), n_pages=N_PAGES),
    "one page too few": fields(block_pages=(3, 3, 1), n_pages=N_PAGES),
    "one page too many": fields(block_pages=(3, 3, 3), n_pages=N_PAGES),
    "more blocks than pages": lambda r: replace(
        r, n_pages=3, sizes=(0, 0, 0, 0), block_pages=(1, 1, 1, 0), iovs=((ADDRESS, 3 * PAGE_SIZE),)
    ),
}


def cases(changes: dict[str, Change]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("change", list(changes.values()), ids=list(changes))


def assert_refused(target: Target, image: BlockImage, request: RawRequest, folder: Path) -> None:
    """Check that a request is refused without a byte written, far around it."""
    margin_pages = 4
    target.map_anonymous(
        ADDRESS - pages_to_bytes(margin_pages), pages_to_bytes(N_PAGES + 2 * margin_pages)
    )
    with HelperProcess(image.write(folder / "pages.img")) as helper:
        assert helper.ask(request) == -errno.EPROTO
        outcome = helper.finish()
    assert outcome.status == EXIT_PROTOCOL
    assert outcome.error_line
    around = target.present_pages(
        ADDRESS - pages_to_bytes(margin_pages), N_PAGES + 2 * margin_pages
    )
    assert not any(around)


def test_the_unchanged_requests_are_fine(target: Target, tmp_path: Path) -> None:
    target.map_anonymous(ADDRESS, N_PAGES * PAGE_SIZE)
    for image, region_pages in ((PER_PAGE, 0), (REGIONS, 3)):
        with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
            request = image.request(target.pid, ADDRESS, region_pages=region_pages)
            assert helper.ask(request) == image.answer == N_PAGES * PAGE_SIZE
            assert helper.finish().status == 0
        assert target.read(ADDRESS, N_PAGES * PAGE_SIZE) == image.memory


@cases(IN_ANY_MODE | PER_PAGE_ONLY)
def test_per_page_mode(target: Target, tmp_path: Path, change: Change) -> None:
    request = change(PER_PAGE.request(target.pid, ADDRESS))
    assert_refused(target, PER_PAGE, request, tmp_path)


@cases(IN_ANY_MODE | REGION_ONLY)
def test_region_mode(target: Target, tmp_path: Path, change: Change) -> None:
    request = change(REGIONS.request(target.pid, ADDRESS, region_pages=3))
    assert_refused(target, REGIONS, request, tmp_path)


def test_a_header_alone_is_enough_to_refuse(target: Target, tmp_path: Path) -> None:
    """Counts that no limit allows: waiting for their tables would be waiting for 8 GiB."""
    request = replace(
        PER_PAGE.request(target.pid, ADDRESS), n_pages=INT_MAX, n_blocks=INT_MAX, nr_iovs=INT_MAX
    )
    with HelperProcess(PER_PAGE.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(request.header()) == -errno.EPROTO
        outcome = helper.wait()
    assert outcome.status == EXIT_PROTOCOL
    assert "--max-request" in outcome.error_line


def test_a_bad_request_after_a_good_one(target: Target, tmp_path: Path) -> None:
    target.map_anonymous(ADDRESS, N_PAGES * PAGE_SIZE)
    good = PER_PAGE.request(target.pid, ADDRESS)
    with HelperProcess(PER_PAGE.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(good) == PER_PAGE.answer
        assert helper.ask(replace(good, n_pages=-1)) == -errno.EPROTO
        assert helper.finish().status == EXIT_PROTOCOL
    assert target.read(ADDRESS, N_PAGES * PAGE_SIZE) == PER_PAGE.memory


def test_nothing_is_served_after_a_refusal(target: Target, tmp_path: Path) -> None:
    target.map_anonymous(ADDRESS, N_PAGES * PAGE_SIZE)
    good = PER_PAGE.request(target.pid, ADDRESS)
    with HelperProcess(PER_PAGE.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(replace(good, nr_iovs=-1).encode() + good.encode()) == -errno.EPROTO
        assert helper.receive() is None
        assert helper.wait().status == EXIT_PROTOCOL
    assert not any(target.present_pages(ADDRESS, N_PAGES))


@pytest.mark.parametrize("n_pages", [256, 257])
def test_request_limit(target: Target, tmp_path: Path, n_pages: int) -> None:
    image = BlockImage()
    for _ in range(n_pages):
        image.add_zero()
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(image.write(tmp_path / "pages.img"), "--max-request", "1M") as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        outcome = helper.finish()
    if n_pages == 256:
        assert (answer, outcome.status) == (0, 0)
    else:
        assert (answer, outcome.status) == (-errno.EPROTO, EXIT_PROTOCOL)
        assert "--max-request" in outcome.error_line


def test_promised_tables_take_no_memory(target: Target, tmp_path: Path) -> None:
    """A gigabyte of tables is declared and one table begun: memory grows with what arrived."""
    n_pages = 48 << 20
    request = replace(PER_PAGE.request(target.pid, ADDRESS), n_pages=n_pages, n_blocks=n_pages)
    with HelperProcess(PER_PAGE.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(PER_PAGE.request(target.pid, ADDRESS + (1 << 40))) == -errno.EFAULT
        assert helper.finish().status != 0
    with HelperProcess(PER_PAGE.write(tmp_path / "pages.img")) as helper:
        target.map_anonymous(ADDRESS, N_PAGES * PAGE_SIZE)
        assert helper.ask(PER_PAGE.request(target.pid, ADDRESS)) == PER_PAGE.answer
        worker = helper.worker_pid
        before = peak_rss_bytes(worker)
        helper.send(request.header() + bytes(MIB))
        # Once the pipe takes 64 KiB more than it holds, all but that has been taken out of it.
        helper.send(bytes(MIB))
        assert peak_rss_bytes(worker) - before < 16 * MIB
        helper.close_request_pipe()
        assert helper.receive() == -errno.EPROTO
        assert helper.wait().status == EXIT_PROTOCOL


@pytest.mark.parametrize("cut", ["1", "35", "36", "37", "-1", "-16", "half"])
@pytest.mark.parametrize("region_pages", [0, 3], ids=["perpage", "region"])
def test_end_of_input_within_a_request(
    target: Target, tmp_path: Path, cut: str, region_pages: int
) -> None:
    target.map_anonymous(ADDRESS, N_PAGES * PAGE_SIZE)
    image = REGIONS if region_pages else PER_PAGE
    request = image.request(target.pid, ADDRESS, region_pages=region_pages).encode()
    end = len(request) // 2 if cut == "half" else int(cut)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        helper.send(request[:end])
        helper.close_request_pipe()
        assert helper.receive() == -errno.EPROTO
        outcome = helper.finish()
    assert outcome.status == EXIT_PROTOCOL
    assert outcome.error_line
    assert not any(target.present_pages(ADDRESS, N_PAGES))
