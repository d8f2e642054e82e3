"""One verdict for one LZ4 block: LZ4_decompress_safe's, however many blocks are decoded at once."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, max_stored_size
from helperd.codec import frames
from helperd.codec.block import decode_block
from helperd.codec.chunk import Chunk
from helperd.codec.decoders import Decoders
from helperd.errors import CorruptBlock, ResourceError
from tests.support.image import compress, text


def length(base: int, rest: int) -> bytes:
    """Return the bytes that extend a length in a token."""
    rest -= base
    return b"" if rest < 0 else b"\xff" * (rest // 255) + bytes([rest % 255])


def sequence(literals: bytes, offset: int = 0, match: int = 0) -> bytes:
    """Return an LZ4 sequence: literals, then a match unless it is the last one."""
    low = min(match - 4, 15) if match else 0
    stored = bytes([min(len(literals), 15) << 4 | low]) + length(15, len(literals)) + literals
    if match:
        stored += offset.to_bytes(2, "little") + length(15, match - 4)
    return stored


def page_block(n_literals: int, match: int, last: int, offset: int, seed: int = 0) -> bytes:
    """Return a block of a page that ends with ``match`` bytes copied and ``last`` literals.

    Args:
        n_literals: before the last match.
        match: its length.
        last: literals behind it.
        offset: of the last match.
        seed: of the literals.
    """
    words = text(2, seed)
    first = PAGE_SIZE - match - last - n_literals
    head = sequence(words[:64], 64, first - 64)
    body = sequence(words[64 : 64 + n_literals], offset, match)
    return head + body + sequence(words[200 : 200 + last])


def accepts(stored: bytes) -> bool:
    """Return the verdict of the reference decoder."""
    try:
        decode_block(stored, PAGE_SIZE)
    except CorruptBlock:
        return False
    return True


def decode_many(path: Path, blocks: list[bytes], decoders: Decoders | None = None) -> bool:
    """Return whether a chunk of these blocks decodes, to what each of them decodes to by itself."""
    path.write_bytes(b"".join(blocks))
    sizes = array("I", map(len, blocks))
    n = len(blocks)
    chunk = Chunk(0, 0, n, sizes, array("H"), 0, [(0x10000, n)])
    fd = os.open(path, os.O_RDONLY)
    try:
        decoders = decoders or Decoders()
        decoded = decoders.decode(fd, chunk)
    except CorruptBlock as error:
        failure = str(error)
    else:
        pages = [ctypes.string_at(address, PAGE_SIZE) for address in decoded.local[0::2]]
        assert pages == [decode_block(block, PAGE_SIZE) for block in blocks if block]
        return True
    finally:
        os.close(fd)
    assert "block 7 " in failure
    return False


def surrounded(stored: bytes) -> list[bytes]:
    """Return a chunk's blocks, ``stored`` being number 7 among ordinary ones."""
    blocks = [compress(text(1, seed)) for seed in range(20)]
    blocks[3], blocks[11] = bytes(range(256)) * 16, b""
    blocks[7] = stored
    return blocks


