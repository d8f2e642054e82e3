"""The inventory is right across the chain, and every dialect goes through every command."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from helperd import tools
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import ImageError, UsageError
from helperd.images.directory import ImageDirectory
from helperd.images.entry_fields import PE_PAYLOAD_ALIGNED, PE_PRESENT
from helperd.images.fields import encode_varint
from helperd.images.inventory import Schema, read_inventory
from helperd.images.pagemap import PagemapEntry
from helperd.images.pagemap_writer import encode_entry
from helperd.images.pb import pagemap_pb2
from helperd.offline.complete import complete_directory
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    Builder,
    assert_is_truth,
    clone,
    content_of,
    levels_of,
    load_dumps,
    memory_of,
    write_inventory,
    write_pagemap_file,
)
from tests.support.image import compress, noise, text

HEAD = pagemap_pb2.Head(pages_id=1).SerializeToString()


def problems(*folders: Path) -> list[str]:
    return [it.message for it in tools.check([str(folder) for folder in folders]).problems]


def version(folder: Path) -> int:
    return read_inventory(str(folder / "inventory.img")).version


@pytest.fixture
def chain(image_archive: ImageArchive, tmp_path: Path) -> list[Path]:
    """A chain, compressed in the blocks schema."""
    archive = clone(image_archive("incremental"), tmp_path / "chain")
    levels = levels_of(archive)
    for level in levels:
        tools.compress(str(level), in_place=True, schema=Schema.BLOCKS)
    assert problems(levels[-1]) == []
    return levels


def test_a_child_keeps_the_version_of_its_parents(chain: list[Path]) -> None:
    report = tools.decompress(str(chain[2]), in_place=True)
    assert version(chain[2]) == 3
    (note,) = report.notes
    assert f"its parent {chain[1]} is compressed" in note
    assert problems(chain[2]) == []
    assert not tools.decompress(str(chain[2]), in_place=True).changed
    # The other way round: the parents become plain, and the child is found and mended.
    for level in chain[:2]:
        assert tools.decompress(str(level), in_place=True).notes == ()
    (problem,) = problems(chain[2])
    assert "has img_version 3, but nothing in its chain is compressed" in problem
    assert tools.decompress(str(chain[2]), in_place=True).changed
    assert problems(chain[2]) == []
    assert [version(level) for level in chain] == [0, 0, 2]


def test_parents_that_go_along_count_as_plain_already(chain: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "plain"
    report = tools.decompress(str(chain[2]), output=str(output), with_parents=True)
    assert report.notes == ()
    assert version(output) == 2


def test_a_version_that_lets_a_criu_in_that_cannot_decompress_is_found(chain: list[Path]) -> None:
    tools.decompress(str(chain[2]), in_place=True, with_parents=True)
    (problem,) = problems(chain[2])
    assert "has img_version 2, but a parent is compressed" in problem
    assert complete_directory(str(chain[2])).changed
    assert version(chain[2]) == 3
    assert problems(chain[2]) == []


def test_a_chain_has_one_schema(chain: list[Path]) -> None:
    tools.decompress(str(chain[2]), in_place=True)
    with pytest.raises(UsageError, match="compressed in the blocks schema, and no CRIU restores"):
        tools.compress(str(chain[2]), in_place=True, schema=Schema.SIZES)
    tools.compress(str(chain[2]), in_place=True)
    assert ImageDirectory(str(chain[2])).schema is Schema.BLOCKS
    assert problems(chain[2]) == []


@pytest.mark.parametrize("found", [Schema.NONE, Schema.SIZES, Schema.BLOCKS])
@pytest.mark.parametrize("said", [Schema.NONE, Schema.SIZES, Schema.BLOCKS])
def test_an_inventory_that_disagrees_is_set_right(
    tmp_path: Path, found: Schema, said: Schema
) -> None:
    builder = Builder(tmp_path / "1", schema=found)
    folder = builder.add(5, text(6), region=None if found is Schema.NONE else 4).write()
    before = memory_of(folder, pid=7)
    write_inventory(folder, said, acceleration_or_block_size=4 * PAGE_SIZE)
    assert memory_of(folder, pid=7) == before
    lines = problems(folder)
    if found is said:
        assert lines == []
    else:
        (line,) = lines
        assert line.endswith("helperd complete sets it right")
        if found is not Schema.NONE:
            with pytest.raises(ImageError, match="helperd complete sets it right"):
                tools.compress(str(folder), in_place=True)
    assert complete_directory(str(folder)).changed == (found is not said)
    assert problems(folder) == []
    assert ImageDirectory(str(folder)).schema is found
    tools.decompress(str(folder), in_place=True)
    assert problems(folder) == []
    assert memory_of(folder, pid=7) == before


def test_a_block_size_that_is_not_said(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1", schema=Schema.BLOCKS).add(5, text(6), region=4).write()
    for said in (0, PAGE_SIZE):
        write_inventory(folder, Schema.BLOCKS, acceleration_or_block_size=said)
        (line,) = problems(folder)
        assert f"says that blocks have {said} bytes; the largest has 16384" in line
    assert complete_directory(str(folder)).changed
    assert problems(folder) == []


def packed_image(folder: Path, region: int) -> bytes:
    """Write an image of the dialect between the two: packed sizes, aligned raw entries."""
    folder.mkdir()
    records, payload, memory = [HEAD], b"", b""
    contents = [text(5), noise(4), bytes(2 * PAGE_SIZE), noise(1) + text(3, seed=2), text(1)]
    for number, content in enumerate(contents):
        n_pages = len(content) // PAGE_SIZE
        step = pages_to_bytes(region or 1)
        stored = []
        for at in range(0, len(content), step):
            block = content[at : at + step]
            encoded = b"" if not block.strip(b"\0") else compress(block)
            stored.append(block if len(encoded) >= len(block) * 7 // 8 else encoded)
        is_raw = b"".join(stored) == content
        entry = PagemapEntry(0x100000 * (number + 1), n_pages, PE_PRESENT)
        if len(stored[0]) in (step, len(content)):
            entry.flags |= PE_PAYLOAD_ALIGNED
            payload += bytes(-len(payload) % PAGE_SIZE)
        record = encode_entry(entry, Schema.SIZES)
        if not is_raw:
            sizes = b"".join(encode_varint(len(block)) for block in stored)
            record += b"\x32" + encode_varint(len(sizes)) + sizes
            record += b"\x38" + encode_varint(sum(map(len, stored)))
            record += b"\x40" + encode_varint(region) if region else b""
        records.append(record)
        payload += b"".join(stored)
        memory += content
    write_pagemap_file(folder / "pagemap-7.img", *records)
    (folder / "pages-1.img").write_bytes(payload)
    block_size = pages_to_bytes(region or 1)
    write_inventory(folder, Schema.SIZES, acceleration_or_block_size=block_size)
    return memory


@pytest.mark.parametrize("region", [0, 2, 16])
def test_packed_sizes_go_through_every_command(tmp_path: Path, region: int) -> None:
    folder = tmp_path / "1"
    content = packed_image(folder, region)
    memory = memory_of(folder, pid=7)
    assert b"".join(memory.values()) == content
    assert problems(folder) == []
    assert tools.show(str(folder)).memories[0].n_pages == len(content) // PAGE_SIZE
    assert not tools.compress(str(folder), in_place=True).changed
    for schema in (Schema.SIZES, Schema.BLOCKS):
        output = tmp_path / schema.value
        tools.compress(str(folder), output=str(output), force=True, schema=schema)
        assert memory_of(output, pid=7) == memory
        assert problems(output) == []
    tools.decompress(str(folder), in_place=True)
    assert memory_of(folder, pid=7) == memory
    assert problems(folder) == []
    assert (folder / "pages-1.img").read_bytes() == content


def test_tables_of_both_schemas_are_found_and_mended(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1", schema=Schema.SIZES).add(5, text(6), region=4).write()
    entry = PagemapEntry(0x100000, 1, PE_PRESENT)
    entry.sizes = array("I", [PAGE_SIZE])
    content = (folder / "pagemap-7.img").read_bytes()
    record = encode_entry(entry, Schema.BLOCKS)
    (folder / "pagemap-7.img").write_bytes(content + len(record).to_bytes(4, "little") + record)
    with open(folder / "pages-1.img", "ab") as stream:
        stream.write(noise(1))
    memory = memory_of(folder, pid=7)
    (line,) = problems(folder)
    assert "tables of both schemas" in line
    tools.compress(str(folder), in_place=True, force=True)
    assert problems(folder) == []
    assert memory_of(folder, pid=7) == memory


@pytest.mark.parametrize("name", ["merged-perpage", "merged-block256k"])
def test_merged_images_in_the_other_schema(
    image_archive: ImageArchive, tmp_path: Path, name: str
) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    (dump,) = load_dumps(archive)
    folder = archive / dump["dir"]
    before = content_of(folder)
    tools.compress(str(folder), in_place=True, schema=Schema.SIZES, force=True)
    assert_is_truth(folder, dump)
    assert problems(folder) == []
    assert content_of(folder) != before
