"""Extended headers: lengths of 64 bits, by a client that says everything itself and by our own."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest

from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone
from tests.engine.exports.conftest import SIZE, Serving

ACK = (nbd.REP_ACK, b"")
HUGE = 1 << 40


@pytest.fixture
def client(serving: Serving) -> Client:
    client = serving.connect().extend()
    client.go()
    return client


def test_structured_replies_are_part_of_it(serving: Serving) -> None:
    with serving.connect() as client:
        client.structured().extend()
        for option, error in (
            (nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_EXT_HEADER_REQD),
            (nbd.OPT_EXTENDED_HEADERS, nbd.REP_ERR_INVALID),
        ):
            assert [kind for kind, _ in client.option(option)] == [error]
        assert client.contexts("", "base:allocation") == ["base:allocation"]
        _, flags = client.go()
        assert flags & nbd.SEND_DF
        assert flags & nbd.BLOCK_STAT_PAYLOAD


def test_an_export_by_its_name_is_too_late(serving: Serving) -> None:
    with serving.connect() as client:
        client.extend()
        client.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0))
        assert client.gone


def test_without_contexts_status_takes_no_payload(serving: Serving) -> None:
    with serving.connect() as client:
        assert not client.extend().go()[1] & nbd.BLOCK_STAT_PAYLOAD
    with serving.connect() as client:
        client.structured().contexts("", "base:allocation")
        assert not client.go()[1] & nbd.BLOCK_STAT_PAYLOAD


def test_data(client: Client) -> None:
    assert client.write(1 << 20, b"abc" * 30_000) == 0
    assert client.write(2 << 20, b"d" * (1 << 20), nbd.FLAG_FUA) == 0  # longer than the server's buffer
    assert client.read(1 << 20, 90_000) == b"abc" * 30_000
    for length in (3, 1000):
        reply = client.ask(nbd.CMD_READ, (1 << 20) - 1, length)
        assert (reply.data[:3], reply.kinds) == (b"\0ab", [nbd.CHUNK_OFFSET_DATA])
        assert client.offset == (1 << 20) - 1
    assert client.ask(nbd.CMD_READ, 0, 512).kinds == [nbd.CHUNK_OFFSET_HOLE]
    assert client.ask(nbd.CMD_READ, 0, 65536).kinds == [nbd.CHUNK_OFFSET_HOLE]
    reply = client.ask(nbd.CMD_READ, 0, 3 << 20)
    assert reply.kinds == [nbd.CHUNK_OFFSET_HOLE, nbd.CHUNK_OFFSET_DATA, nbd.CHUNK_OFFSET_HOLE, nbd.CHUNK_OFFSET_DATA]
    assert reply.data == bytes(1 << 20) + (b"abc" * 30_000).ljust(1 << 20, b"\0") + b"d" * (1 << 20)
    assert client.ask(nbd.CMD_READ, 0, 3 << 20, nbd.FLAG_DF).kinds == [nbd.CHUNK_OFFSET_DATA]
    assert client.ask(nbd.CMD_READ, 0, 0).kinds == [nbd.CHUNK_NONE]
    for kind in (nbd.CMD_FLUSH, nbd.CMD_CACHE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
        assert client.ask(kind, 4096, 0 if kind == nbd.CMD_FLUSH else 512)[1:] == (0, b"", [nbd.CHUNK_NONE])
        assert client.offset == 4096


@pytest.mark.parametrize("extended", [False, True])
def test_a_hole_where_there_is_room_for_a_byte_only(serving: Serving, extended: bool) -> None:
    """The answers in one send fill a buffer; a hole is longer than a byte of data."""
    head = 40 if extended else 28
    room = (1 << 20) - 15 * (head + 65535) - head
    lengths = [*[65535] * 15, room - head - 2, 1, 1, 100]
    layout, magic = (nbd.EXT_REQUEST, nbd.EXT_REQUEST_MAGIC) if extended else (nbd.REQUEST, nbd.REQUEST_MAGIC)
    with serving.connect() as client:
        (client.extend() if extended else client.structured()).go()
        assert client.write(4096, b"x" * 65535) == 0
        client.send(
            b"".join(
                layout.pack(magic, 0, nbd.CMD_READ, number, 4096 if length > 1 else 1, length)
                for number, length in enumerate(lengths)
            )
        )
        replies = {reply.cookie: reply.data for reply in (client.reply() for _ in lengths)}
        assert [replies[number] for number in range(len(lengths))] == [
            b"x" * length if length > 1 else b"\0" for length in lengths
        ]


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags"),
    [
        (nbd.CMD_READ, 0, (32 << 20) + 1, 0),
        (nbd.CMD_READ, (1 << 64) - 1, (1 << 64) - 1, 0),
        (nbd.CMD_TRIM, 0, (1 << 64) - 1, 0),
        (nbd.CMD_TRIM, 1, SIZE, 0),
        (nbd.CMD_CACHE, 0, 1 << 33, 0),
        (nbd.CMD_BLOCK_STATUS, 0, 512, 0),
        (nbd.CMD_FLUSH, 0, 0, nbd.FLAG_DF),
        (99, 0, 1 << 40, 0),
    ],
)
def test_wrong_requests(client: Client, kind: int, offset: int, length: int, flags: int) -> None:
    reply = client.ask(kind, offset, length, flags)
    assert (reply.error, reply.kinds) == (nbd.EINVAL, [nbd.CHUNK_ERROR])
    assert client.offset == offset
    assert client.read(0, 1) == b"\0"


@pytest.mark.parametrize("kind", [nbd.CMD_READ, nbd.CMD_TRIM, nbd.CMD_FLUSH, nbd.CMD_BLOCK_STATUS, 77])
@pytest.mark.parametrize("length", [0, 1, 5000, 1 << 20])
def test_payloads_that_nobody_wants_are_left_out(client: Client, kind: int, length: int) -> None:
    assert client.ask(kind, 0, length, nbd.FLAG_PAYLOAD_LEN, bytes(length)).error == nbd.EINVAL
    assert client.write(0, b"on") == 0
    assert client.read(0, 2) == b"on"


def test_payloads_that_are_too_long(serving: Serving) -> None:
    for kind in (nbd.CMD_WRITE, nbd.CMD_TRIM):
        with serving.connect() as client:
            client.extend().go()
            assert client.ask(kind, 0, 1 << 33, nbd.FLAG_PAYLOAD_LEN).error == nbd.EINVAL
            assert client.gone


def test_leave_with_a_payload(client: Client) -> None:
    client.request(nbd.CMD_DISC, 0, 1 << 30, nbd.FLAG_PAYLOAD_LEN)
    assert client.gone


def test_requests_of_the_other_form(serving: Serving) -> None:
    for extended in (False, True):
        with serving.connect() as client:
            if extended:
                client.extend()
            client.go()
            client.extended = not extended
            client.request(nbd.CMD_READ, 0, 512)
            with suppress(Gone):  # a compact head may have been enough
                client.send(bytes(8))
            assert client.gone


def test_long_ranges(serving: Serving) -> None:
    """A terabyte is one request and one extent."""
    serving.do("blockdev-add", driver="null-co", node_name="huge", size=HUGE, read_zeroes=True)
    serving.export("huge", "huge", writable=True, allocation_depth=True)
    with serving.connect() as client:
        client.extend().contexts("huge", "base:allocation", "qemu:allocation-depth")
        assert client.go("huge")[0] == HUGE
        assert client.status(0, HUGE) == [[(HUGE, 3)], [(HUGE, 1)]]
        for kind in (nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM):
            assert client.ask(kind, 0, HUGE).error == 0


def test_status_of_some_contexts(serving: Serving) -> None:
    with serving.connect() as client:
        client.extend().contexts("", "base:allocation", "qemu:allocation-depth")
        client.go()
        client.write(0, bytes(65535) + b"x")
        for ids, answer in (((1,), [[(65536, 1)]]), ((1, 0), [[(65536, 0)], [(65536, 1)]])):
            payload = struct.pack(f">Q{len(ids)}I", 65536, *ids)
            assert client.status(0, len(payload), nbd.FLAG_PAYLOAD_LEN, payload) == answer
        for length, ids in ((512, (2,)), (512, (0, 0)), (0, (0,)), (SIZE + 1, (0,)), (512, ())):
            payload = struct.pack(f">Q{len(ids)}I", length, *ids)
            reply = client.ask(nbd.CMD_BLOCK_STATUS, 0, len(payload), nbd.FLAG_PAYLOAD_LEN, payload)
            assert reply.error == nbd.EINVAL, (length, ids)
        assert client.ask(nbd.CMD_BLOCK_STATUS, 0, 13, nbd.FLAG_PAYLOAD_LEN, bytes(13)).error == nbd.EINVAL
        assert client.ask(nbd.CMD_BLOCK_STATUS, 0, 8 << 20, nbd.FLAG_PAYLOAD_LEN, bytes(8 << 20)).error == nbd.EINVAL
        assert client.status(0, 12, nbd.FLAG_PAYLOAD_LEN, struct.pack(">QI", 512, 1)) == [[(512, 1)]]


def test_a_read_only_export(serving: Serving) -> None:
    serving.raw("ro", b"x" * 8192, read_only=True)
    serving.export("ro", "ro")
    with serving.connect() as client:
        client.extend().go("ro")
        assert client.write(0, b"y") == nbd.EPERM
        assert client.read(0, 8192) == b"x" * 8192
