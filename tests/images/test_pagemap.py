"""Pagemap entries: both encodings, both schemas, and everything that must be refused."""

from __future__ import annotations

import io
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors
from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE, max_stored_size, pages_to_bytes
from helperd.images.entries import Entries
from helperd.images.entry_fields import CONTINUES, CONTINUES_KEY
from helperd.images.inventory import Schema, read_inventory
from helperd.images.pagemap import (
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    Pagemap,
    PagemapEntry,
    read_pagemap,
)
from helperd.images.pagemap_writer import encode_entry, write_pagemap
from helperd.images.pb import pagemap_blocks_pb2, pagemap_pb2, pagemap_sizes_pb2
from helperd.images.records import PAGEMAP_MAGICS, write_magics, write_record
from tests.conftest import ImageArchive
from tests.images.checkpoints import ARCHIVES, write_pagemap_file

HEAD = pagemap_pb2.Head(pages_id=1).SerializeToString()
#: Field 99, a string: no schema has it.
UNKNOWN = b"\x9a\x06\x05later"


def decode_entry(payload: bytes) -> PagemapEntry:
    """Return the one entry of a pagemap."""
    stream = io.BytesIO()
    write_magics(stream, PAGEMAP_MAGICS)
    for record in (HEAD, payload):
        write_record(stream, record)
    (entry,) = Pagemap(Entries("pagemap-1.img", stream.getvalue())).entries
    return entry


def sizes_entry(vaddr: int = 0x1000, **fields: Any) -> bytes:
    fields.setdefault("compat_nr_pages", 0)
    return pagemap_sizes_pb2.Entry(vaddr=vaddr, **fields).SerializeToString()


def blocks_entry(sizes: list[int], vaddr: int = 0x1000, **fields: Any) -> bytes:
    fields.setdefault("total_payload_size", sum(sizes))
    table = pagemap_blocks_pb2.Blocks(
        block_sizes=sizes,
        total_payload_size=fields.pop("total_payload_size"),
        pages_per_block=fields.pop("pages_per_block", 1),
    )
    entry = pagemap_blocks_pb2.Entry(vaddr=vaddr, compat_nr_pages=0, blocks=table, **fields)
    return entry.SerializeToString()


@pytest.mark.parametrize("name", ARCHIVES)
def test_real_pagemaps_are_written_back_byte_by_byte(
    image_archive: ImageArchive, name: str
) -> None:
    paths = sorted(image_archive(name).rglob("pagemap-*.img"))
    assert paths
    for path in paths:
        schema = read_inventory(str(path.parent / "inventory.img")).schema
        pagemap = read_pagemap(str(path))
        stream = io.BytesIO()
        write_pagemap(stream, pagemap.head, pagemap.entries, schema)
        assert stream.getvalue() == path.read_bytes()
        assert pagemap.payload_end == (path.parent / pagemap.pages_name).stat().st_size


def test_the_count_is_read_from_either_field(tmp_path: Path) -> None:
    path = write_pagemap_file(
        tmp_path / "pagemap-1.img",
        HEAD,
        sizes_entry(0x1000, compat_nr_pages=2),
        sizes_entry(0x3000, nr_pages=3),
        sizes_entry(0x6000, nr_pages=4, compat_nr_pages=4),
    )
    entries = read_pagemap(str(path)).entries
    assert [entry.nr_pages for entry in entries] == [2, 3, 4]
    assert [entry.offset // PAGE_SIZE for entry in entries] == [0, 2, 5]


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, PE_PRESENT),
        ({"in_parent": False}, PE_PRESENT),
        ({"in_parent": True}, PE_PARENT),
        ({"in_parent": True, "flags": PE_LAZY}, PE_PARENT | PE_LAZY),
        ({"flags": 0}, 0),
        ({"flags": PE_PRESENT | PE_LAZY}, PE_PRESENT | PE_LAZY),
    ],
)
def test_flags_with_the_legacy_mark(fields: dict[str, Any], flags: int) -> None:
    entry = decode_entry(sizes_entry(nr_pages=1, **fields))
    assert entry.flags == flags
    assert encode_entry(entry, Schema.NONE) == sizes_entry(nr_pages=1, **fields)


