"""The page-server protocol: recorded sessions, cuts anywhere, and all that breaks its rules."""

from __future__ import annotations

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE
from helperd.errors import MalformedRequest, TruncatedRequest
from helperd.wire.page_client import Requester
from helperd.wire.page_messages import (
    LAZY,
    MAX_OBJECTS,
    PARENT,
    PRESENT,
    STATUS,
    AsksParent,
    Closed,
    Command,
    Ended,
    Event,
    Get,
    Kind,
    Layout,
    ObjectId,
    Opened,
    Pages,
    Payload,
    Reply,
    StoredPages,
    checked_get,
    checked_range,
    object_id,
    pack_header,
    pages_header,
    tell_layout,
)
from helperd.wire.page_server import Receiver
from tests.conftest import ImageArchive

LAYOUTS = pytest.mark.parametrize("layout", list(Layout))
TASK = ObjectId(Kind.TASK, 126)
BASE = 0x7F0000000000


def merged(events: list[Event]) -> list[Event | bytes]:
    """Join what arrived in parts, so that sessions can be compared however they were cut."""
    result: list[Event | bytes] = []
    for event in events:
        if isinstance(event, Payload):
            piece = bytes(event.data)
            if result and isinstance(result[-1], bytes):
                result[-1] += piece
            else:
                result.append(piece)
        elif isinstance(event, StoredPages) and isinstance(result[-1], StoredPages):
            before = result[-1]
            result[-1] = StoredPages(before.sizes + event.sizes, before.payload + event.payload)
        else:
            result.append(event)
    return result


def feed(receiver: Receiver | Requester, data: bytes, cuts: list[int]) -> list[Event | bytes]:
    events: list[Event] = []
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        for event in receiver.receive(data[at:cut]):
            copied = Payload(memoryview(bytes(event.data))) if isinstance(event, Payload) else event
            events.append(copied)
        at = cut
    return merged(events)


def message(
    layout: Layout,
    command: int,
    *,
    flags: int = 0,
    nr_pages: int = 0,
    vaddr: int = 0,
    dst_id: int | None = None,
) -> bytes:
    number = TASK.dst_id if dst_id is None else dst_id
    return pack_header(layout, command | flags << 16, nr_pages, vaddr, number)


def close(layout: Layout) -> bytes:
    return message(layout, Command.CLOSE, dst_id=0)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Layout, bytes, list[Event | bytes]]:
    """Draw a session that breaks no rule, with what it means."""
    layout = draw(st.sampled_from(Layout))
    stream = b""
    events: list[Event | bytes] = []
    numbers = draw(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=3, unique=True))
    for number in numbers:
        target = ObjectId(draw(st.sampled_from(Kind)), number)
        if draw(st.booleans()):
            stream += message(layout, Command.PARENT, dst_id=target.dst_id)
            events.append(AsksParent(target))
        command = draw(st.sampled_from((Command.OPEN, Command.OPEN2)))
        stream += message(layout, command, dst_id=target.dst_id)
        events.append(Opened(target, asks=command == Command.OPEN2))
        vaddr = 0 if target.kind is Kind.SHMEM else BASE
        for _ in range(draw(st.integers(0, 3))):
            vaddr += PAGE_SIZE * draw(st.integers(0, 3))
            nr_pages = draw(st.integers(1, 3))
            flags = draw(st.sampled_from((PARENT, LAZY, PRESENT, PRESENT | LAZY)))
            if flags & PRESENT and draw(st.booleans()):
                sizes = draw(
                    st.lists(st.sampled_from((0, 1, 77, PAGE_SIZE)), min_size=1, max_size=3)
                )
                events.append(Pages(vaddr, len(sizes), flags, compressed=True))
                head = message(
                    layout,
                    Command.ADD_F_COMPRESSED,
                    flags=flags,
                    nr_pages=len(sizes),
                    vaddr=vaddr,
                    dst_id=target.dst_id,
                )
                blocks = [bytes([number % 251]) * size for size in sizes]
                stream += head + b"".join(
                    len(block).to_bytes(4, "little") + block for block in blocks
                )
                events.append(StoredPages(array("I", sizes), b"".join(blocks)))
                vaddr += PAGE_SIZE * len(sizes)
                continue
            events.append(Pages(vaddr, nr_pages, flags, compressed=False))
            stream += message(
                layout,
                Command.ADD_F,
                flags=flags,
                nr_pages=nr_pages,
                vaddr=vaddr,
                dst_id=target.dst_id,
            )
            if flags & PRESENT:
                payload = bytes([number % 253]) * (nr_pages * PAGE_SIZE)
                stream += payload
                events.append(payload)
            vaddr += nr_pages * PAGE_SIZE
    return layout, stream + close(layout), [*events, Closed(forced=False)]


