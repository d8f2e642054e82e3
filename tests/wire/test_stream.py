"""The streams' protocols, held against the protobuf library and against hostile bytes."""

from __future__ import annotations

import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from helperd.errors import MalformedStream, ProtocolError, TruncatedStream
from helperd.wire.shards import (
    MAX_DATA_BYTES,
    MAX_MARKER_BYTES,
    Kind,
    Marker,
    MarkerReader,
    MarkerWriter,
    Reassembly,
    decode_marker,
    encode_marker,
)
from helperd.wire.stream import (
    MAX_REQUEST_BYTES,
    Pipe,
    Request,
    RequestReader,
    check_name,
    decode_reply,
    encode_request,
)

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,40}\.img", fullmatch=True)


def _messages():
    """The two formats as the protobuf library knows them."""
    file = descriptor_pb2.FileDescriptorProto(name="stream.proto", package="t", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="request")
    request.field.add(name="filename", number=1, type=kinds.TYPE_STRING, label=2)
    reply = file.message_type.add(name="reply")
    reply.field.add(name="exists", number=1, type=kinds.TYPE_BOOL, label=2)
    marker = file.message_type.add(name="marker")
    marker.oneof_decl.add(name="body")
    marker.field.add(name="seq", number=1, type=kinds.TYPE_UINT64, label=1)
    for name, number, kind in (
        ("filename", 2, kinds.TYPE_STRING),
        ("file_data", 3, kinds.TYPE_UINT32),
        ("file_eof", 4, kinds.TYPE_BOOL),
        ("image_eof", 5, kinds.TYPE_BOOL),
    ):
        marker.field.add(name=name, number=number, type=kind, label=1, oneof_index=0)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))
        for name in ("request", "reply", "marker")
    ]


REQUEST, REPLY, MARKER = _messages()


@given(NAMES)
def test_requests_and_replies_are_the_librarys(name):
    assert encode_request(name) == _framed(REQUEST(filename=name).SerializeToString())
    reader = RequestReader(replies=True)
    reader.feed(encode_request(name))
    assert reader.next_event() == Request(name)
    reply = reader.reply(exists=False)
    assert reply == _framed(REPLY(exists=False).SerializeToString())
    assert decode_reply(reply[4:]) is False
    assert decode_reply(REPLY(exists=True).SerializeToString()) is True


@given(st.integers(0, 2**64 - 1), NAMES, st.integers(0, MAX_DATA_BYTES))
def test_markers_are_the_librarys(seq, name, size):
    for marker, fields in (
        (Marker(seq, Kind.NAME, name=name), {"filename": name}),
        (Marker(seq, Kind.DATA, size=size), {"file_data": size}),
        (Marker(seq, Kind.FILE_EOF), {"file_eof": True}),
        (Marker(seq, Kind.IMAGE_EOF), {"image_eof": True}),
    ):
        theirs = MARKER(seq=seq, **fields).SerializeToString()
        assert decode_marker(theirs) == marker
        parsed = MARKER.FromString(encode_marker(marker)[4:])
        assert (parsed.seq, parsed.WhichOneof("body")) == (seq, *fields)
        ((field, value),) = fields.items()
        assert getattr(parsed, field) == value


@given(st.lists(st.tuples(NAMES, st.booleans()), max_size=6), st.data())
def test_requests_come_in_any_pieces(files, data):
    """However the bytes are cut: each name, and a pipe for each that exists."""
    sent = b"".join(encode_request(name) + b"\0" for name, _ in files)
    reader = RequestReader(replies=False)
    events = []
    while sent:
        cut = data.draw(st.integers(1, len(sent)))
        reader.feed(sent[:cut])
        sent = sent[cut:]
        while (event := reader.next_event()) is not None:
            events.append(event)
    reader.end()
    assert events == [event(name) for name, _ in files for event in (Request, Pipe)]


def test_a_reply_comes_before_the_pipe():
    reader = RequestReader(replies=True)
    reader.feed(encode_request("a.img") + b"x")
    assert reader.next_event() == Request("a.img")
    assert reader.next_event() is None
    assert reader.reply(exists=True)[4:] == b"\x08\x01"
    assert reader.next_event() == Pipe("a.img")
    with pytest.raises(ValueError, match="no request"):
        reader.reply(exists=True)


@pytest.mark.parametrize(
    "sent",
    [encode_request("a.img")[:-1], encode_request("a.img"), b"\1"],
    ids=["mid", "pipe", "len"],
)
def test_leaving_inside_a_request_is_noticed(sent):
    reader = RequestReader(replies=False)
    reader.feed(sent)
    while reader.next_event() is not None:
        pass
    with pytest.raises(TruncatedStream):
        reader.end()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x08\x01",
        b"\x0a\x05a",
        b"\x0a\x01/",
        b"\x0a\x02..",
        b"\x0a\x08.helperd",
        b"\x0a\x03a/b",
        b"\x0a\x00",
        b"\x0a\x01\xff",
        b"\x0a\x02a\n",
        b"\x0a\x80\x02" + b"a" * 256,
    ],
)
def test_names_that_are_none_are_refused(message):
    reader = RequestReader(replies=False)
    reader.feed(_framed(message))
    with pytest.raises(MalformedStream):
        reader.next_event()


