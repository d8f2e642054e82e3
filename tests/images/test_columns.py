"""Pagemaps of many records are read by columns as they are record by record, and as they are."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE
from helperd.errors import ImageFormatError
from helperd.images import shapes
from helperd.images.entries import NO_TABLE, Entries

MAGICS = struct.pack("<II", 0x54564319, 0x56084025)
PARENT, LAZY, PRESENT, ALIGNED = 1, 2, 4, 8
#: What can be wrong with one record.
FAULTS = (
    "unaligned",
    "overlap",
    "empty",
    "beyond",
    "flags",
    "both",
    "absent table",
    "sum",
    "large block",
    "large region",
    "very many",
    "very far",
    "counts",
    "large flags",
    "few blocks",
    "no region",
    "inner length",
    "outer length",
    "cut",
    "junk",
)


def varint(number: int) -> bytes:
    octets = b""
    while number > 0x7F:
        octets += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return octets + bytes((number,))


def number(key: int, value: int) -> bytes:
    return varint(key << 3) + varint(value)


def octets(key: int, value: bytes) -> bytes:
    return varint(key << 3 | 2) + varint(len(value)) + value


@dataclass
class Kind:
    """What records of one kind have in common."""

    flags: int = PRESENT
    legacy: bool | None = None
    has_flags: bool = True
    old_count: bool = False
    schema: str = ""
    region: int | None = None
    n_blocks: int = 1
    lengths: tuple[int, int] = (0, 0)
    continues: bool = False
    extra: bytes = b""


@dataclass
class Record:
    """One entry as it is meant to be read."""

    vaddr: int
    nr_pages: int
    flags: int
    block_pages: int = 1
    sizes: list[int] | None = None
    extra: bytes = b""
    payload: bytes = b""
    compat: int = 0
    total: int = 0
    region: int = 0

    def encode(self, kind: Kind) -> None:
        """Make the record of its numbers."""
        out = number(1, self.vaddr)
        if kind.old_count:
            out += number(2, self.nr_pages)
        else:
            out += number(2, self.compat)
        if kind.legacy is not None:
            out += number(3, kind.legacy)
        if kind.has_flags:
            out += number(4, self.flags)
        if not kind.old_count:
            out += number(5, self.nr_pages)
        if self.sizes is not None and kind.schema == "sizes":
            out += b"".join(number(6, size) for size in self.sizes) + number(7, self.total)
            out += b"" if kind.region is None else number(8, self.region)
        elif self.sizes is not None:
            table = octets(1, b"".join(map(varint, self.sizes)))
            out += octets(6, table + number(2, self.total) + number(3, self.region))
        out += number(28951, 1) if kind.continues else b""
        self.payload = out + kind.extra


def kinds(source: random.Random) -> Kind:
    flags = source.choice((PRESENT, PRESENT, PRESENT | LAZY, PRESENT | ALIGNED, PARENT, LAZY))
    kind = Kind(flags=flags, old_count=source.random() < 0.2)
    if source.random() < 0.15:
        kind.legacy = bool(flags & PARENT)
        kind.has_flags = flags not in (PRESENT, PARENT)
    elif flags == PRESENT:
        kind.has_flags = source.random() < 0.8
    if flags & PRESENT and source.random() < 0.7:
        kind.schema = source.choice(("sizes", "blocks"))
        kind.n_blocks = source.choice((1, 1, 1, 2, 3))
        regions = (1, 2, 5, MAX_REGION_PAGES)
        kind.region = source.choice((None, 0, *regions) if kind.schema == "sizes" else regions)
    kind.continues = source.random() < 0.2
    if source.random() < 0.3:
        # Around the longest that records by columns can have, and small ones.
        kind.extra = octets(100, bytes(source.choice((0, 1, 120, *range(215, 260)))))
    return kind


def add_sizes(record: Record, kind: Kind, source: random.Random) -> None:
    record.region = kind.region or 0
    record.block_pages = kind.region or 1
    whole = record.block_pages * (kind.n_blocks - 1)
    record.nr_pages = whole + source.randint(1, min(record.block_pages, 7))
    pages = [record.block_pages] * (kind.n_blocks - 1) + [record.nr_pages - whole]
    if source.random() < 0.1:
        pages[-1] = record.nr_pages = record.block_pages
        record.nr_pages += whole
    record.sizes = [source.choice((0, n * PAGE_SIZE, source.randint(1, 150))) for n in pages]
    record.total = sum(record.sizes)


def spoil(record: Record, kind: Kind, fault: str, end: int) -> None:
    """Put a fault into a record."""
    kind = Kind(**vars(kind))
    match fault:
        case "unaligned":
            record.vaddr += PAGE_SIZE // 2
        case "overlap":
            record.vaddr = end - PAGE_SIZE
        case "empty":
            record.nr_pages = 0
        case "beyond":
            record.vaddr = (1 << 64) - PAGE_SIZE
            record.nr_pages = 2
            record.sizes = None
        case "flags":
            record.flags |= 16
        case "both":
            record.flags |= PRESENT | PARENT
        case "absent table":
            kind.region = kind.region if kind.schema else 1
            kind.schema = kind.schema or "sizes"
            record.nr_pages = record.region = 1
            record.sizes, record.total = [7], 7
            record.flags = LAZY
        case "sum":
            kind.region = kind.region if kind.schema else 1
            kind.schema = kind.schema or "sizes"
            record.nr_pages = record.region = 1
            record.sizes, record.total, record.flags = [7], 8, PRESENT
        case "large block":
            kind.schema, kind.region = kind.schema or "sizes", 1
            record.nr_pages = record.region = 1
            record.sizes, record.total, record.flags = [4129], 4129, PRESENT
        case "large region":
            kind.schema, kind.region = kind.schema or "sizes", MAX_REGION_PAGES + 1
            record.nr_pages, record.region = 1, MAX_REGION_PAGES + 1
            record.sizes, record.total, record.flags = [7], 7, PRESENT
        case "very many":
            record.nr_pages = (1 << 64) + 1
            kind.old_count = False
        case "very far":
            record.vaddr += 1 << 64
        case "counts":
            kind.old_count, record.compat = False, record.nr_pages + 1
        case "large flags":
            record.flags |= 1 << 8
        case "few blocks":
            kind.region = kind.region if kind.schema else 1
            kind.schema = kind.schema or "sizes"
            record.region = kind.region or 0
            record.nr_pages = (kind.region or 1) + 1
            record.sizes, record.total, record.flags = [7], 7, PRESENT
        case "no region" | "inner length" | "outer length":
            kind.schema = "blocks"
            record.nr_pages = record.region = 1
            record.sizes, record.total, record.flags = [7], 7, PRESENT
            record.region = int(fault != "no region")
    kind.has_flags |= record.flags not in (PRESENT, PARENT)
    record.encode(kind)
    if fault == "inner length":
        record.payload = record.payload.replace(b"\x32\x07\x0a\x01", b"\x32\x07\x0a\x02")
    elif fault == "outer length":
        record.payload = record.payload.replace(b"\x32\x07\x0a\x01", b"\x32\x06\x0a\x01")
    if fault == "cut":
        record.payload = record.payload[:-1]
    elif fault == "junk":
        record.payload = b"\x0b" + record.payload


def draw_records(source: random.Random, fault: str) -> list[Record]:
    """Return entries, the most of which look like the one before."""
    choice = [kinds(source) for _ in range(source.randint(1, 4))]
    steady = source.random()
    count = source.choice((2, 9, 40, 100))
    bad = source.randrange(fault == "overlap", count) if fault else -1
    kind, end = choice[0], source.choice((0, 1 << 12, 1 << 32, 0x7F0000000000, 1 << 62))
    records: list[Record] = []
    for index in range(count):
        if source.random() > steady:
            kind = source.choice(choice)
        vaddr = end + source.choice((0, 0, 1, 3, 70)) * PAGE_SIZE
        record = Record(vaddr, source.choice((1, 2, 9, 200)), kind.flags, extra=kind.extra)
        if kind.schema:
            add_sizes(record, kind, source)
        if index == count - 1 and not fault and source.random() < 0.3:
            record.vaddr = (1 << 64) - record.nr_pages * PAGE_SIZE
        record.encode(kind)
        if index == bad:
            record.vaddr = max(record.vaddr, PAGE_SIZE)
            spoil(record, kind, fault, max(end, PAGE_SIZE))
        end = record.vaddr + record.nr_pages * PAGE_SIZE
        records.append(record)
    return records


def file_of(records: list[Record], checksum: int | None = None) -> bytes:
    head = number(1, 1)
    if checksum is not None:
        head += varint(28950 << 3 | 5) + struct.pack("<I", checksum)
    payloads = [head, *(record.payload for record in records)]
    return MAGICS + b"".join(struct.pack("<I", len(each)) + each for each in payloads)


def checksum_of(records: list[Record]) -> int:
    return zlib.crc32(b"".join((struct.pack("<I", 1), *(it.payload for it in records))))


@contextmanager
def reading(*, at_once: int = 1 << 16, few: int = 64, fewest: int = 8) -> Iterator[None]:
    """Read with other limits; ``at_once`` 0: record by record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helperd.images.shapes._FEWEST", fewest)
        patch.setattr("helperd.images.entries._FEW", few)
        if at_once:
            patch.setattr("helperd.images.entries._AT_ONCE", at_once)
        else:
            patch.setattr("helperd.images.entries._SHORT", {})
        yield


