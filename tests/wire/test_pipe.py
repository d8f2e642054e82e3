"""The protocol without I/O: valid requests survive, all others are refused with a reason."""

from __future__ import annotations

import os
import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, max_stored_size
from helperd.errors import MalformedRequest, ProtocolError, RequestTooLarge, TruncatedRequest
from helperd.restorer.build import build_request
from helperd.wire.pipe import (
    HEADER,
    MAX_RESTORER_IOVECS,
    READ_SIZE,
    Request,
    RequestReader,
    pack_answer,
    unpack_answer,
)


@st.composite
def destinations(draw: st.DrawFn, n_pages: int) -> list[int]:
    """Ranges of ``n_pages`` pages in all that do not overlap, in any order."""
    ranges = []
    address = draw(st.integers(0, 1 << 20)) * PAGE_SIZE
    while n_pages:
        pages = draw(st.integers(1, n_pages))
        ranges.append((address, pages * PAGE_SIZE))
        address += (pages + draw(st.integers(0, 3))) * PAGE_SIZE
        n_pages -= pages
    return [value for pair in draw(st.permutations(ranges)) for value in pair]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    region_pages = draw(st.sampled_from([0, 0, 1, 3, 64, 1024]))
    n_blocks = draw(st.integers(0, 20))
    block_pages = [
        draw(st.integers(1, region_pages)) for _ in range(n_blocks if region_pages else 0)
    ]
    bounds = [max_stored_size(n * PAGE_SIZE) for n in block_pages or [1] * n_blocks]
    sizes = [draw(st.sampled_from([0, 1, bound - 1, bound])) for bound in bounds]
    return build_request(
        remote_pid=draw(st.integers(1, 2**31 - 1)),
        offs=draw(st.integers(0, 2**62)),
        region_pages=region_pages,
        sizes=sizes,
        block_pages=block_pages,
        iovs=draw(destinations(sum(block_pages) if region_pages else n_blocks)),
    )


def fields(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in Request.__slots__}


def parse(data: bytes, **options: int) -> list[Request]:
    """Parse all requests in ``data``, which ends on a request boundary."""
    reader = RequestReader(**options)
    reader.receive_data(data)
    found = []
    while (request := reader.next_request()) is not None:
        found.append(request)
    reader.receive_eof()
    return found


@given(requests())
def test_a_valid_request_survives(request: Request) -> None:
    (parsed,) = parse(request.to_bytes())
    assert fields(parsed) == fields(request)
    assert parsed.to_bytes() == request.to_bytes()


@given(st.lists(requests(), max_size=4), st.data())
def test_however_it_is_cut(sent: list[Request], data: st.DataObject) -> None:
    stream = b"".join(request.to_bytes() for request in sent)
    reader, received = RequestReader(), []
    while stream:
        cut = data.draw(st.integers(1, min(len(stream), 200)))
        reader.receive_data(stream[:cut])
        stream = stream[cut:]
        while (request := reader.next_request()) is not None:
            received.append(request)
    assert list(map(fields, received)) == list(map(fields, sent))
    assert not reader.mid_request
    reader.receive_eof()


@given(st.lists(requests(), min_size=1, max_size=3))
def test_reading_what_is_wanted(sent: list[Request]) -> None:
    stream, reader = b"".join(request.to_bytes() for request in sent), RequestReader()
    position = 0
    for request in sent:
        while (parsed := reader.next_request()) is None:
            assert 1 <= reader.bytes_wanted <= READ_SIZE
            assert position < len(stream), "it waits for more than there is"
            end = position + reader.bytes_wanted
            reader.receive_data(stream[position:end])
            position = end
        assert fields(parsed) == fields(request)
    assert not reader.mid_request