@given(sessions(), st.data())
def test_a_session_means_the_same_however_it_is_cut(
    session: tuple[Layout, bytes, list[Event | bytes]], data: st.DataObject
) -> None:
    layout, stream, expected = session
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    receiver = Receiver()
    assert feed(receiver, stream, cuts) == expected
    assert receiver.layout is layout
    receiver.finish()


@given(sessions(), st.data())
def test_a_session_that_ends_early_has_failed(
    session: tuple[Layout, bytes, list[Event | bytes]], data: st.DataObject
) -> None:
    _, stream, _ = session
    receiver = Receiver()
    feed(receiver, stream[: data.draw(st.integers(0, len(stream) - 1))], [])
    with pytest.raises(TruncatedRequest):
        receiver.finish()


@given(st.data())
def test_payload_can_be_received_by_the_caller(data: st.DataObject) -> None:
    layout, stream, expected = data.draw(sessions())
    receiver = Receiver()
    events: list[Event] = []
    at = 0
    while at < len(stream):
        if receiver.payload_left:
            taken = data.draw(st.integers(1, receiver.payload_left))
            events.append(Payload(memoryview(stream)[at : at + taken]))
            receiver.payload_received(taken)
        else:
            taken = receiver.header_left
            events += receiver.receive(stream[at : at + taken])
        at += taken
    assert merged(events) == expected
    assert receiver.layout is layout


def test_more_payload_than_was_due_is_the_callers_mistake() -> None:
    receiver = Receiver()
    with pytest.raises(ValueError, match="0 were due"):
        receiver.payload_received(1)


@pytest.mark.parametrize(
    ("archive", "layout"),
    [("page-server-plain", Layout.LONG), ("page-server-compressed", Layout.LONG)],
)
def test_recorded_sessions(image_archive: ImageArchive, archive: str, layout: Layout) -> None:
    folder = image_archive(archive)
    stream = (folder / "client.bin").read_bytes()
    receiver = Receiver()
    events = [event for event in feed(receiver, stream, []) if isinstance(event, Pages)]
    recorded = json.loads((folder / "session.json").read_text())["commands"]
    told = [
        Pages(int(it["vaddr"], 0), it["nr_pages"], it["flags"], it["cmd"] & 0xFFFF == 8)
        for it in recorded
        if it["name"].startswith("ADD")
    ]
    assert events == told
    assert receiver.closed
    assert receiver.layout is layout


@pytest.mark.parametrize("number", [1, 2, 3])
def test_recorded_sessions_of_the_short_layout(image_archive: ImageArchive, number: int) -> None:
    stream = (image_archive("page-server-317") / f"client{number}.bin").read_bytes()
    receiver = Receiver()
    events = feed(receiver, stream, [])
    # A pre-dump asks while the process is frozen, and opens afterwards.
    first = [Opened(TASK, asks=True)] if number == 3 else [AsksParent(TASK)]
    assert events[:1] == first
    assert receiver.layout is Layout.SHORT
    assert receiver.closed


def test_recorded_requests_for_pages(image_archive: ImageArchive) -> None:
    folder = image_archive("lazy-get-317")
    asked = (folder / "requests.bin").read_bytes()
    receiver = Receiver()
    *gets, closed = feed(receiver, asked, [])
    assert receiver.layout is Layout.SHORT
    assert closed == Closed(forced=False)
    assert len(gets) == 160

    requester = Requester(Layout.SHORT)
    sent = b"".join(requester.get(*get) for get in gets if isinstance(get, Get))
    assert sent + requester.close() == asked
    events = feed(requester, (folder / "replies.bin").read_bytes(), [])
    assert events[-1] == Ended(0)
    replies = [event for event in events if isinstance(event, Reply)]
    assert [(it.pid, it.vaddr) for it in replies] == [(it.pid, it.vaddr) for it in gets]
    requester.finish()


