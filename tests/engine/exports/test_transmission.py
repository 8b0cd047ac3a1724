"""What the NBD server does with requests, by a client that says everything itself."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone
from tests.engine.exports.conftest import SIZE, Serving

CHUNKED = pytest.mark.parametrize("structured", [False, True])


def connect(serving: Serving, structured: bool) -> Client:
    client = serving.connect()
    if structured:
        client.structured()
    assert client.go()[0] == SIZE
    return client


@CHUNKED
def test_what_is_written_is_read(serving: Serving, structured: bool) -> None:
    data = random.Random(1).randbytes(3 << 20)
    with connect(serving, structured) as client:
        assert client.write(512, data[:100_000]) == 0
        assert client.write(SIZE - len(data), data) == 0  # longer than the server's buffer
        assert client.read(SIZE - len(data), len(data)) == data
        assert client.read(512, 1000) == data[:1000]
        assert client.read(511, 3) == b"\0" + data[:2]
        assert client.read(5, 0) == b""
    serving.do("nbd-server-stop")
    assert (serving.folder / "disk.raw").read_bytes()[-len(data) :] == data


@CHUNKED
def test_many_requests_in_one_send(serving: Serving, structured: bool) -> None:
    source = random.Random(2)
    blocks = [source.randbytes(4096) for _ in range(200)]
    with connect(serving, structured) as client:
        writes = reads = b""
        for number, block in enumerate(blocks):
            where = number, number * 4096, 4096
            writes += nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, *where) + block
            reads += nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, *where)
        client.send(writes)
        assert sorted(client.reply()[:2] for _ in blocks) == [(number, 0) for number in range(200)]
        client.send(reads)
        replies = {reply.cookie: reply.data for reply in (client.reply(4096) for _ in blocks)}
        assert [replies[number] for number in range(200)] == blocks


def test_requests_may_come_byte_by_byte(serving: Serving) -> None:
    with connect(serving, True) as client:
        head = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, 1, 0, 600)
        for byte in head + b"x" * 600:
            client.send(bytes([byte]))
        assert client.reply().error == 0
        assert client.read(0, 601) == b"x" * 600 + b"\0"


def test_holes_are_not_sent(serving: Serving) -> None:
    with connect(serving, True) as client:
        client.write(1 << 20, b"x" * 65536)
        reply = client.ask(nbd.CMD_READ, 0, 2 << 20)
        assert reply.kinds == [nbd.CHUNK_OFFSET_HOLE, nbd.CHUNK_OFFSET_DATA, nbd.CHUNK_OFFSET_HOLE]
        assert reply.data == bytes(1 << 20) + b"x" * 65536 + bytes((1 << 20) - 65536)
        whole = client.ask(nbd.CMD_READ, 0, 2 << 20, nbd.FLAG_DF)
        assert whole.kinds == [nbd.CHUNK_OFFSET_DATA]
        assert whole.data == reply.data
        assert client.ask(nbd.CMD_READ, 0, 4096).kinds == [nbd.CHUNK_OFFSET_HOLE]
        assert client.ask(nbd.CMD_READ, 2 << 20, 1 << 20, nbd.FLAG_DF).kinds == [nbd.CHUNK_OFFSET_DATA]


def test_where_there_are_no_holes_they_are_asked_for_less_often(serving: Serving) -> None:
    with connect(serving, True) as client:
        client.write(1 << 20, b"x" * 65536)
        dense, mixed, empty = (1 << 20, 65536), (1 << 20, 131072), (2 << 20, 1 << 20)
        whole, pieces = [nbd.CHUNK_OFFSET_DATA], [nbd.CHUNK_OFFSET_DATA, nbd.CHUNK_OFFSET_HOLE]
        assert client.ask(nbd.CMD_READ, *dense).kinds == whole
        for _ in range(8):
            assert client.ask(nbd.CMD_READ, *mixed).kinds == whole
        assert client.ask(nbd.CMD_READ, *mixed).kinds == pieces
        client.read(*dense)
        assert client.ask(nbd.CMD_READ, *empty).kinds == [nbd.CHUNK_OFFSET_HOLE]
        assert client.ask(nbd.CMD_READ, *mixed).kinds == pieces


@CHUNKED
@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags"),
    [
        (nbd.CMD_READ, SIZE, 1, 0),
        (nbd.CMD_READ, SIZE - 1, 2, 0),
        (nbd.CMD_READ, (1 << 64) - 1, 2, 0),
        (nbd.CMD_READ, 0, 33 << 20, 0),
        (nbd.CMD_READ, 0, 512, nbd.FLAG_NO_HOLE),
        (nbd.CMD_READ, 0, 512, 1 << 9),
        (nbd.CMD_TRIM, SIZE, 512, 0),
        (nbd.CMD_TRIM, 0, 512, nbd.FLAG_REQ_ONE),
        (nbd.CMD_WRITE_ZEROES, 0, 10, nbd.FLAG_DF),
        (nbd.CMD_CACHE, 0, 33 << 20, 0),
        (nbd.CMD_FLUSH, 0, 0, nbd.FLAG_DF),
        (nbd.CMD_BLOCK_STATUS, 0, 512, 0),
        (9, 0, 0, 0),
        (65535, 0, 0, 0),
    ],
)
def test_wrong_requests(serving: Serving, structured: bool, kind: int, offset: int, length: int, flags: int) -> None:
    with connect(serving, structured) as client:
        reply = client.ask(kind, offset, length, flags)
        assert reply.error == nbd.EINVAL
        assert reply.kinds == ([nbd.CHUNK_ERROR] if structured else [])
        # It goes on.
        assert client.write(0, b"abc") == 0
        assert client.read(0, 3) == b"abc"


@CHUNKED
def test_wrong_writes_leave_the_rest_of_the_stream_alone(serving: Serving, structured: bool) -> None:
    with connect(serving, structured) as client:
        assert client.write(SIZE - 4, b"12345") == nbd.ENOSPC
        assert client.ask(nbd.CMD_WRITE_ZEROES, SIZE, 1).error == nbd.ENOSPC
        assert client.ask(nbd.CMD_TRIM, SIZE, 1).error == nbd.EINVAL
        assert client.write(0, b"a" * (1 << 20), nbd.FLAG_DF) == nbd.EINVAL
        assert client.read(0, 4) == bytes(4)
        assert client.ask(nbd.CMD_WRITE, 0, (32 << 20) + 1).error == nbd.EINVAL
        assert client.gone


def test_read_only(serving: Serving) -> None:
    serving.raw("ro", b"x" * 8192, read_only=True)
    serving.export("ro", "ro")
    with serving.connect() as client:
        _, flags = client.structured().go("ro")
        assert flags & nbd.READ_ONLY
        assert not flags & nbd.SEND_TRIM
        assert client.write(0, b"y") == nbd.EPERM
        assert client.ask(nbd.CMD_WRITE_ZEROES, 0, 512).error == nbd.EPERM
        assert client.ask(nbd.CMD_TRIM, 0, 512).error == nbd.EPERM
        assert client.ask(nbd.CMD_FLUSH).error == 0
        assert client.read(0, 8192) == b"x" * 8192


def test_zeroes_and_trim_give_space_back_unless_told_not_to(serving: Serving) -> None:
    path = serving.folder / "disk.raw"
    with connect(serving, True) as client:
        assert client.write(0, b"x" * (1 << 20), nbd.FLAG_FUA) == 0
        full = path.stat().st_blocks
        assert client.ask(nbd.CMD_WRITE_ZEROES, 0, 256 << 10, nbd.FLAG_NO_HOLE).error == 0
        assert path.stat().st_blocks == full
        assert client.ask(nbd.CMD_WRITE_ZEROES, 256 << 10, 256 << 10, nbd.FLAG_FAST_ZERO).error == 0
        assert path.stat().st_blocks <= full - 512
        assert client.ask(nbd.CMD_TRIM, 512 << 10, 256 << 10, nbd.FLAG_FUA).error == 0
        assert path.stat().st_blocks <= full - 1024
        assert client.read(0, 1 << 20) == bytes(768 << 10) + b"x" * (256 << 10)
        assert client.ask(nbd.CMD_CACHE, 0, 2 << 20).error == 0


def test_block_status(serving: Serving) -> None:
    with serving.connect() as client:
        client.structured()
        assert client.contexts("", "qemu:allocation-depth", "base:allocation", "nonsense", "base:") == [
            "base:allocation",
            "qemu:allocation-depth",
        ]
        client.go()
        client.write(1 << 20, b"x" * 65536)
        base, depth = client.status(0, 2 << 20)
        assert base == [(1 << 20, 3), (65536, 0), ((1 << 20) - 65536, 3)]
        assert depth == [(2 << 20, 1)]
        assert client.status(4096, 1 << 20, nbd.FLAG_REQ_ONE) == [[((1 << 20) - 4096, 3)], [(1 << 20, 1)]]
        assert client.ask(nbd.CMD_BLOCK_STATUS, 0, 0).error == nbd.EINVAL


def test_contexts_belong_to_one_export(serving: Serving) -> None:
    serving.raw("other")
    serving.export("other", "other")
    with serving.connect() as client:
        client.structured()
        assert client.contexts("other", "base:allocation")
        client.go("")
        assert client.ask(nbd.CMD_BLOCK_STATUS, 0, 512).error == nbd.EINVAL


def test_dirty_bitmap(serving: Serving) -> None:
    serving.raw("tracked")
    serving.do("block-dirty-bitmap-add", node="tracked", name="b", granularity=65536)
    serving.export("tracked", "t", writable=True, bitmaps=["b"])
    with serving.connect() as client:
        client.structured()
        assert client.contexts("t", "qemu:dirty-bitmap:b") == ["qemu:dirty-bitmap:b"]
        client.go("t")
        client.write(100_000, b"x")
        client.write(SIZE - 1, b"x")
        assert client.status(0, SIZE) == [
            [(65536, 0), (65536, nbd.STATE_DIRTY), (SIZE - 3 * 65536, 0), (65536, nbd.STATE_DIRTY)]
        ]
        assert client.status(70_000, 1000) == [[(1000, nbd.STATE_DIRTY)]]
        assert client.status(0, SIZE, nbd.FLAG_REQ_ONE) == [[(65536, 0)]]


def test_there_are_at_most_so_many_extents(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.exports.nbd.contexts.MAX_EXTENTS", 3)
    with serving.connect() as client:
        client.structured()
        client.contexts("", "base:allocation")
        client.go()
        for number in range(4):
            client.write(number << 18, b"x" * 65536)
        ((*extents,),) = client.status(0, SIZE)
        assert extents == [(65536, 0), (196608, 3), (65536, 0)]


def test_errors_of_the_image_reach_the_client(serving: Serving) -> None:
    serving.do(
        "blockdev-add",
        driver="blkdebug",
        node_name="bad",
        image="disk",
        **{"inject-error": [{"event": "none", "iotype": kind, "errno": 28} for kind in ("write", "write-zeroes")]},
    )
    serving.export("bad", "bad", writable=True)
    with serving.connect() as client:
        client.structured().go("bad")
        assert client.write(0, b"x") == nbd.ENOSPC
        assert client.ask(nbd.CMD_WRITE_ZEROES, 0, 512).error == nbd.ENOSPC
        assert client.read(0, 512) == bytes(512)


def test_writethrough(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("engine.drivers.protocol.file.os.fdatasync", synced.append)
    serving.raw("through")
    serving.export("through", "through", writable=True, writethrough=True)
    with connect(serving, True) as lazy, serving.connect() as client:
        lazy.write(0, b"x")
        assert not synced
        client.go("through")
        client.write(0, b"x")
        assert len(synced) == 1
        lazy.write(0, b"x", nbd.FLAG_FUA)
        assert len(synced) == 2


@given(
    stream=st.binary(max_size=200),
    prefix=st.sampled_from([b"", b"IHAVEOPT", b"IHAVEOPT\0\0\0\7", b"IHAVEOPT\0\0\0\x0a\0\0\0\x10", b"%\x60\x95\x13"]),
    chosen=st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_harms_nobody(serving: Serving, stream: bytes, prefix: bytes, chosen: bool) -> None:
    with serving.connect() as client:
        if chosen:
            client.structured().go()
        try:
            client.send(prefix + stream)
        except Gone:
            pass


def test_after_all_that_the_server_is_well(serving: Serving, tmp_path: Path) -> None:
    source = random.Random(5)
    for _ in range(500):
        client = serving.connect(source.choice([3, 3, 3, 1, 0, 255]))
        try:
            if source.random() < 0.5:
                client.structured().go()
                kind, length = source.randrange(12), source.choice([0, 1, 5000, 1 << 31])
                client.request(kind, source.randrange(SIZE), length, source.randrange(64), source.randbytes(100))
            client.send(source.randbytes(source.randrange(60)))
            if source.random() < 0.3:
                client.send(struct.pack(">8sII", b"IHAVEOPT", source.randrange(14), source.randrange(40)))
        except Gone:
            pass
        finally:
            client.socket.close()
    with connect(serving, True) as client:
        assert client.write(0, b"alive") == 0
        assert client.read(0, 5) == b"alive"
    serving.wait_no_threads()