@pytest.fixture(scope="module", params=["in frames", "one by one"], autouse=True)
def _decoding(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let all verdicts be given with a liblz4 as it is, and with one that knows no pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_usable", request.param == "in frames")
        yield


def test_this_liblz4_can_be_told_the_size_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_usable", None)
    assert frames.usable()


def test_a_liblz4_with_another_context_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_usable", None)
    monkeypatch.setattr(frames, "_CONTEXT_WORDS", 2)  # The word is not among them.
    assert not frames.usable()


def test_a_liblz4_that_is_not_strict_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = frames.PageFrame._begin

    def without_size(frame: frames.PageFrame) -> None:
        begin(frame)
        frame._largest.value = 64 << 10

    monkeypatch.setattr(frames, "_usable", None)
    monkeypatch.setattr(frames.PageFrame, "_begin", without_size)
    assert not frames.usable()


class Judge:
    """Judges blocks as LZ4_decompress_safe does, but for what it lets pass.

    Args:
        passes: is told of a block that is against the rules how many bytes it decodes to, how many
            literals are at its end, how far before its end the last match begins, and whether it is
            cut off; says whether it is good all the same.
        least: bytes before the end at which the last match may begin.
    """

    def __init__(
        self, passes: Callable[[int, int, int, bool], bool] = lambda *_: False, least: int = 12
    ) -> None:
        self._passes = passes
        self._least = least

    def decompress(self, source: int, size: int, destination: int, n_pages: int) -> bool:
        data, good = ctypes.string_at(source, size), True
        while data:
            header = int.from_bytes(data[:4], "little")
            stored = data[4 : 4 + (header & 0x7FFFFFFF)]
            data = data[4 + len(stored) :]
            if not header >> 31:
                facts = ending(stored)
                right = (
                    facts[0] == PAGE_SIZE
                    and facts[1] >= 5
                    and facts[2] >= self._least
                    and not facts[3]
                )
                good = good and (right or self._passes(*facts))
        ctypes.memset(destination, 1, n_pages * PAGE_SIZE)
        return good


def ending(stored: bytes) -> tuple[int, int, int, bool]:
    """Return what a Judge has to know of a block that is made of ones."""
    at = total = last = begun = 0
    while at < len(stored):
        token, at = stored[at], at + 1
        literals = token >> 4
        assert literals < 15
        at, total, last = at + literals, total + literals, literals
        if at >= len(stored):
            return total, last, total - begun, at > len(stored)
        at, match = at + 2, token & 15
        if match == 15:
            while stored[at] == 255:
                match, at = match + 255, at + 1
            match, at = match + stored[at], at + 1
        begun, total = total, total + match + 4
    return total, 0, total - begun, True


@pytest.mark.parametrize(
    "passes",
    [
        lambda total, *_: total == PAGE_SIZE + 1,
        lambda total, *_: total == PAGE_SIZE - 1,
        lambda total, *_: total == 2 * PAGE_SIZE,
        # Of the right length, but for their ends.
        *(lambda total, last, *_, n=n: (total, last) == (PAGE_SIZE, n) for n in range(5)),
        *(
            lambda total, last, before, _, n=n: (total, last, before) == (PAGE_SIZE, n, 11)
            for n in (5, 6, 7)
        ),
        lambda _total, _last, _before, is_cut: is_cut,
    ],
)
def test_a_liblz4_that_lets_anything_pass_is_not_used(
    passes: Callable[[int, int, int, bool], bool],
) -> None:
    """One kind of wrong blocks is enough."""
    assert frames._judges_rightly(cast(frames.PageFrame, Judge()))
    assert not frames._judges_rightly(cast(frames.PageFrame, Judge(passes)))


def test_good_blocks_that_are_refused() -> None:
    class Nothing:
        def decompress(self, *_: int) -> bool:
            return False

    assert not frames._judges_rightly(cast(frames.PageFrame, Nothing()))
    assert not frames._judges_rightly(cast(frames.PageFrame, Judge(least=13)))


@pytest.mark.parametrize("match", [7, 18, 19, 20, 273, 274, 275, 528, 529, 4000])
def test_blocks_to_judge_by_are_what_they_are_said_to_be(match: int) -> None:
    block = frames._block(match, 5)
    assert decode_block(block, 1 + match + 5) == b"\1" * (1 + match + 5)
    assert ending(block) == (1 + match + 5, 5, match + 5, False)
    block = frames._two_matches(PAGE_SIZE, match, 5) if match < 4000 else block
    assert ending(block)[1:] == (5, match + 5, False)


def test_a_new_frame_decodes_the_first_chunk() -> None:
    blocks = [frames._block(PAGE_SIZE - 6, 5)] * 2
    source = array("B", b"".join(len(block).to_bytes(4, "little") + block for block in blocks))
    output = array("B", bytes(2 * PAGE_SIZE))
    frame = frames.PageFrame()
    where = source.buffer_info()[0], len(source), output.buffer_info()[0]
    assert frame.decompress(*where, 2)
    assert output.tobytes() == b"\1" * (2 * PAGE_SIZE)


@pytest.mark.parametrize(("result", "context"), [(1, 0x1000), (0, 0), (1, 0)])
def test_no_memory_for_a_context(
    monkeypatch: pytest.MonkeyPatch, result: int, context: int
) -> None:
    def create(at: Any, version: int) -> int:
        at._obj.value = context
        return result

    monkeypatch.setattr(frames.liblz4, "frame_create", create)
    monkeypatch.setattr(frames.liblz4, "frame_free", lambda context: 0)
    with pytest.raises(ResourceError, match="no memory"):
        frames.PageFrame()


def test_contexts_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    free = frames.liblz4.frame_free

    def note(context: Any) -> Any:
        freed.append(context.value)
        return free(context)

    monkeypatch.setattr(frames.liblz4, "frame_free", note)
    frame = frames.PageFrame()
    context = frame._context.value
    del frame
    assert freed == [context]


def test_a_size_that_a_header_does_not_set_is_not_the_largest_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = frames.PageFrame()
    frame._largest = ctypes.c_size_t(256 << 10)
    with pytest.raises(frames._UnknownContextError):
        frame._begin()


def test_a_frame_that_has_forgotten_the_size_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = frames.PageFrame._run

    def forgetful(frame: frames.PageFrame, *arguments: int) -> int:
        hint = run(frame, *arguments)
        if arguments[-1]:  # Not while it is begun.
            frame._largest.value = 64 << 10
        return hint

    monkeypatch.setattr(frames.PageFrame, "_run", forgetful)
    stored = page_block(20, 6, 5, 64)
    assert not decode_many(tmp_path / "pages.img", surrounded(stored))
    stored = page_block(20, 7, 5, 64)
    assert decode_many(tmp_path / "pages.img", surrounded(stored))


def test_a_decoder_goes_on_after_bad_blocks_and_very_large_ones(tmp_path: Path) -> None:
    literals = bytes(range(256)) * 16
    large = sequence(literals)
    assert PAGE_SIZE < len(large) <= max_stored_size(PAGE_SIZE)
    good, bad = surrounded(page_block(20, 40, 5, 64)), surrounded(page_block(20, 6, 5, 64))
    decoders = Decoders()
    for _ in range(3):
        assert decode_many(tmp_path / "pages.img", surrounded(large), decoders)
        assert not decode_many(tmp_path / "pages.img", bad, decoders)
        assert decode_many(tmp_path / "pages.img", good, decoders)


@settings(max_examples=250, deadline=None)
@given(
    n_literals=st.integers(0, 40),
    match=st.one_of(st.integers(4, 30), st.integers(250, 1200)),
    last=st.integers(0, 20),
    offset=st.integers(1, 300),
    seed=st.integers(0, 5),
)
@example(n_literals=0, match=4, last=5, offset=64, seed=0)
@example(n_literals=10, match=250, last=3, offset=1, seed=0)
@example(n_literals=14, match=10, last=0, offset=1, seed=0)
@example(n_literals=14, match=10, last=4, offset=1, seed=0)
@example(n_literals=0, match=6, last=5, offset=64, seed=0)
@example(n_literals=20, match=5, last=6, offset=64, seed=0)
@example(n_literals=20, match=4, last=7, offset=64, seed=0)
@example(n_literals=20, match=19, last=4, offset=64, seed=0)
@example(n_literals=20, match=400, last=3, offset=64, seed=0)
@example(n_literals=20, match=600, last=2, offset=64, seed=0)
@example(n_literals=20, match=900, last=1, offset=64, seed=0)
@example(n_literals=20, match=1100, last=0, offset=64, seed=0)
def test_blocks_that_end_in_any_way(
    tmp_path_factory: pytest.TempPathFactory,
    n_literals: int,
    match: int,
    last: int,
    offset: int,
    seed: int,
) -> None:
    stored = page_block(n_literals, match, last, offset, seed)
    if len(stored) in (0, PAGE_SIZE) or len(stored) > max_stored_size(PAGE_SIZE):
        return
    path = tmp_path_factory.getbasetemp() / "pages.img"
    assert decode_many(path, surrounded(stored)) == accepts(stored)


@pytest.mark.parametrize(
    ("match", "last"), [(4, 5), (6, 5), (5, 6), (4, 7), (19, 4), (400, 3), (1100, 0)]
)
def test_ends_against_the_rules_are_refused(tmp_path: Path, match: int, last: int) -> None:
    stored = page_block(20, match, last, 64)
    assert not accepts(stored)
    assert not decode_many(tmp_path / "pages.img", surrounded(stored))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_blocks_get_the_same_verdict(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stored = bytearray(page_block(data.draw(st.integers(0, 30)), 40, 6, 64))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(max(0, len(stored) - 40), len(stored) - 1))
        stored[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "pages.img"
    assert decode_many(path, surrounded(bytes(stored))) == accepts(bytes(stored))
