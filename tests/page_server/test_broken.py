"""Sessions that are cut, mutated, or end badly: one line, a status, nothing lost, nothing left."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.wire.page_messages import Command, Layout, pack_header
from tests.page_server.mutations import BASE, STORAGES, TASK, Bench, mutate, session

MUTATIONS = 150


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("how", STORAGES)
@pytest.mark.parametrize("layout", list(Layout))
def test_a_whole_session_is_right(bench: Bench, layout: Layout, how: dict[str, object]) -> None:
    assert bench.check(session(layout), how) == "ok"


@pytest.mark.parametrize("layout", list(Layout))
def test_cut_at_every_byte_of_every_message(bench: Bench, layout: Layout) -> None:
    """Of pages the first and the last bytes: those between are all alike."""
    stream = session(layout)
    cuts = {0}
    at = 0
    while at < len(stream):
        cuts.update(range(at, min(at + layout.value + 2, len(stream))))
        word, nr_pages, _, _ = layout.struct.unpack_from(stream, at)
        at += layout.value
        command, flags = word & 0xFFFF, word >> 16
        if command == Command.ADD or (command == Command.ADD_F and flags & 4):
            at += nr_pages * PAGE_SIZE
        elif command == Command.ADD_F_COMPRESSED:
            for _ in range(nr_pages):
                at += 4 + int.from_bytes(stream[at : at + 4], "little")
                cuts.update((at - 1, at, at + 1, at + 2))
    assert len(cuts) > 200
    for cut in sorted(cuts):
        if cut < len(stream):
            assert bench.check(stream[:cut], {"threads": 1}) == "TruncatedRequest"


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("command", [Command.HOLE, Command.ADD])
def test_pages_of_no_object_come_first(bench: Bench, layout: Layout, command: int) -> None:
    stream = pack_header(layout, command, 1, BASE, 0) + bytes(PAGE_SIZE)
    assert bench.check(stream, {"threads": 1}) == "MalformedRequest"


def test_mutated_sessions(bench: Bench) -> None:
    """A sample; scripts/mutate_sessions.py does 20,000."""
    choose = random.Random(12).randrange
    outcomes: Counter[str] = Counter()
    for _ in range(MUTATIONS):
        stream = mutate(session(list(Layout)[choose(2)]), choose)
        outcomes[bench.check(stream, STORAGES[choose(len(STORAGES))])] += 1
    # They must not all end at the first look.
    assert {"ok", "MalformedRequest", "TruncatedRequest"} <= set(outcomes)


def test_what_the_parent_does_not_have_is_refused(bench: Bench) -> None:
    layout = Layout.LONG
    open_ = pack_header(layout, Command.OPEN2, 0, 0, TASK.dst_id)
    hole = pack_header(layout, Command.HOLE, 3, BASE + 14 * PAGE_SIZE, TASK.dst_id)
    close = pack_header(layout, Command.CLOSE, 0, 0, 0)
    assert bench.check(open_ + hole + close, {}) == "MalformedRequest"


def test_requests_for_pages_are_refused(bench: Bench) -> None:
    get = pack_header(Layout.LONG, Command.GET, 1, BASE, 7)
    assert bench.check(get, {}) == "MalformedRequest"