def test_payload_lies_behind_the_present_entries_only(tmp_path: Path) -> None:
    path = write_pagemap_file(
        tmp_path / "pagemap-1.img",
        HEAD,
        sizes_entry(0x1000, nr_pages=2, compressed_size=[100, 0], total_compressed_size=100),
        sizes_entry(0x3000, nr_pages=50, flags=PE_PARENT),
        sizes_entry(0x100000, nr_pages=50, flags=PE_LAZY),
        sizes_entry(0x200000, nr_pages=1),
        sizes_entry(0x201000, nr_pages=9, region_pages=4, compressed_size=[7, 8, 9]),
    )
    pagemap = read_pagemap(str(path))
    assert [entry.offset for entry in pagemap.entries] == [0, 100, 100, 100, 100 + PAGE_SIZE]
    assert pagemap.payload_end == 124 + PAGE_SIZE
    assert pagemap.n_pages == 12
    assert pagemap.entries[-1].n_blocks == 3


def test_an_aligned_payload_starts_at_a_page_boundary(tmp_path: Path) -> None:
    path = write_pagemap_file(
        tmp_path / "pagemap-1.img",
        HEAD,
        blocks_entry([100], nr_pages=1),
        blocks_entry([50], 0x2000, nr_pages=1, flags=PE_PRESENT | PE_PAYLOAD_ALIGNED),
        blocks_entry([50], 0x3000, nr_pages=1),
    )
    pagemap = read_pagemap(str(path))
    assert [entry.offset for entry in pagemap.entries] == [0, PAGE_SIZE, PAGE_SIZE + 50]


BROKEN = [
    (Schema.NONE, sizes_entry(0x1001, nr_pages=1), "0x1001 is not a multiple"),
    (Schema.NONE, sizes_entry(nr_pages=0), "no pages"),
    (Schema.NONE, sizes_entry(), "no pages"),
    (Schema.NONE, sizes_entry(nr_pages=1, compat_nr_pages=2), "compat_nr_pages 2"),
    (Schema.NONE, sizes_entry((1 << 64) - PAGE_SIZE, nr_pages=2), "beyond the address space"),
    (Schema.NONE, sizes_entry(nr_pages=(1 << 64) - 1), "beyond the address space"),
    (Schema.NONE, sizes_entry(nr_pages=1 << 51), "beyond any file"),
    (Schema.NONE, sizes_entry(nr_pages=1, flags=16), "unknown flags 0x10"),
    (Schema.SIZES, sizes_entry(nr_pages=1, flags=PE_PRESENT | 32), "unknown flags 0x20"),
    (Schema.NONE, sizes_entry(nr_pages=1, flags=5), "both present and in the parent"),
    (Schema.NONE, sizes_entry(nr_pages=1, flags=4, in_parent=True), "both present and in"),
    (Schema.NONE, b"\x08\x80\x20", "lacks vaddr or compat"),
    (Schema.NONE, b"\x08", "not a pagemap entry"),
    (Schema.SIZES, sizes_entry(nr_pages=2, compressed_size=[1]), "1 blocks, 2 pages"),
    (Schema.SIZES, sizes_entry(nr_pages=1, compressed_size=[1, 1]), "2 blocks, 1 pages"),
    (
        Schema.SIZES,
        sizes_entry(nr_pages=9, region_pages=4, compressed_size=[1, 1]),
        "in blocks of 4 need 3",
    ),
    (Schema.SIZES, sizes_entry(nr_pages=1, compressed_size=[4129]), "stored size of 4129"),
    (
        Schema.SIZES,
        sizes_entry(nr_pages=5, region_pages=4, compressed_size=[1, 4129]),
        "stored size of 4129 for 1 pages",
    ),
    (
        Schema.SIZES,
        sizes_entry(nr_pages=1, compressed_size=[9], total_compressed_size=8),
        "total_compressed_size is 8, the blocks have 9",
    ),
    (Schema.SIZES, sizes_entry(nr_pages=1, total_compressed_size=8), "there are no blocks"),
    (
        Schema.SIZES,
        sizes_entry(nr_pages=1, region_pages=1025, compressed_size=[1]),
        "blocks of 1025 pages",
    ),
    (
        Schema.SIZES,
        sizes_entry(nr_pages=1, flags=PE_LAZY, compressed_size=[1]),
        "not present",
    ),
    (Schema.BLOCKS, blocks_entry([1], nr_pages=2), "1 blocks, 2 pages"),
    (Schema.BLOCKS, blocks_entry([], nr_pages=2), "0 blocks, 2 pages"),
    (Schema.BLOCKS, blocks_entry([5], nr_pages=1, total_payload_size=4), "total_payload_size is 4"),
    (Schema.BLOCKS, blocks_entry([5], nr_pages=1, pages_per_block=4096), "blocks of 4096 pages"),
    (Schema.SIZES, sizes_entry(nr_pages=1) + b"\x35\0\0\0\0", "field 6 of no schema"),
    (Schema.SIZES, sizes_entry(nr_pages=1) + b"\x30\x05\x32\x01\x05", "field 6 of no schema"),
    (Schema.BLOCKS, sizes_entry(nr_pages=1) + b"\x32\x03\x0a\x01\x05", "without total_payload"),
    (Schema.BLOCKS, sizes_entry(nr_pages=1) + b"\x32\x02\x05\x06", "field 6 of no schema"),
    (Schema.BLOCKS, blocks_entry([5], nr_pages=1) + b"\x32\0", "more than one field 6"),
]