def test_a_request_that_is_too_long_is_refused_before_it_has_come():
    reader = RequestReader(replies=False)
    reader.feed(struct.pack("<I", MAX_REQUEST_BYTES + 1))
    with pytest.raises(MalformedStream):
        reader.next_event()


def test_bytes_do_not_pile_up_behind_a_reply():
    reader = RequestReader(replies=True)
    reader.feed(encode_request("a.img"))
    reader.next_event()
    with pytest.raises(MalformedStream):
        reader.feed(bytes(2 * MAX_REQUEST_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_requests_or_an_error(data):
    reader = RequestReader(replies=False)
    try:
        reader.feed(data)
        while reader.next_event() is not None:
            pass
        reader.end()
    except ProtocolError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_are_a_marker_or_an_error(data):
    try:
        marker = decode_marker(data)
    except MalformedStream:
        return
    assert decode_marker(encode_marker(marker)[4:]) == marker


@pytest.mark.parametrize("size", [0, MAX_MARKER_BYTES, 0xFFFFFFFF])
def test_marker_lengths_are_bounded(size):
    with pytest.raises(MalformedStream):
        MarkerReader().feed(struct.pack("<I", size))


def test_a_shard_may_end_between_markers_only():
    reader = MarkerReader()
    reader.end()
    reader.feed(struct.pack("<I", 8))
    assert reader.wants == 8
    with pytest.raises(TruncatedStream):
        reader.end()


FILES = st.dictionaries(NAMES, st.lists(st.binary(max_size=30), max_size=4), max_size=5)


@given(FILES, st.integers(1, 4), st.data())
def test_files_survive_any_shards(files, n_shards, data):
    """Interleaved files over any shards, read in any order, are the same files."""
    shards = [[] for _ in range(n_shards)]
    writer = MarkerWriter()
    left = {name: list(parts) for name, parts in files.items()}
    while left:
        name = data.draw(st.sampled_from(sorted(left)))
        shard = shards[data.draw(st.integers(0, n_shards - 1))]
        if left[name]:
            part = left[name].pop(0)
            shard.append(writer.data(name, len(part)) + part)
        else:
            shard.append(writer.file_eof(name))
            del left[name]
    shards[data.draw(st.integers(0, n_shards - 1))].append(writer.image_eof())
    streams = [b"".join(shard) for shard in shards]

    readers = [MarkerReader() for _ in streams]
    image = Reassembly(n_shards)
    found: dict[str, bytes] = {}
    done: set[str] = set()
    while not image.complete:
        shard = data.draw(st.sampled_from(sorted(image.waiting)))
        if not streams[shard]:
            image.end(shard)
        else:
            marker = None
            while marker is None:
                wants = readers[shard].wants
                marker = readers[shard].feed(streams[shard][:wants])
                streams[shard] = streams[shard][wants:]
            image.add(shard, marker)
        while (step := image.next_step()) is not None:
            if step.kind is Kind.NAME:
                found[step.name] = b""
            elif step.kind is Kind.DATA:
                found[step.name] += streams[step.shard][: step.size]
                streams[step.shard] = streams[step.shard][step.size :]
            elif step.kind is Kind.FILE_EOF:
                done.add(step.name)
    assert found == {name: b"".join(parts) for name, parts in files.items()}
    assert done == set(files)
    assert not any(streams)


def _reassemble(markers):
    image, _ = _steps(*markers)
    image.end(0)
    image.next_step()


def _steps(*markers):
    image = Reassembly(1)
    steps = []
    for marker in markers:
        image.add(0, marker)
        steps.append(image.next_step())
    return image, steps


@pytest.mark.parametrize(
    "markers",
    [
        [Marker(0, Kind.DATA, size=1)],
        [Marker(0, Kind.FILE_EOF)],
        [Marker(0, Kind.NAME, "a"), Marker(1, Kind.IMAGE_EOF)],
        [Marker(0, Kind.NAME, "a"), Marker(0, Kind.FILE_EOF)],
        [Marker(0, Kind.NAME, "a"), Marker(2, Kind.FILE_EOF)],
        [Marker(0, Kind.NAME, "a"), Marker(1, Kind.FILE_EOF), Marker(2, Kind.NAME, "a")],
        [Marker(0, Kind.NAME, "a"), Marker(1, Kind.FILE_EOF), Marker(2, Kind.DATA, size=1)],
        [Marker(0, Kind.IMAGE_EOF), Marker(1, Kind.NAME, "a")],
    ],
    ids=["no name", "no file", "unfinished", "twice", "gap", "again", "after eof", "after end"],
)
def test_markers_that_make_no_image_are_refused(markers):
    with pytest.raises(MalformedStream):
        _reassemble(markers)


def test_shards_that_end_early_are_noticed():
    image, _ = _steps(Marker(0, Kind.NAME, "a"), Marker(1, Kind.DATA, size=0))
    assert image.waiting == {0}
    image.end(0)
    with pytest.raises(TruncatedStream, match="marker 2"):
        image.next_step()


def test_the_same_number_on_two_shards_is_refused():
    image = Reassembly(2)
    image.add(0, Marker(5, Kind.IMAGE_EOF))
    with pytest.raises(MalformedStream, match="number 5"):
        image.add(1, Marker(5, Kind.IMAGE_EOF))


@pytest.mark.parametrize("name", ["inventory.img", "pages-1.img", "fs.tar", "a" * 255])
def test_plain_names_are_names(name):
    assert check_name(name) == name


def _framed(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message
