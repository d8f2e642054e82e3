"""The range bookkeeping against a model that knows every byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from helperd.codec.consumed import Consumed

FILE_BYTES = 203
ranges = st.tuples(st.integers(0, FILE_BYTES), st.integers(0, 60))
steps = st.lists(st.one_of(ranges, st.none()), max_size=40)


@settings(max_examples=1000)
@given(steps, st.sampled_from([1, 2, 7, 8, 16, 64, 256]))
def test_whole_blocks_and_nothing_else(
    operations: list[tuple[int, int] | None], block: int
) -> None:
    """None stands for taking what is ready."""
    consumed = Consumed(block, FILE_BYTES)
    used: set[int] = set()
    taken: set[int] = set()
    for operation in [*operations, None]:
        if operation is not None:
            start, end = operation[0], min(operation[0] + operation[1], FILE_BYTES)
            consumed.add(start, end)
            used.update(range(start, end))
            continue
        expected_ready = consumed.ready_bytes
        parts = consumed.take()
        assert parts == sorted(parts)
        for start, end in parts:
            assert start % block == end % block == 0
            new = set(range(start, end))
            assert not new & taken, "handed out twice"
            taken |= new
        assert expected_ready == sum(end - start for start, end in parts)
        assert consumed.ready_bytes == 0
    for start in range(FILE_BYTES):
        for end in (start, start + 1, start + 9):
            part = set(range(start, min(end, FILE_BYTES)))
            assert consumed.overlaps(start, min(end, FILE_BYTES)) is bool(part & used)
    needed = set(range(FILE_BYTES)) - used
    assert not taken & needed, "a needed byte would be destroyed"
    for start in range(0, FILE_BYTES, block):
        whole = set(range(start, min(start + block, FILE_BYTES)))
        if whole <= used:
            assert whole <= taken, "a consumed block was kept"
    edges = {byte for start, end in consumed.edges() for byte in range(start, end)}
    assert edges & set(range(FILE_BYTES)) == used - taken


def test_neighbours_are_merged_before_they_are_handed_out() -> None:
    consumed = Consumed(4096, 1 << 20)
    consumed.add(100, 5000)
    assert consumed.take() == []
    consumed.add(5000, 9000)
    assert consumed.take() == [(4096, 8192)]
    consumed.add(0, 100)
    assert consumed.take() == [(0, 4096)]
    assert consumed.edges() == [(8192, 9000)]
