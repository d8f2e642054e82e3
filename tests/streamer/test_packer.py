"""Pagemaps of what was compressed on its way: as columns, or entry by entry where one is odd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.offline.check import check_directories
from helperd.streamer.encoding import PagesReceiver
from helperd.streamer.packer import Compression, Packer
from helperd.streamer.sinks import DirectorySink
from tests.images.checkpoints import Builder, memory_of
from tests.images.test_chain import page
from tests.images.test_mappings import mapping, write_mm

#: A field that no version knows, in an entry.
UNKNOWN = b"\xc0\x3e\x05"


@pytest.mark.parametrize("region", [0, 4])
@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
@pytest.mark.parametrize("odd", [False, True])
def test_every_entry_has_its_pages(tmp_path: Path, region: int, schema: Schema, odd: bool) -> None:
    builder = Builder(tmp_path / "source")
    for index in range(100):
        n_pages = 1 + index % 7
        builder.add(index * 10, b"".join(page(index + at) for at in range(n_pages)))
    if odd:
        builder.entries[50].extra = UNKNOWN
    source = builder.write()
    write_mm(source, mapping(0, 1000, 0x22))
    target = tmp_path / "target"
    target.mkdir()
    compression = Compression(schema=schema, region_pages=region)
    packer = Packer(DirectorySink(str(target)), compression, str(tmp_path), 2, in_order=True)
    for name in ("mm-7.img", "pagemap-7.img", "pages-1.img", INVENTORY_NAME):
        receiver = packer.receive(name)
        fd = os.open(source / name, os.O_RDONLY)
        if isinstance(receiver, PagesReceiver):
            receiver.drain(fd, lambda: None)
            continue
        while receiver.move(fd, 1 << 20):
            pass
        receiver.close()
        os.close(fd)
    packer.finish()
    packer.close()
    assert check_directories([str(target)]).problems == []
    assert memory_of(target, pid=7) == memory_of(source, pid=7)
    pagemap = ImageDirectory(str(target)).pagemap(pid=7)
    assert pagemap.schemas == {schema}
    assert pagemap.largest_region == region
    assert pagemap.columns.extra == ({50: UNKNOWN} if odd else {})
    stored = (target / "pages-1.img").stat().st_size
    assert stored < pagemap.n_pages * PAGE_SIZE
