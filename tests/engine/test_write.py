"""Where the pages of a chunk go."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE, runs
from helperd.codec.chunk import Chunk
from helperd.codec.decode import Decoded
from helperd.engine.write import write_chunk

_START = 0x7F00_0000_0000


class Target:
    """Takes what is written, as a table from each page to where it comes from."""

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}
        self.zeros: list[int] = []

    def write(self, local: array[int], remote: array[int], n_bytes: int) -> None:
        sources, destinations = spread(local), spread(remote)
        assert len(sources) == len(destinations) == n_bytes >> PAGE_SHIFT
        self.pages = dict(zip(destinations, sources, strict=True))

    def zeros_to_write(self, address: int, live: bytearray) -> list[tuple[int, int]]:
        for first, count in runs(live, 0):
            self.zeros += [address + (first + n) * PAGE_SIZE for n in range(count)]
        return []


def spread(ranges: array[int]) -> list[int]:
    """Return the addresses of the pages in ranges."""
    pairs = zip(ranges[0::2], ranges[1::2], strict=True)
    return [page for start, n_bytes in pairs for page in range(start, start + n_bytes, PAGE_SIZE)]


@given(data=st.data(), in_place=st.booleans())
def test_each_live_page_is_written_to_its_place(data: st.DataObject, in_place: bool) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    address, ranges = data.draw(st.sampled_from([1 << 16, _START + (1 << 40)])), []
    for length in lengths:
        ranges.append((address, length))
        address += (length + data.draw(st.integers(0, 3))) * PAGE_SIZE
    n_pages = sum(lengths)
    live = bytearray(data.draw(st.lists(st.booleans(), min_size=n_pages, max_size=n_pages)))
    places = [page for page in range(n_pages) if live[page]]
    if not in_place:
        places = list(range(len(places)))
    sources = [_START + place * PAGE_SIZE for place in places]
    local = array("Q", [word for source in sources for word in (source, PAGE_SIZE)])
    chunk = Chunk(0, 0, n_pages, array("I"), array("H"), 0, ranges)
    target = Target()
    write_chunk(target, chunk, Decoded(live, local, _START if in_place else None))  # type: ignore[arg-type]
    destinations = [start + n * PAGE_SIZE for start, count in ranges for n in range(count)]
    alive = [page for page, is_live in zip(destinations, live, strict=True) if is_live]
    assert target.pages == dict(zip(alive, sources, strict=True))
    assert target.zeros == [page for page in destinations if page not in target.pages]