@LAYOUTS
@given(data=st.data())
def test_requests_and_replies(layout: Layout, data: st.DataObject) -> None:
    requester, receiver = Requester(layout), Receiver()
    replies = b""
    expected: list[Event | bytes] = []
    asked = data.draw(st.lists(st.integers(1, 1024), min_size=1, max_size=5))
    for index, nr_pages in enumerate(asked):
        vaddr = BASE + index * (1 << 30)
        (get,) = receiver.receive(requester.get(7, vaddr, nr_pages))
        assert get == Get(7, vaddr, nr_pages)
        sent = data.draw(st.integers(1, min(nr_pages, 3)))
        page = bytes([index]) * PAGE_SIZE
        replies += pages_header(layout, get, sent) + page * sent
        expected += [Reply(7, vaddr, sent), page * sent]
    assert list(receiver.receive(requester.close())) == [Closed(forced=False)]
    assert requester.pending == len(asked)
    cuts = data.draw(st.lists(st.integers(0, len(replies)), max_size=8))
    assert feed(requester, replies, cuts) == expected
    with pytest.raises(TruncatedRequest):
        requester.finish()
    assert requester.header_left == STATUS.size
    assert feed(requester, STATUS.pack(-5), [1, 3]) == [Ended(-5)]
    requester.finish()


@LAYOUTS
def test_a_layout_can_be_given(layout: Layout) -> None:
    receiver = Receiver(layout)
    # A count and an address that would tell another layout.
    get = Get(1 << 16, 1 << 16, 1 << 16)
    assert list(
        receiver.receive(message(layout, 7, nr_pages=1 << 16, vaddr=1 << 16, dst_id=1 << 16))
    )
    assert get.pid == 1 << 16


@LAYOUTS
def test_a_lone_close(layout: Layout) -> None:
    receiver = Receiver()
    assert list(receiver.receive(close(layout))) == [Closed(forced=False)]
    receiver.finish()
    with pytest.raises(MalformedRequest, match="after the CLOSE"):
        list(receiver.receive(b"\1" * 9))


@LAYOUTS
def test_shared_memory_that_starts_at_0_tells_its_layout(layout: Layout) -> None:
    receiver = Receiver()
    target = ObjectId(Kind.SHMEM, 3)
    first = message(layout, Command.ADD_F, flags=PRESENT, nr_pages=2, dst_id=target.dst_id)
    assert list(receiver.receive(first)) == [Pages(0, 2, PRESENT, compressed=False)]
    assert (receiver.layout, receiver.object) == (layout, target)


@pytest.mark.parametrize("old", [10, 11, 16, 17])
def test_types_of_old_writers(old: int) -> None:
    receiver = Receiver()
    dst_id = 126 << 8 | old
    first = message(Layout.SHORT, Command.OPEN2, dst_id=dst_id)
    assert list(receiver.receive(first)) == [Opened(TASK, asks=True)]
    hole = message(Layout.SHORT, Command.HOLE, nr_pages=2, vaddr=BASE, dst_id=dst_id)
    assert list(receiver.receive(hole)) == [Pages(BASE, 2, PARENT, compressed=False)]


@pytest.mark.parametrize(
    ("kind", "types"),
    [(Kind.TASK, (1, 10, 11, 16, 17)), (Kind.SHMEM, (2, 27, 28, 29, 32, 33, 34))],
)
def test_types_of_objects(kind: Kind, types: tuple[int, ...]) -> None:
    assert ObjectId(kind, 5).dst_id == 5 << 8 | types[0]
    for number in range(256):
        if number in types:
            assert object_id(5 << 8 | number) == ObjectId(kind, 5)
        else:
            try:
                assert object_id(5 << 8 | number).kind is not kind
            except MalformedRequest:
                continue


@pytest.mark.parametrize("pid", [1, 2, (1 << 31) - 1])
def test_pids(pid: int) -> None:
    assert object_id(pid << 8 | 1) == ObjectId(Kind.TASK, pid)
    assert checked_get(pid, BASE, 1) == Get(pid, BASE, 1)


@pytest.mark.parametrize("pid", [0, 1 << 31, (1 << 31) + 1, 1 << 32])
def test_no_pids(pid: int) -> None:
    with pytest.raises(MalformedRequest, match="is no pid"):
        object_id(pid << 8 | 1)
    with pytest.raises(MalformedRequest, match="is no pid"):
        checked_get(pid, BASE, 1)
    assert object_id(pid << 8 | 2) == ObjectId(Kind.SHMEM, pid)