def test_no_more_is_read_than_this_request_once_its_header_is_there() -> None:
    """Before that a small request comes in one read, however small."""
    request = build_request(
        remote_pid=1, offs=0, region_pages=0, sizes=[1] * 9, block_pages=[], iovs=[0, 9 * PAGE_SIZE]
    ).to_bytes()
    reader = RequestReader()
    assert reader.bytes_wanted == READ_SIZE
    reader.receive_data(request[: HEADER.size + 3])
    assert reader.next_request() is None
    assert reader.bytes_wanted == len(request) - HEADER.size - 3


def test_256_gib_at_once_unless_told_otherwise() -> None:
    n_pages = (256 << 30) // PAGE_SIZE
    for n, fits in ((n_pages, True), (n_pages + 1, False)):
        reader = RequestReader()
        # One block for each region of 1024 pages, and a header for that is all there is.
        reader.receive_data(HEADER.pack(1, 0, 0, n, 1, -(-n // 1024), 1024))
        if fits:
            assert reader.next_request() is None
        else:
            with pytest.raises(RequestTooLarge):
                reader.next_request()


@settings(max_examples=500)
@given(requests(), st.data())
def test_any_mutation_is_valid_or_a_clear_error(request: Request, data: st.DataObject) -> None:
    stream = bytearray(request.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream) - 1))
        stream[place] = data.draw(st.integers(0, 255))
    del stream[
        data.draw(st.integers(0, len(stream))) if data.draw(st.booleans()) else len(stream) :
    ]
    reason = "valid"
    try:
        for parsed in parse(bytes(stream)):
            parsed.validate()
    except ProtocolError as error:
        reason = str(error)
    assert len(reason.splitlines()) == 1


HEADER_FIELDS = ["remote_pid", "offs", "total", "n_pages", "nr_iovs", "n_blocks", "region_pages"]


def message(*, tail: bytes | None = None, **changes: int) -> bytes:
    """Two pages, one LZ4 of 100 bytes and one zero, in two iovecs; with fields changed."""
    values = {
        "remote_pid": 1,
        "offs": 0,
        "total": 100,
        "n_pages": 2,
        "nr_iovs": 2,
        "n_blocks": 2,
        "region_pages": 0,
    }
    values |= changes
    if tail is None:
        tail = struct.pack("<2I4Q", 100, 0, 0x10000, 4096, 0x20000, 4096)
    return HEADER.pack(*(values[name] for name in HEADER_FIELDS)) + tail


def test_the_message_is_valid_unchanged() -> None:
    assert len(parse(message())) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"remote_pid": 0}, "remote_pid is 0"),
        ({"remote_pid": -1}, "remote_pid is -1"),
        ({"offs": -1}, "lies in no file"),
        ({"offs": 2**63 - 1}, "lies in no file"),
        ({"offs": 2**63 - 100}, "lies in no file"),
        ({"total": 99}, "add up to 100"),
        ({"total": 2**64 - 1}, "lies in no file"),
        ({"n_pages": -2}, "negative count"),
        ({"n_blocks": -2}, "negative count"),
        ({"nr_iovs": -2}, "negative count"),
        ({"n_pages": 3}, "per-page mode with n_blocks 2 and n_pages 3"),
        ({"n_blocks": 2**31 - 1}, "per-page mode"),
        ({"nr_iovs": 3}, "nr_iovs is 3"),
        ({"region_pages": 1025}, "region_pages is 1025"),
        ({"region_pages": 1, "n_pages": 3}, "cannot cover 3 pages"),
        ({"region_pages": 64, "n_blocks": 3}, "cannot cover 2 pages"),
    ],
)
def test_a_wrong_header_is_refused_before_its_tables(changes: dict[str, int], reason: str) -> None:
    reader = RequestReader()
    tables_matter = changes == {"total": 99}
    reader.receive_data(message(**changes) if tables_matter else message(tail=b"", **changes))
    with pytest.raises(MalformedRequest, match=reason):
        reader.next_request()


