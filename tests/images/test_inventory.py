"""The inventory chooses the schema, and keeps what helperd does not know."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from helperd import errors
from helperd.images import records
from helperd.images.inventory import Schema, read_inventory
from helperd.images.pb import inventory_pb2
from tests.conftest import ImageArchive
from tests.images.checkpoints import ARCHIVES


def write(path: Path, *payloads: bytes) -> str:
    with open(path, "wb") as stream:
        records.write_magics(stream, records.INVENTORY_MAGICS)
        for payload in payloads:
            records.write_record(stream, payload)
    return str(path)


def fields(content: bytes) -> list[bytes]:
    """Return the top-level fields of an inventory's record, sorted: their order means nothing."""
    unnamed = UnknownFieldSet(Empty.FromString(content[8:]))
    return sorted(repr((f.field_number, f.wire_type, f.data)).encode() for f in unnamed)


@pytest.mark.parametrize("name", ARCHIVES)
def test_real_inventories_keep_all_fields(image_archive: ImageArchive, name: str) -> None:
    paths = sorted(image_archive(name).rglob("inventory.img"))
    assert paths
    for path in paths:
        content = path.read_bytes()
        rewritten = read_inventory(str(path)).encode()
        assert rewritten[:8] == content[:8]
        assert fields(rewritten) == fields(content)
        if read_inventory(str(path)).schema is Schema.NONE:
            assert rewritten == content


@pytest.mark.parametrize(
    ("version", "compress", "schema"),
    [
        (0, None, Schema.NONE),
        (2, None, Schema.NONE),
        (2, 0, Schema.NONE),
        (3, 0, Schema.NONE),
        (0, 1, Schema.SIZES),
        (2, 1, Schema.SIZES),
        (2, 2, Schema.SIZES),
        (3, 1, Schema.BLOCKS),
        (3, 2, Schema.SIZES),
    ],
)
def test_the_inventory_says_the_schema(
    tmp_path: Path, version: int, compress: int | None, schema: Schema
) -> None:
    message = inventory_pb2.Inventory(img_version=version, compress=compress)
    path = write(tmp_path / "inventory.img", message.SerializeToString())
    assert read_inventory(path).schema is schema


@pytest.mark.parametrize(("version", "compress"), [(2, 3), (3, 3), (4, 0), (4, 1), (0, 1 << 31)])
def test_what_is_unknown_is_refused(tmp_path: Path, version: int, compress: int) -> None:
    message = inventory_pb2.Inventory(img_version=version, compress=compress)
    path = write(tmp_path / "inventory.img", message.SerializeToString())
    with pytest.raises(errors.ImageFormatError, match=r"unknown compression|newer than"):
        _ = read_inventory(path).schema


def test_broken_inventories_are_refused(tmp_path: Path) -> None:
    good = inventory_pb2.Inventory(img_version=2).SerializeToString()
    for payloads, message in (
        ((), "no record"),
        ((good, good), "second record"),
        ((b"",), "img_version"),
        ((b"\x08",), "not an inventory"),
    ):
        with pytest.raises(errors.ImageFormatError, match=message):
            read_inventory(write(tmp_path / "inventory.img", *payloads))
    pagemap = tmp_path / "pagemap.img"
    pagemap.write_bytes(struct.pack("<II", *records.PAGEMAP_MAGICS))
    with pytest.raises(errors.ImageFormatError, match="not the image"):
        read_inventory(str(pagemap))


def test_marking_as_compressed_is_what_criu_writes(image_archive: ImageArchive) -> None:
    for name, region_pages in (("criu-perpage", 0), ("criu-region256k", 64)):
        path = image_archive(name) / "images" / "inventory.img"
        plain = read_inventory(str(path))
        for field in ("compress", "compress_region_size"):
            plain.message.ClearField(field)
        assert plain.schema is Schema.NONE
        marked = plain.converted(Schema.SIZES, region_pages=region_pages)
        assert fields(marked.encode()) == fields(path.read_bytes())
        assert plain.schema is Schema.NONE
        faster = marked.converted(Schema.SIZES, acceleration=9)
        assert faster.message.acceleration_or_block_size == 9
        assert not faster.message.HasField("compress_region_size")


@pytest.mark.parametrize(
    ("name", "region_pages"), [("merged-perpage", 0), ("merged-block256k", 64)]
)
def test_the_blocks_schema_is_what_merged_criu_writes(
    image_archive: ImageArchive, name: str, region_pages: int
) -> None:
    path = image_archive(name) / "images" / "inventory.img"
    plain = read_inventory(str(path)).converted(Schema.NONE)
    assert plain.version == 2
    assert not plain.message.HasField("compress")
    marked = plain.converted(Schema.BLOCKS, region_pages=region_pages)
    assert fields(marked.encode()) == fields(path.read_bytes())


def test_over_compressed_parents_the_version_keeps_a_criu_out_that_cannot_decompress(
    image_archive: ImageArchive,
) -> None:
    path = image_archive("incremental") / "images" / "3" / "inventory.img"
    marked = read_inventory(str(path)).converted(Schema.NONE, blocks_in_parents=True)
    assert (marked.version, marked.schema) == (3, Schema.NONE)
    assert marked.message.HasField("compress")
    assert marked.converted(Schema.NONE).encode() == path.read_bytes()


@pytest.mark.parametrize("level", ["1", "3"])
@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
def test_marks_can_be_taken_back(image_archive: ImageArchive, level: str, schema: Schema) -> None:
    path = image_archive("incremental") / "images" / level / "inventory.img"
    marked = read_inventory(str(path)).converted(schema, region_pages=16, acceleration=5)
    assert marked.schema is schema
    assert (marked.version == 3) == (schema is Schema.BLOCKS)
    assert marked.converted(Schema.NONE).encode() == path.read_bytes()