def test_pages_up_to_the_last_address() -> None:
    top = (1 << 64) - 3 * PAGE_SIZE
    assert checked_range(top, 3) == 1 << 64
    assert checked_range(0, 1) == PAGE_SIZE
    for vaddr, nr_pages in ((top, 4), (top + PAGE_SIZE, 3), (top, 0), (8, 1), (1, 1)):
        with pytest.raises(MalformedRequest, match="pages at"):
            checked_range(vaddr, nr_pages)


def test_requests_tell_the_layout_by_where_an_address_is() -> None:
    # The lowest address that Linux maps by default, and the largest count below it.
    for vaddr in (1 << 16, BASE):
        head = pack_header(Layout.SHORT, Command.GET, 1, vaddr, 7)
        assert tell_layout(head) is Layout.SHORT
    for nr_pages in (1, 256, (1 << 16) - 1):
        head = pack_header(Layout.LONG, Command.GET, nr_pages, BASE, 7)
        assert tell_layout(head[:24]) is Layout.LONG
    for command in (Command.CLOSE, Command.FORCE_CLOSE):
        assert tell_layout(pack_header(Layout.SHORT, command, 0, 0, 0)) is None
        assert tell_layout(pack_header(Layout.SHORT, command, 0, 0, TASK.dst_id)) is Layout.SHORT
        head = pack_header(Layout.LONG, command, 0, PAGE_SIZE, 0)
        assert tell_layout(head[:24]) is Layout.LONG
        head = pack_header(Layout.LONG, command, 7, 0, 0)
        assert tell_layout(head[:24]) is Layout.LONG


def test_numbers_that_fit_into_no_header() -> None:
    with pytest.raises(ValueError, match="4294967296 pages at 0x1000 of 7"):
        pack_header(Layout.SHORT, Command.GET, 1 << 32, PAGE_SIZE, 7)
    assert len(pack_header(Layout.LONG, Command.GET, 1 << 32, PAGE_SIZE, 7)) == 32


def test_limits() -> None:
    assert (MAX_OBJECTS, LAZY, PARENT, PRESENT) == (131072, 2, 1, 4)
    assert [int(command) for command in Command] == [1, 2, 3, 4, 5, 6, 7, 8, 0x1023, 0x1024]
    word = int.from_bytes(pages_header(Layout.LONG, Get(7, BASE, 9), 3)[:4], "little")
    assert word == 6 | PRESENT << 16
    receiver = Receiver()
    first = message(Layout.LONG, Command.OPEN2)
    most = (1 << 51) - 1
    fits = message(Layout.LONG, Command.ADD_F, flags=PRESENT, nr_pages=most)
    assert Pages(0, most, PRESENT, compressed=False) in receiver.receive(first + fits)


def broken(layout: Layout) -> dict[str, bytes]:
    """Return what must be refused after an object was opened, by what is wrong with it."""

    def pages(nr_pages: int = 1, vaddr: int = BASE, flags: int = PARENT, command: int = 6) -> bytes:
        return message(layout, command, flags=flags, nr_pages=nr_pages, vaddr=vaddr)

    top = (1 << 32) - 1 if layout is Layout.SHORT else (1 << 64) - 1
    return {
        "unknown command": message(layout, 9),
        "no command": message(layout, 0),
        "flags of CLOSE": message(layout, Command.CLOSE, flags=1, dst_id=0),
        "flags of ADD": message(layout, Command.ADD, flags=4, nr_pages=1, vaddr=BASE),
        "no flags": pages(flags=0),
        "unknown flags": pages(flags=8 | PRESENT),
        "present and in the parent": pages(flags=PRESENT | PARENT),
        "compressed but not sent": pages(command=8, flags=PARENT),
        "no pages": pages(nr_pages=0),
        "beyond the address space": pages(nr_pages=top, vaddr=(1 << 64) - PAGE_SIZE),
        "not aligned": pages(vaddr=BASE + 1),
        "an address that goes back": pages() + pages(vaddr=BASE - PAGE_SIZE),
        "pages twice": pages() + pages(),
        "a compressed page that is too large": pages(command=8, flags=PRESENT)
        + (PAGE_SIZE + 1).to_bytes(4, "little"),
        "an id that repeats": message(layout, Command.OPEN2),
        "an id that comes back": message(layout, Command.OPEN2, dst_id=7 << 8 | 1) + pages(),
        "pages of OPEN2": message(layout, Command.OPEN2, nr_pages=1, dst_id=7 << 8 | 1),
        "an address of PARENT": message(layout, Command.PARENT, vaddr=PAGE_SIZE),
        "an unknown type": message(layout, Command.OPEN2, dst_id=7 << 8 | 3),
        "pid 0": message(layout, Command.OPEN2, dst_id=1),
        "a pid that is too large": message(layout, Command.OPEN2, dst_id=1 << 40 | 1),
        "no pid to get from": message(layout, Command.GET, nr_pages=1, vaddr=BASE, dst_id=0),
        "nothing to get": message(layout, Command.GET, vaddr=BASE, dst_id=1),
        "a second CLOSE": close(layout) + close(layout),
        "a byte after CLOSE": close(layout) + b"\0",
    }