def test_a_lying_count_takes_no_memory_and_no_patience() -> None:
    reader = RequestReader()
    reader.receive_data(message(tail=b"", n_pages=2**31 - 1, n_blocks=2**31 - 1, nr_iovs=1))
    with pytest.raises(RequestTooLarge, match="--max-request"):
        reader.next_request()


def test_the_request_limit() -> None:
    assert len(parse(message(), max_pages=2)) == 1
    with pytest.raises(RequestTooLarge):
        parse(message(), max_pages=1)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ((4129, 0, 0x10000, 4096, 0x20000, 4096), "block 0 is 4129"),
        ((100, 0, 0x10001, 4096, 0x20000, 4096), "iovec 0 .* whole pages"),
        ((100, 0, 0x10000, 4095, 0x20000, 4097), "iovec 0 .* whole pages"),
        ((100, 0, 0x10000, 4096, 0x20001, 4096), "iovec 1 .* whole pages"),
        ((100, 0, 0x10000, 4096, 2**64 - 4096, 8192), "iovecs cover 12288 bytes"),
        ((100, 0, 0x10000, 8192, 0x20000, 0), "iovec 1 .* is empty"),
        ((100, 0, 0x10000, 4096, 0x20000, 8192), "iovecs cover 12288 bytes"),
        ((100, 0, 0x10000, 4096, 0x10000, 4096), "overlaps"),
        ((100, 0, 0x10000, 4096, 2**64 - 4096, 4096), None),
        ((100, 0, 2**64 - 4096, 4096, 0x10000, 4096), None),
    ],
)
def test_tables(tables: tuple[int, ...], reason: str | None) -> None:
    total = sum(tables[:2])
    data = message(total=total, tail=struct.pack("<2I4Q", *tables))
    if reason is None:
        assert len(parse(data)) == 1
    else:
        with pytest.raises(MalformedRequest, match=reason):
            parse(data)


def test_an_iovec_beyond_the_address_space() -> None:
    tail = struct.pack("<2I2Q", 100, 0, 2**64 - 4096, 8192)
    with pytest.raises(MalformedRequest, match=r"iovec 0 .* leaves the address space"):
        parse(message(nr_iovs=1, tail=tail))
    tail = struct.pack("<3I4Q", 100, 0, 0, 0x10000, 4096, 2**64 - 4096, 8192)
    with pytest.raises(MalformedRequest, match=r"iovec 1 .* leaves the address space"):
        parse(message(n_pages=3, n_blocks=3, tail=tail))


@pytest.mark.parametrize("n_pages", [1, 3])
@pytest.mark.parametrize(
    ("base", "more", "reason"),
    [
        (0x10000, 0, None),
        (0, 0, None),
        (-1, 0, None),
        (0x10001, 0, "whole pages"),
        (0x10800, 0, "whole pages"),
        (0x10FFF, 1, "whole pages"),
        (0x10000, 1, "whole pages"),
        (0x10000, -1, "whole pages"),
        (0x10000, 4096, "iovecs cover"),
        (0x10000, -4096, "is empty|iovecs cover"),
    ],
)
def test_one_iovec(n_pages: int, base: int, more: int, reason: str | None) -> None:
    length = n_pages * PAGE_SIZE
    if base < 0:
        base = 2**64 - length  # ends with the address space
    sizes = [100, *[0] * (n_pages - 1)]
    tail = struct.pack(f"<{n_pages}I2Q", *sizes, base, length + more)
    data = message(total=100, n_pages=n_pages, n_blocks=n_pages, nr_iovs=1, tail=tail)
    if reason is None:
        (request,) = parse(data)
        assert list(request.iovs) == [base, length]
        assert list(request.sizes) == sizes
    else:
        with pytest.raises(MalformedRequest, match=reason):
            parse(data)