@pytest.mark.parametrize(("schema", "payload", "message"), BROKEN)
def test_broken_entries_are_refused_by_name(
    tmp_path: Path, schema: Schema, payload: bytes, message: str
) -> None:
    path = write_pagemap_file(tmp_path / "pagemap-1.img", HEAD, payload)
    with pytest.raises(errors.ImageFormatError, match=message) as caught:
        read_pagemap(str(path))
    assert f"{path}: entry 0 at offset 14: " in str(caught.value)


def test_a_message_that_is_also_packed_numbers_is_no_luck() -> None:
    # These bytes are a valid table of the blocks schema, and a packed list of as many numbers as
    # the entry has pages. Field 7 is what tells.
    payload = blocks_entry([9], nr_pages=1)
    (_, body), _ = payload.split(b"\x32"), None
    assert len(pagemap_sizes_pb2.Entry.FromString(payload).compressed_size) == 7
    assert list(decode_entry(payload).sizes or ()) == [9]
    flat = sizes_entry(nr_pages=7) + b"\x32" + body + b"\x38" + bytes([sum(body[1:])])
    entry = decode_entry(flat)
    assert list(entry.sizes or ()) == list(pagemap_sizes_pb2.Entry.FromString(flat).compressed_size)


def test_a_packed_table_of_sizes(tmp_path: Path) -> None:
    packed = b"\x32\x05\x80\x20\x00\xc8\x01" + b"\x38\xc8\x21"
    path = write_pagemap_file(
        tmp_path / "pagemap-1.img",
        HEAD,
        sizes_entry(nr_pages=3) + packed,
        sizes_entry(0x10000, nr_pages=40, flags=PE_PRESENT | PE_PAYLOAD_ALIGNED)
        + packed
        + b"\x40\x10",
        sizes_entry(0x100000, nr_pages=2, flags=PE_PRESENT | PE_PAYLOAD_ALIGNED),
    )
    pagemap = read_pagemap(str(path))
    assert pagemap.schemas == {Schema.SIZES}
    assert [list(entry.sizes or ()) for entry in pagemap.entries] == [
        [PAGE_SIZE, 0, 200],
        [PAGE_SIZE, 0, 200],
        [],
    ]
    assert [entry.region_pages for entry in pagemap.entries] == [0, 16, 0]
    assert [entry.is_raw for entry in pagemap.entries] == [False, False, True]
    assert [entry.offset for entry in pagemap.entries] == [0, 8192, 16384]