@LAYOUTS
@pytest.mark.parametrize("what", list(broken(Layout.LONG)))
def test_what_breaks_the_rules_is_refused(layout: Layout, what: str) -> None:
    receiver = Receiver()
    list(receiver.receive(message(layout, Command.OPEN2)))
    with pytest.raises(MalformedRequest):
        list(receiver.receive(broken(layout)[what]))


SIZES = (0, 1, 300, PAGE_SIZE, 0, 7)


def compressed(layout: Layout) -> tuple[bytes, bytes]:
    """Return a message of compressed pages: its header, and its payload."""
    head = message(layout, Command.ADD_F_COMPRESSED, flags=PRESENT, nr_pages=len(SIZES), vaddr=BASE)
    blocks = [bytes([1 + index]) * size for index, size in enumerate(SIZES)]
    return head, b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


def wanted_after(got: int) -> int:
    """Return the bytes of compressed pages that are sure to come after so many."""
    for index, size in enumerate(SIZES):
        rest = 4 * (len(SIZES) - index - 1)
        if got < 4:
            return 4 - got + rest
        if got < 4 + size:
            return 4 + size - got + rest
        got -= 4 + size
    return 0


@LAYOUTS
def test_compressed_pages_cut_anywhere(layout: Layout) -> None:
    head, payload = compressed(layout)
    whole = StoredPages(
        array("I", SIZES), b"".join(bytes([1 + i]) * n for i, n in enumerate(SIZES))
    )
    expected = [Opened(TASK, asks=True), Pages(BASE, len(SIZES), PRESENT, compressed=True), whole]
    opened = message(layout, Command.OPEN2)
    start = len(opened + head)
    near = [
        at for at in range(len(payload)) if any(abs(at - it) < 6 for it in (0, 4, 9, 313, 4420))
    ]
    for cut in near:
        receiver = Receiver()
        assert feed(receiver, opened + head + payload[:cut], []) == merged(
            [*expected[:2], *stored_until(cut)]
        )
        assert receiver.stored_wanted == wanted_after(cut)
        with pytest.raises(TruncatedRequest, match="gone inside a message"):
            receiver.finish()
        for second in near:
            cuts = [start + cut, start + second]
            receiver = Receiver()
            assert feed(receiver, opened + head + payload, cuts) == expected
            assert receiver.stored_wanted == 0
            with pytest.raises(TruncatedRequest, match="gone between messages"):
                receiver.finish()


def stored_until(cut: int) -> list[StoredPages]:
    sizes, payload = array("I"), b""
    for index, size in enumerate(SIZES):
        cut -= 4 + size
        if cut < 0:
            break
        sizes.append(size)
        payload += bytes([1 + index]) * size
    return [StoredPages(sizes, payload)] if sizes else []


@LAYOUTS
def test_where_a_dump_has_failed(layout: Layout) -> None:
    opened = message(layout, Command.OPEN2)
    pages = message(layout, Command.ADD_F, flags=PRESENT, nr_pages=1, vaddr=BASE)
    for stream, where in (
        (b"", "between messages"),
        (opened[:1], "inside a message"),
        (opened, "between messages"),
        (opened + pages[:-1], "inside a message"),
        (opened + pages, "inside a message"),
        (opened + pages + bytes(PAGE_SIZE - 1), "inside a message"),
        (opened + pages + bytes(PAGE_SIZE), "between messages"),
    ):
        receiver = Receiver()
        list(receiver.receive(stream))
        with pytest.raises(TruncatedRequest, match=f"gone {where}"):
            receiver.finish()