def read(data: bytes) -> tuple[Entries | None, str]:
    try:
        entries = Entries("pagemap-7.img", data)
        entries.load_tables()
    except ImageFormatError as error:
        return None, str(error)
    return entries, ""


COLUMNS = ("vaddr", "nr_pages", "flags", "form", "block_pages", "offset", "table", "sizes")


def read_in_all_ways(data: bytes, source: random.Random) -> tuple[Entries | None, str]:
    """Return what reading gives, which is the same in every way."""
    with reading(at_once=0):
        slow, error = read(data)
    for at_once, few, fewest in (
        (1 << 16, 64, 8),
        (source.randint(1, 20), 2, source.randint(1, 8)),
        (source.randint(20, 70), source.choice((2, 10, 64)), source.randint(1, 8)),
    ):
        with reading(at_once=at_once, few=few, fewest=fewest):
            fast, fast_error = read(data)
        assert fast_error == error
        if slow is None or fast is None:
            assert slow is fast
            continue
        for name in COLUMNS:
            assert getattr(fast, name) == getattr(slow, name)
        for name in ("extra", "schemas", "payload_end", "head", "pages_id", "checksum"):
            assert getattr(fast, name) == getattr(slow, name)
    return slow, error


def check_entries(entries: Entries, records: list[Record]) -> None:
    """See to it that entries are what was written."""
    assert list(entries.vaddr) == [record.vaddr for record in records]
    assert list(entries.nr_pages) == [record.nr_pages for record in records]
    assert list(entries.flags) == [record.flags for record in records]
    assert list(entries.block_pages) == [record.block_pages for record in records]
    assert entries.extra == {i: record.extra for i, record in enumerate(records) if record.extra}
    end = n_sizes = 0
    for index, record in enumerate(records):
        if record.sizes is None:
            assert entries.table[index] == NO_TABLE
        else:
            assert entries.table[index] == n_sizes
            n_sizes += len(record.sizes)
            assert list(entries.table_of(index)) == record.sizes
        if record.flags & PRESENT:
            if record.flags & ALIGNED:
                end += -end % PAGE_SIZE
            assert entries.offset[index] == end
            plain = record.nr_pages * PAGE_SIZE
            end += plain if record.sizes is None else sum(record.sizes)
    assert entries.payload_end == end
    assert list(entries.sizes) == [size for record in records for size in record.sizes or ()]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 40))
