"""Pages encoded many at a time: what is stored of each, and where it lies until it is written."""

from __future__ import annotations

import random
from array import array

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, raw_threshold
from helperd.codec import libblosc
from helperd.codec.encode import PIECE_PAGES, Encoder, Placed
from helperd.kernel.syscalls import joined

_rnd = random.Random(7)
NOISE = _rnd.randbytes(PAGE_SIZE)
#: Pages by what has to become of them.
KINDS = {
    "zero": bytes(PAGE_SIZE),
    "noise": NOISE,
    "text": (b"seventeen and so on, " * 200)[:PAGE_SIZE],
    "begins with zeros": bytes(PAGE_SIZE - 8) + b"not zero",
    "little noise": NOISE[:64].ljust(PAGE_SIZE, b"\0"),
    "nearly noise": NOISE[: raw_threshold(PAGE_SIZE) + 8].ljust(PAGE_SIZE, b"\0"),
}
RAW = {"noise", "nearly noise"}
assert {len(page) for page in KINDS.values()} == {PAGE_SIZE}


@pytest.fixture(scope="module", params=["libblosc", "liblz4"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "liblz4":
            monkeypatch.setattr(libblosc, "_library", None)
        return Encoder(1, per_page=True)


def place(encoder: Encoder, kinds: list[str]) -> Placed:
    content = b"".join(KINDS[kind] for kind in kinds)
    encoder.pages[: len(content)] = content
    return encoder.place(array("H", (1,)) * len(kinds))


def check(kinds: list[str], sizes: array[int], payload: bytes | bytearray) -> None:
    assert len(sizes) == len(kinds)
    at = 0
    for kind, size in zip(kinds, sizes, strict=True):
        stored, at = payload[at : at + size], at + size
        if kind == "zero":
            assert size == 0
        elif kind in RAW:
            assert stored == KINDS[kind]
        else:
            assert 0 < size < raw_threshold(PAGE_SIZE)
            assert lz4.block.decompress(stored, uncompressed_size=PAGE_SIZE) == KINDS[kind]
    assert at == len(payload)


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=24))
def test_what_is_stored_of_each_page(encoder: Encoder, kinds: list[str]) -> None:
    placed = place(encoder, kinds)
    assert placed.n_bytes == sum(placed.ranges[1::2]) == sum(placed.sizes)
    sizes = array("I", placed.sizes)
    payload = joined(placed.ranges, placed.n_bytes)
    check(kinds, sizes, payload)
    # The same as a copy of it, which stays when the buffer is used again.
    copy = encoder.encode(array("H", (1,)) * len(kinds))
    encoder.pages[: len(kinds) * PAGE_SIZE] = bytes(len(kinds) * PAGE_SIZE)
    encoder.place(array("H", (1,)) * len(kinds))
    assert (copy.sizes, copy.payload) == (sizes, payload)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pieces_of_one_kind(encoder: Encoder, kind: str) -> None:
    kinds = [kind] * PIECE_PAGES
    placed = place(encoder, kinds)
    check(kinds, placed.sizes, joined(placed.ranges, placed.n_bytes))


def test_sizes_are_the_callers_own(encoder: Encoder) -> None:
    first = place(encoder, ["zero", "noise", "text"] * 3)
    kept = array("I", first.sizes)
    place(encoder, ["text", "zero", "noise"] * 3)
    assert first.sizes == kept
    zeros = place(encoder, ["zero"] * 4).sizes
    zeros[0] = 1
    assert place(encoder, ["zero"] * 4).sizes == array("I", bytes(16))