@LAYOUTS
def test_pages_of_the_oldest_command(layout: Layout) -> None:
    receiver = Receiver()
    stream = message(layout, Command.OPEN2)
    stream += message(layout, Command.ADD, nr_pages=2, vaddr=BASE) + bytes(2 * PAGE_SIZE)
    assert feed(receiver, stream, []) == [
        Opened(TASK, asks=True),
        Pages(BASE, 2, PRESENT, compressed=False),
        bytes(2 * PAGE_SIZE),
    ]


def test_another_name_of_the_open_object_is_none_of_another_object() -> None:
    receiver = Receiver()
    first = message(Layout.SHORT, Command.OPEN2, dst_id=126 << 8 | 10)
    hole = message(Layout.SHORT, Command.HOLE, nr_pages=2, vaddr=BASE)
    again = message(Layout.SHORT, Command.HOLE, nr_pages=1, vaddr=BASE, dst_id=126 << 8 | 10)
    assert list(receiver.receive(first + hole)) == [
        Opened(TASK, asks=True),
        Pages(BASE, 2, PARENT, compressed=False),
    ]
    # It is still the same, so these pages are there already.
    with pytest.raises(MalformedRequest, match="come after those before"):
        list(receiver.receive(again))


@pytest.mark.parametrize("dst_id", [0, 1])
def test_pages_of_no_object(dst_id: int) -> None:
    receiver = Receiver(Layout.LONG)
    with pytest.raises(MalformedRequest):
        list(receiver.receive(pages_of(dst_id)))
    assert receiver.object is None


def pages_of(dst_id: int) -> bytes:
    return message(Layout.LONG, Command.HOLE, nr_pages=1, vaddr=BASE, dst_id=dst_id)


def test_zeros_that_belong_to_a_close_are_counted() -> None:
    head = close(Layout.LONG)
    receiver = Receiver()
    assert list(receiver.receive(head[:-1])) == [Closed(forced=False)]
    assert list(receiver.receive(head[-1:])) == []
    with pytest.raises(MalformedRequest, match="after the CLOSE"):
        list(receiver.receive(b"\0"))


def test_no_more_objects_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helperd.wire.page_server.MAX_OBJECTS", 3)
    receiver = Receiver()
    for number in (1, 2, 3):
        list(receiver.receive(message(Layout.LONG, Command.OPEN2, dst_id=number << 8 | 1)))
    with pytest.raises(MalformedRequest, match="more than 3 objects in one session"):
        list(receiver.receive(message(Layout.LONG, Command.OPEN2, dst_id=4 << 8 | 1)))


def test_more_pages_than_a_file_can_hold_are_refused_before_any_comes() -> None:
    receiver = Receiver()
    nr_pages = (1 << 63) // PAGE_SIZE
    with pytest.raises(MalformedRequest, match="file can hold"):
        list(
            receiver.receive(
                message(Layout.LONG, Command.OPEN2)
                + message(Layout.LONG, Command.ADD_F, flags=PRESENT, nr_pages=nr_pages)
            )
        )


@LAYOUTS
def test_replies_that_do_not_fit_are_refused(layout: Layout) -> None:
    word = Command.ADD_F | PRESENT << 16
    for reply in (
        pack_header(layout, word, 3, BASE, 7),
        pack_header(layout, word, 0, BASE, 7),
        pack_header(layout, word, 1, BASE + PAGE_SIZE, 7),
        pack_header(layout, word, 1, BASE, 8),
        pack_header(layout, Command.ADD_F | LAZY << 16, 1, BASE, 7),
    ):
        requester = Requester(layout)
        requester.get(7, BASE, 2)
        with pytest.raises(MalformedRequest):
            list(requester.receive(reply))
    requester = Requester(layout)
    with pytest.raises(MalformedRequest, match="nobody"):
        list(requester.receive(pack_header(layout, word, 1, BASE, 7)))


def test_requests_that_make_no_sense() -> None:
    requester = Requester(Layout.SHORT)
    for pid, vaddr, nr_pages in ((0, BASE, 1), (7, BASE, 0), (7, BASE + 1, 1), (7, BASE, 1 << 32)):
        with pytest.raises(ValueError, match=r"pages at|no pid"):
            requester.get(pid, vaddr, nr_pages)
    assert requester.pending == 0
    requester.close()
    with pytest.raises(ValueError, match="after the CLOSE"):
        requester.get(7, BASE, 1)