def test_many_records_are_read_as_they_are(seed: int) -> None:
    source = random.Random(seed)
    records = draw_records(source, "")
    checksum = source.choice((None, checksum_of(records)))
    entries, error = read_in_all_ways(file_of(records, checksum), source)
    assert error == ""
    assert entries is not None
    check_entries(entries, records)
    assert entries.checksum == checksum


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 40), st.sampled_from(FAULTS))
def test_a_fault_in_one_of_many_records_is_told(seed: int, fault: str) -> None:
    source = random.Random(seed)
    records = draw_records(source, fault)
    _, error = read_in_all_ways(file_of(records), source)
    assert error
    assert error.startswith("pagemap-7.img: entry ")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 40))
def test_a_cut_or_changed_file_is_told(seed: int) -> None:
    source = random.Random(seed)
    records = draw_records(source, "")
    data = file_of(records, checksum_of(records))
    last = len(records[-1].payload) + 4
    _, error = read_in_all_ways(data[: -source.randrange(1, last)], source)
    assert "cut off in its size" in error or "are left" in error
    _, error = read_in_all_ways(file_of(records, checksum_of(records) ^ 1), source)
    assert "its checksum is" in error
    # A frame of another length, wherever it is: what follows is no record, or none of these.
    changed = bytearray(data)
    at = len(file_of([], 0)) + sum(len(it.payload) + 4 for it in records[: len(records) // 2])
    changed[at + source.randrange(4)] ^= 1 << source.randrange(8)
    _, error = read_in_all_ways(bytes(changed), source)
    assert error


def alike(kind: Kind, end: int, n_pages: int, size: int, count: int = 100) -> list[Record]:
    """Return many records that differ in their numbers only."""
    records = []
    for index in range(count):
        record = Record(end, n_pages, kind.flags)
        if kind.schema:
            record.region = kind.region or 0
            record.block_pages = kind.region or 1
            record.nr_pages = record.block_pages
            record.sizes, record.total = [size + index], size + index
        record.encode(kind)
        records.append(record)
        end = record.vaddr + (record.nr_pages + index % 2) * PAGE_SIZE
    return records


LIKELY = [
    Kind(old_count=True),
    Kind(),
    Kind(has_flags=False),
    Kind(has_flags=False, old_count=True),
    Kind(flags=PARENT),
    Kind(flags=PARENT, legacy=True),
    Kind(flags=PARENT, legacy=True, has_flags=False),
    Kind(flags=PARENT, legacy=True, has_flags=False, old_count=True),
    Kind(flags=PARENT, legacy=True, old_count=True),
    Kind(schema="sizes"),
    Kind(schema="sizes", old_count=True),
    Kind(schema="sizes", continues=True),
    Kind(schema="sizes", region=0),
    Kind(schema="sizes", region=4),
    Kind(schema="sizes", region=MAX_REGION_PAGES, continues=True),
    Kind(schema="sizes", legacy=False),
    Kind(schema="blocks", region=1, flags=PRESENT | ALIGNED),
    Kind(schema="blocks", region=64, flags=PRESENT | ALIGNED),
    Kind(schema="blocks", region=64, continues=True),
    Kind(schema="blocks", region=1, old_count=True),
    Kind(schema="blocks", region=1, legacy=False),
]


@pytest.mark.parametrize(("end", "n_pages"), [(1 << 28, 1), (1 << 42, 300), (1 << 54, 1 << 33)])
# Of one length each, and of several.
@pytest.mark.parametrize("count", [100, 40])
@pytest.mark.parametrize("size", [1, 200])
def test_records_that_look_alike_are_not_decoded_one_by_one(
    monkeypatch: pytest.MonkeyPatch, end: int, n_pages: int, size: int, count: int
) -> None:
    """As long as there are as many as are worth it, whatever stands between them."""

    def none(*_: object) -> None:
        pytest.fail("a record was decoded by itself")

    monkeypatch.setattr("helperd.images.shapes._add_other", none)
    monkeypatch.setattr(Entries, "_add_record", none)
    for kind in LIKELY:
        if n_pages >> 32 and kind.old_count:
            continue
        records = alike(kind, end, n_pages, size, count)
        entries, error = read(file_of(records))
        assert error == ""
        assert entries is not None
        check_entries(entries, records)
    others = alike(Kind(flags=LAZY, has_flags=True, legacy=False), 1 << 40, 1, 1, count)
    turns = alike(Kind(), 1 << 40, 1, 1, count)
    for index in range(0, count, 2):
        turns[index] = others[index]
    entries, error = read(file_of(turns))
    assert error == ""
    assert entries is not None
    check_entries(entries, turns)
    mixed: list[Record] = []
    for kind in LIKELY:
        mixed += alike(kind, mixed[-1].vaddr + (1 << 24) if mixed else end, 1, size, count)
    entries, error = read(file_of(mixed))
    assert error == ""
    assert entries is not None
    check_entries(entries, mixed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_of_many_that_look_alike_is_told(fault: str) -> None:
    for kind in LIKELY:
        records = alike(kind, 1 << 40, 1, 1, 20)
        before = records[18]
        spoil(records[19], kind, fault, before.vaddr + before.nr_pages * PAGE_SIZE)
        _, error = read_in_all_ways(file_of(records), random.Random(1))
        assert "entry 19 at offset" in error, kind


@pytest.mark.parametrize("above", [1 << 32, 3 << 32, 1 << 36])
def test_counts_of_old_have_32_bits(above: int) -> None:
    kind = Kind(old_count=True)
    # So far from one another that the counts could be meant, all of them of five bytes.
    records = [Record((1 + index) << 50, above + (1 << 30), PRESENT) for index in range(20)]
    for index, record in enumerate(records):
        record.nr_pages -= above if index % 3 else 0
        record.encode(kind)
        record.nr_pages = 1 << 30
    entries, error = read_in_all_ways(file_of(records), random.Random(1))
    assert error == ""
    assert entries is not None
    check_entries(entries, records)
    for record in records:
        record.nr_pages = above
        record.encode(kind)
    _, error = read_in_all_ways(file_of(records), random.Random(1))
    assert "has no pages" in error


@pytest.mark.parametrize("flags", [PRESENT, PRESENT | ALIGNED])
@pytest.mark.parametrize("count", [1, 16, 64])
def test_payload_ends_before_any_file_does(flags: int, count: int) -> None:
    """A file has 2^63 - 1 bytes at most."""
    n_pages = (1 << 63) // PAGE_SIZE // count
    records = [Record(index * n_pages * PAGE_SIZE, n_pages, flags) for index in range(count)]
    for more, why in ((-1, ""), (0, "beyond any file"), (1, "beyond any file")):
        records[-1].nr_pages = n_pages + more
        for record in records:
            record.encode(Kind(flags=flags))
        _, error = read_in_all_ways(file_of(records), random.Random(1))
        assert why in error
        assert bool(why) == bool(error)


@pytest.mark.parametrize("n_bytes", [1, 2, 3])
def test_records_that_are_all_cut_off(n_bytes: int) -> None:
    for kind in LIKELY:
        records = alike(kind, 1 << 40, 1, 1, 20)
        for record in records:
            record.payload = record.payload[:-n_bytes]
        read_in_all_ways(file_of(records), random.Random(1))


def test_sizes_without_a_sum() -> None:
    records = alike(Kind(schema="sizes"), 1 << 40, 1, 1)
    for record in records:
        record.payload = record.payload[:-2]
    entries, error = read_in_all_ways(file_of(records), random.Random(1))
    assert error == ""
    assert entries is not None
    check_entries(entries, records)


@pytest.mark.parametrize(("count", "by_itself"), [(1, 1), (2, 2), (7, 7), (8, 0)])
def test_how_many_must_look_alike(
    monkeypatch: pytest.MonkeyPatch, count: int, by_itself: int
) -> None:
    decoded = []

    def add(*arguments: Any) -> None:
        decoded.append(arguments[1])
        add_other(*arguments)

    add_other = shapes._add_other
    monkeypatch.setattr(shapes, "_add_other", add)
    records = alike(Kind(), 1 << 40, 1, 1)[:count]
    starts = [len(file_of(records[:index])) for index in range(count + 1)]
    batch = shapes.decode_batch(file_of(records), starts)
    assert list(batch.vaddr) == [record.vaddr for record in records]
    assert decoded == list(range(by_itself))


def test_what_is_no_pagemap() -> None:
    for data, why in (
        (b"", "starts with nothing, not with"),
        (MAGICS[4:] + MAGICS[:4], "not the image its name says"),
        (MAGICS, "has no head"),
        (MAGICS + b"\1\0", "cut off in its size"),
        (MAGICS + b"\0\0\0\0", "the head does not name a pages file"),
        (MAGICS + b"\1\0\0\0\x0b", "the first record is not a head"),
    ):
        assert why in read(data)[1]