def test_the_mark_of_a_cut_survives_until_it_is_mended() -> None:
    payload = sizes_entry(nr_pages=3) + CONTINUES_KEY + UNKNOWN
    entry = decode_entry(payload)
    assert entry.form & CONTINUES
    assert entry.extra == UNKNOWN
    assert encode_entry(entry, Schema.SIZES) == payload


@pytest.mark.parametrize("second", [0x1000, 0x2000, 0])
def test_entries_out_of_order_are_refused(tmp_path: Path, second: int) -> None:
    entries = (sizes_entry(0x1000, nr_pages=2), sizes_entry(second, nr_pages=1))
    path = write_pagemap_file(tmp_path / "pagemap-1.img", HEAD, *entries)
    with pytest.raises(errors.ImageFormatError, match=r"entry 1 at offset .*0x3000, the end of"):
        read_pagemap(str(path))


def test_a_pagemap_needs_a_head(tmp_path: Path) -> None:
    for payloads, message in (((), "no head"), ((b"",), "does not name"), ((b"\x08",), "not a h")):
        path = write_pagemap_file(tmp_path / "pagemap-1.img", *payloads)
        with pytest.raises(errors.ImageFormatError, match=message):
            read_pagemap(str(path))


def test_the_largest_sizes_are_accepted(tmp_path: Path) -> None:
    region = pages_to_bytes(MAX_REGION_PAGES)
    sizes = [max_stored_size(region), max_stored_size(PAGE_SIZE)]
    payload = sizes_entry(
        nr_pages=MAX_REGION_PAGES + 1, region_pages=MAX_REGION_PAGES, compressed_size=sizes
    )
    path = write_pagemap_file(tmp_path / "pagemap-1.img", HEAD, payload)
    (entry,) = read_pagemap(str(path)).entries
    assert list(entry.sizes or ()) == sizes


@pytest.mark.parametrize("schema", list(Schema))
@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_fields_survive_a_rewrite(schema: Schema, legacy: bool) -> None:
    count = {"compat_nr_pages": 2} if legacy else {"nr_pages": 2, "compat_nr_pages": 0}
    if schema is Schema.BLOCKS:
        table = pagemap_blocks_pb2.Blocks.FromString(b"\x0a\x02\x05\x06\x10\x0b\x18\x01" + UNKNOWN)
        message = pagemap_blocks_pb2.Entry(vaddr=0x1000, flags=6, blocks=table, **count)
        payload = message.SerializeToString() + UNKNOWN
        assert payload.count(UNKNOWN) == 2
    else:
        tables = {"compressed_size": [5, 6], "total_compressed_size": 11}
        fields = {**count, **(tables if schema is Schema.SIZES else {})}
        payload = sizes_entry(flags=6, **fields) + UNKNOWN
    entry = decode_entry(payload)
    assert encode_entry(entry, schema) == payload
    entry.nr_pages = 1
    if entry.sizes is not None:
        entry.sizes = array("I", [7])
    changed = encode_entry(entry, schema)
    assert changed.count(UNKNOWN) == payload.count(UNKNOWN)
    assert decode_entry(changed).nr_pages == 1


