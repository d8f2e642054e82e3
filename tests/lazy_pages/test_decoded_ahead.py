"""What is decoded before there is memory for it: the pages as dumped, in the order asked for."""

from __future__ import annotations

import ctypes
import random
import threading
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.images.inventory import Schema
from helperd.images.lookup import open_lookup
from helperd.lazy_pages.ahead import Ahead
from helperd.lazy_pages.bring import PageReader
from tests.lazy_pages.client import address_of
from tests.lazy_pages.test_daemon import ZERO, content, images_of

N_PAGES = 100
MEMORY = content(N_PAGES)
NUMBERS = random.Random(5).sample(range(N_PAGES), 60)


def found(ahead: Ahead) -> list[tuple[int, int, bytes]]:
    """Return the pages, each as it is when it is given."""
    return [
        (number, to, ctypes.string_at(source, PAGE_SIZE) if source else ZERO)
        for pages in ahead.pages(PageReader())
        for number, to, source in pages
    ]


def dumped(numbers: list[int]) -> list[tuple[int, int, bytes]]:
    return [
        (number, address_of(number), MEMORY[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
        for number in numbers
    ]


@pytest.mark.parametrize("room", [0, 1, 7, 60, 1000])
@pytest.mark.parametrize(
    ("schema", "region"), [(Schema.NONE, None), (Schema.SIZES, 0), (Schema.SIZES, 16)]
)
def test_all_come_in_order_however_many_are_kept(
    tmp_path: Path, schema: Schema, region: int | None, room: int
) -> None:
    lookup = open_lookup(str(images_of(tmp_path / "i", MEMORY, schema, region)), "pagemap-7.img")
    lookup.load_tables()
    ahead = Ahead(lookup, NUMBERS, room)
    assert ahead.n_kept == min(room, len(NUMBERS))
    ahead.decode(PageReader())
    assert found(ahead) == dumped(NUMBERS)


def test_none_is_decoded_any_more_once_there_is_memory(tmp_path: Path) -> None:
    lookup = open_lookup(str(images_of(tmp_path / "images", MEMORY)), "pagemap-7.img")
    ahead = Ahead(lookup, NUMBERS, len(NUMBERS))
    ahead.is_ready = True
    ahead.decode(PageReader())
    assert not ahead._decoded
    assert found(ahead) == dumped(NUMBERS)


@pytest.mark.parametrize("is_decoded", [True, False])
def test_a_corrupt_page_is_left_to_who_brings_its_block(tmp_path: Path, is_decoded: bool) -> None:
    images = images_of(tmp_path / "images", MEMORY, Schema.SIZES, 0)
    lookup = open_lookup(str(images), "pagemap-7.img")
    lookup.load_tables()
    bad = next(n for n in NUMBERS[5:] if 0 < lookup.place(n)[2] < PAGE_SIZE)
    _, offset, size, _, _ = lookup.place(bad)
    with open(images / "pages-1.img", "r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * size)
    ahead = Ahead(lookup, NUMBERS, len(NUMBERS) if is_decoded else 0)
    ahead.decode(PageReader())
    assert found(ahead) == dumped([number for number in NUMBERS if number != bad])


def test_several_threads_decode_each_page_once(tmp_path: Path) -> None:
    images = images_of(tmp_path / "images", MEMORY, Schema.SIZES, 16)
    lookup = open_lookup(str(images), "pagemap-7.img")
    lookup.load_tables()
    ahead = Ahead(lookup, NUMBERS, 50)
    threads = [threading.Thread(target=ahead.decode, args=(PageReader(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ahead._decoded) == 50
    assert sorted(found(ahead)) == sorted(dumped(NUMBERS))