def test_the_iovec_that_is_wrong_is_named_not_its_neighbour() -> None:
    tail = struct.pack("<4I4Q", 100, 0, 0, 0, 2**64 - 4096, 4096, 2**64 - 8192, 12288)
    with pytest.raises(MalformedRequest, match=r"iovec 1 .* leaves the address space"):
        parse(message(n_pages=4, n_blocks=4, tail=tail))
    tail = struct.pack("<3I6Q", 100, 0, 0, 0x11000, 4096, 0x10000, 4096, 0x11000, 4096)
    with pytest.raises(MalformedRequest, match=r"iovec 0 .* overlaps"):
        parse(message(n_pages=3, n_blocks=3, nr_iovs=3, tail=tail))


def test_payload_up_to_the_last_byte_that_a_file_can_have() -> None:
    (request,) = parse(message(offs=2**63 - 101))
    assert request.offs + request.total_compressed_size == 2**63 - 1


def test_a_restorer_s_iovecs_are_one_less_than_a_system_call_takes() -> None:
    assert os.sysconf("SC_IOV_MAX") - 1 == MAX_RESTORER_IOVECS


def test_a_stored_size_that_no_block_of_so_many_pages_has() -> None:
    tail = struct.pack("<2I2H2Q", 100, 2**15, 1, 2, 0x10000, 3 * PAGE_SIZE)
    data = message(total=100 + 2**15, tail=tail, nr_iovs=1, n_pages=3, region_pages=2)
    with pytest.raises(MalformedRequest, match=r"block 1 is 32768, the most for 2 .* is 8240$"):
        parse(data)


@pytest.mark.parametrize(
    ("block_pages", "n_pages", "reason"),
    [
        ((2, 1), 3, None),
        ((2, 1), 2, "add up to 3"),
        ((0, 2), 2, "block 0 has 0 pages"),
        ((3, 1), 4, "block 0 has 3 pages"),
    ],
)
def test_block_pages(block_pages: tuple[int, int], n_pages: int, reason: str | None) -> None:
    tail = struct.pack("<2I2H2Q", 100, 0, *block_pages, 0x10000, n_pages * PAGE_SIZE)
    data = message(tail=tail, nr_iovs=1, n_pages=n_pages, region_pages=2)
    if reason is None:
        assert parse(data)[0].block_pages == array("H", block_pages)
    else:
        with pytest.raises(MalformedRequest, match=reason):
            parse(data)


@pytest.mark.parametrize("length", range(1, len(message())))
def test_the_end_inside_a_request(length: int) -> None:
    reader = RequestReader()
    reader.receive_data(message()[:length])
    assert reader.next_request() is None
    assert reader.mid_request
    with pytest.raises(TruncatedRequest, match=f"after {length} of"):
        reader.receive_eof()


def test_a_request_of_no_pages() -> None:
    (request,) = parse(message(total=0, n_pages=0, nr_iovs=0, n_blocks=0, tail=b""))
    assert request.n_pages == request.n_blocks == request.nr_iovs == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"remote_pid": 2**31},
        {"remote_pid": 0},
        {"offs": -1},
        {"offs": 2**63},
        {"region_pages": 1025},
        {"region_pages": -1},
        {"sizes": [2**32]},
        {"sizes": [-1]},
        {"sizes": [4129]},
        {"region_pages": 4, "block_pages": [2**16]},
        {"iovs": [0x1000, 8192]},
        {"iovs": [-4096, 4096]},
    ],
)
def test_building_an_invalid_request(changes: dict[str, object]) -> None:
    valid = {
        "remote_pid": 1,
        "offs": 0,
        "region_pages": 0,
        "sizes": [100],
        "iovs": [0x1000, 4096],
    }
    build_request(**valid)  # type: ignore[arg-type]
    with pytest.raises(MalformedRequest):
        build_request(**(valid | changes))  # type: ignore[arg-type]


@given(st.integers(-(2**63), 2**63 - 1))
def test_answers(value: int) -> None:
    assert len(pack_answer(value)) == 8
    assert unpack_answer(pack_answer(value)) == value
