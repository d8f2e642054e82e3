"""Stored sizes decoded many at a time are those that they are one by one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helperd.errors import ImageFormatError
from helperd.images.fields import _UNPACKED, encode_varint
from helperd.images.sizes import _decode_short, _one_by_one, table_sizes

SIZES = st.lists(
    st.one_of(
        st.sampled_from((0, 1, 0x30, 127, 128, 4096, 16383, 16384)),
        st.integers(0, 5000),
        st.integers(0, (1 << 32) - 1),
    ),
    min_size=1,
    max_size=200,
)
SHORT = st.lists(st.integers(0, 16383), min_size=40, max_size=200)


def keyed(sizes: list[int]) -> bytes:
    return b"".join(b"\x30" + encode_varint(size) for size in sizes)


def packed(sizes: list[int]) -> bytes:
    return b"".join(map(encode_varint, sizes))


def field(key: int, body: bytes) -> bytes:
    return encode_varint(key << 3 | 2) + encode_varint(len(body)) + body


@given(st.one_of(SIZES, SHORT, SHORT.map(sorted)))
@example([1500] * 20_000)
@example([1 << 20] * 20_000)
@example([0] * 300 + [4096] * 300)
def test_either_schema_has_the_sizes(sizes: list[int]) -> None:
    assert table_sizes(keyed(sizes), flat=True).tolist() == sizes
    assert table_sizes(field(6, packed(sizes)), flat=True).tolist() == sizes
    nested = field(1, packed(sizes)) + b"\x10\x05"
    assert table_sizes(field(6, nested), flat=False).tolist() == sizes


@given(SHORT)
def test_short_sizes_are_decoded_at_once(sizes: list[int]) -> None:
    for part, is_keyed in ((keyed(sizes), True), (packed(sizes), False)):
        if len(part) >= 32:
            found = _decode_short(part, is_keyed=is_keyed)
            assert found is not None
            assert found.tolist() == sizes


@given(
    st.lists(st.sampled_from((0x30, 0x00, 0x31, 0x80, 0xB0, 0xFF, 0x7F)), min_size=32, max_size=60)
)
def test_what_is_decoded_at_once_was_nothing_else(octets: list[int]) -> None:
    part = bytes(octets)
    at_once = _decode_short(part, is_keyed=True)
    if at_once is not None:
        assert _UNPACKED.fullmatch(part)
        assert at_once.tolist() == list(_one_by_one(part, is_keyed=True))
    at_once = _decode_short(part, is_keyed=False)
    if at_once is not None:
        assert at_once.tolist() == list(_one_by_one(part, is_keyed=False))


@pytest.mark.parametrize("end", [b"\xff", b"\x30", b"\x30\xff"])
def test_a_table_that_is_cut_off_is_none(end: bytes) -> None:
    with pytest.raises(ImageFormatError, match="table"):
        table_sizes(keyed([1500] * 100) + end, flat=True)