def test_a_count_that_the_legacy_field_cannot_hold_is_refused() -> None:
    entry = decode_entry(sizes_entry(compat_nr_pages=1))
    entry.nr_pages = 1 << 32
    with pytest.raises(errors.ImageFormatError, match="do not fit"):
        encode_entry(entry, Schema.NONE)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Schema, PagemapEntry]:
    """Draw a valid entry of any schema, as a new writer or as CRIU 3.17 would encode it."""
    schema = draw(st.sampled_from(Schema))
    flags = draw(st.sampled_from([PE_PRESENT, PE_PRESENT | PE_LAZY, PE_PARENT, PE_LAZY]))
    entry = PagemapEntry(
        vaddr=draw(st.integers(0, (1 << 51) - 1)) * PAGE_SIZE,
        nr_pages=draw(st.integers(1, 300)),
        flags=flags,
    )
    if schema is not Schema.NONE and entry.present and draw(st.booleans()):
        # To the blocks schema per-page mode is regions of one page: it has no other word for it.
        same = {1} if schema is Schema.BLOCKS else set()
        entry.region_pages = draw(st.integers(0, 40).filter(lambda n: n not in same))
        size = st.integers(0, max_stored_size(PAGE_SIZE))
        n_blocks = entry.n_blocks
        entry.sizes = array("I", draw(st.lists(size, min_size=n_blocks, max_size=n_blocks)))
    if draw(st.booleans()):
        message: Any = (
            pagemap_blocks_pb2.Entry() if schema is Schema.BLOCKS else pagemap_sizes_pb2.Entry()
        )
        message.ParseFromString(encode_entry(entry, schema))
        message.compat_nr_pages = message.nr_pages
        message.ClearField("nr_pages")
        if entry.in_parent:
            message.in_parent = True
            message.ClearField("flags")
        payload = message.SerializeToString() + draw(st.sampled_from([b"", UNKNOWN]))
        return schema, decode_entry(payload)
    return schema, entry


def without_message(entry: PagemapEntry) -> PagemapEntry:
    return PagemapEntry(entry.vaddr, entry.nr_pages, entry.flags, entry.region_pages, entry.sizes)


@given(entries())
def test_entries_round_trip(drawn: tuple[Schema, PagemapEntry]) -> None:
    schema, entry = drawn
    payload = encode_entry(entry, schema)
    again = decode_entry(payload)
    assert without_message(again) == without_message(entry)
    assert encode_entry(again, schema) == payload


def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        match draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set":
                changed[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "delete":
                del changed[at : at + draw(st.integers(1, 6))]
            case _:
                del changed[at:]
    return bytes(changed)


def short_pagemap(schema: Schema) -> bytes:
    table = [9, 0, PAGE_SIZE]
    payload = {
        Schema.NONE: sizes_entry(nr_pages=3),
        Schema.SIZES: sizes_entry(
            nr_pages=3, compressed_size=table, total_compressed_size=sum(table)
        ),
        Schema.BLOCKS: blocks_entry(table, nr_pages=3),
    }[schema]
    stream = io.BytesIO()
    entry = decode_entry(payload)
    second = PagemapEntry(vaddr=0x9000, nr_pages=5, flags=PE_PARENT)
    write_pagemap(stream, pagemap_pb2.Head(pages_id=1), [entry, second], schema)
    return stream.getvalue()


@settings(max_examples=600)
@given(st.data())
def test_mutated_pagemaps_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated-pagemap.img"
    schema = data.draw(st.sampled_from(Schema))
    path.write_bytes(data.draw(st.composite(mutations)(short_pagemap(schema))))
    try:
        pagemap = read_pagemap(str(path))
    except errors.ImageError:
        return
    address = offset = 0
    for entry in pagemap.entries:
        assert entry.vaddr % PAGE_SIZE == 0
        assert address <= entry.vaddr < entry.end <= 1 << 64
        assert offset <= entry.offset
        assert entry.sizes is None or len(entry.sizes) == entry.n_blocks
        address, offset = entry.end, entry.offset + entry.payload_bytes


@settings(max_examples=300)
@given(st.data())
def test_mutated_inventories_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, image_archive: ImageArchive, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated-inventory.img"
    original = (image_archive("criu-region256k") / "images" / "inventory.img").read_bytes()
    path.write_bytes(data.draw(st.composite(mutations)(original)))
    try:
        assert isinstance(read_inventory(str(path)).schema, Schema)
    except errors.ImageError:
        return
