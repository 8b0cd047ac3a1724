"""Clients that are broken, half there or up to no good, and the server that goes on serving the others."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.exports.nbd import handshake, replies, transmission
from engine.exports.nbd.transmission import Transmission
from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone, string
from tests.engine.exports.conftest import SIZE, Serving
from tests.engine.objects.certificates import Authority

STREAMS = 10_000
EDGES = (0, 1, 2, 255, 4096, 4097, 65536, 1 << 20, 32 << 20, (32 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def option(number: int, data: bytes = b"") -> bytes:
    return nbd.OPTION.pack(nbd.OPTION_MAGIC, number, len(data)) + data


def good_streams() -> Iterator[bytes]:
    """What decent clients send."""
    flags = struct.pack(">I", 3)
    go = option(nbd.OPT_GO, string("") + struct.pack(">HHH", 2, nbd.INFO_BLOCK_SIZE, nbd.INFO_NAME))
    queries = b"".join(map(string, ("base:allocation", "qemu:allocation-depth")))
    contexts = string("") + struct.pack(">I", 2) + queries
    chunks, extended = option(nbd.OPT_STRUCTURED_REPLY), option(nbd.OPT_EXTENDED_HEADERS)
    sets = option(nbd.OPT_SET_META_CONTEXT, contexts)
    yield flags + option(nbd.OPT_LIST) + option(nbd.OPT_LIST_META_CONTEXT, contexts) + option(nbd.OPT_ABORT)
    yield flags + option(nbd.OPT_EXPORT_NAME) + requests(nbd.REQUEST, nbd.REQUEST_MAGIC)
    yield flags + go + requests(nbd.REQUEST, nbd.REQUEST_MAGIC)
    yield flags + chunks + sets + go + requests(nbd.REQUEST, nbd.REQUEST_MAGIC)
    yield flags + extended + sets + go + requests(nbd.EXT_REQUEST, nbd.EXT_REQUEST_MAGIC)


def requests(layout: struct.Struct, magic: int) -> bytes:
    stream = b""
    for cookie, (kind, flags, offset, length) in enumerate(
        (
            (nbd.CMD_WRITE, nbd.FLAG_FUA, 4096, 512),
            (nbd.CMD_READ, 0, 4096, 1024),
            (nbd.CMD_READ, nbd.FLAG_DF, 0, 70_000),
            (nbd.CMD_BLOCK_STATUS, 0, 0, SIZE),
            (nbd.CMD_WRITE_ZEROES, nbd.FLAG_FAST_ZERO, 0, 65536),
            (nbd.CMD_TRIM, 0, 65536, 65536),
            (nbd.CMD_CACHE, 0, 0, 4096),
            (nbd.CMD_FLUSH, 0, 0, 0),
            (nbd.CMD_DISC, 0, 0, 0),
        )
    ):
        if kind == nbd.CMD_WRITE and layout is nbd.EXT_REQUEST:
            flags |= nbd.FLAG_PAYLOAD_LEN
        stream += layout.pack(magic, flags, kind, cookie, offset, length)
        if kind == nbd.CMD_WRITE:
            stream += b"w" * length
    return stream


def malformed(good: list[bytes], chance: random.Random) -> bytes:
    """A good stream with a few things wrong, or none that was ever good."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(300))
    stream = bytearray(chance.choice(good))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(stream) or 1)
        match chance.randrange(7):
            case 0:
                stream[at : at + 1] = chance.randbytes(1)
            case 1:
                del stream[at:]
            case 2:
                del stream[at : at + chance.randrange(20)]
            case 3:
                stream[at:at] = chance.randbytes(chance.randrange(20))
            case 4:
                stream[at : at + 4] = struct.pack(">I", chance.choice(EDGES))
            case 5:
                stream[at : at + 8] = struct.pack(">Q", chance.choice(EDGES) << chance.choice((0, 0, 31, 32)))
            case _:
                other = chance.choice(good)
                begin = chance.randrange(len(other))
                stream[at:at] = other[begin : begin + chance.randrange(60)]
    return bytes(stream)


def play(path: Path, stream: bytes, chance: random.Random) -> None:
    """Send a stream to the server, and leave at some moment."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        with contextlib.suppress(ConnectionError):
            sock.sendall(stream)
            if chance.random() < 0.4:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 20):
                    pass


def memory(what: str = "VmRSS") -> int:
    """Bytes of memory that this process has, or (VmHWM) had at most."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.fixture
def good(serving: Serving) -> Serving:
    """The server with a second export, which nobody means by accident."""
    serving.raw("good")
    serving.export("good", "the-good-one", writable=True)
    return serving


def test_ten_thousand_malformed_streams(good: Serving, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(20)
    streams = list(good_streams())
    model = bytearray(SIZE)
    with good.connect() as faithful:
        faithful.structured().go("the-good-one")
        for number in range(STREAMS):
            if number == STREAMS // 5:
                before = memory()
            play(good.path, malformed(streams, chance), chance)
            at = chance.randrange(SIZE - 600)
            if number % 20 == 0:
                data = chance.randbytes(chance.randrange(1, 600))
                assert faithful.write(at, data) == 0
                model[at : at + len(data)] = data
            else:
                assert faithful.read(at, 600) == model[at : at + 600]
            if number % 500 == 0:
                with good.connect() as another:
                    another.structured().go("the-good-one")
                    assert another.read(0, SIZE) == model
    good.wait_no_threads()
    assert not [record for record in caplog.records if record.exc_info]  # nothing that nobody thought of
    assert memory() - before < 12 << 20
    with good.connect() as last:
        last.go("the-good-one")
        assert last.read(0, SIZE) == model
    good.do("nbd-server-stop")
    assert (good.folder / "good.raw").read_bytes() == model


@pytest.mark.parametrize("stream", list(good_streams()))
def test_streams_that_stop_anywhere(good: Serving, stream: bytes) -> None:
    """Every beginning of a good stream; the clients are all there at a time, a hundred of them."""
    sitting: list[socket.socket] = []
    try:
        for length in range(0, len(stream), 1 + len(stream) // 90):
            sock = socket.socket(socket.AF_UNIX)
            sitting.append(sock)
            sock.connect(str(good.path))
            sock.sendall(stream[:length])
        with good.connect() as client:
            client.go("the-good-one")
            assert client.read(0, 10) == bytes(10)
    finally:
        for sock in sitting:
            sock.close()
    good.wait_no_threads()


def test_dribbling_does_not_get_more_time(good: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps nobody in the handshake, and what has to be skipped does not either."""
    monkeypatch.setattr(handshake, "TIME_LIMIT", 0.4)
    begun = time.monotonic()
    skipped = nbd.OPTION.pack(nbd.OPTION_MAGIC, 99, 32 << 20)
    clients = [good.connect(), good.connect(), good.connect()]
    clients[1].send(skipped)
    clients[2].send(option(nbd.OPT_STRUCTURED_REPLY) + option(nbd.OPT_LIST)[:-1])

    def dribble(client: Client) -> None:
        with client, contextlib.suppress(Gone, TimeoutError):
            client.socket.settimeout(0.02)
            while True:
                client.send(b"I" if client is clients[0] else b"\0")
                with contextlib.suppress(TimeoutError):
                    client.receive(1000)

    threads = [threading.Thread(target=dribble, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 0.35 < time.monotonic() - begun < 5
    good.wait_no_threads()


def test_who_never_reads_the_answers_of_the_handshake_is_let_go(good: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIME_LIMIT", 0.4)
    for number in range(50):
        good.export("good", f"{number}-{'n' * 4000}", id=f"x{number}", description="d" * 4096)
    with good.connect() as client:
        with contextlib.suppress(Gone, TimeoutError):
            client.socket.settimeout(2)
            while True:
                client.send(option(nbd.OPT_LIST) * 100)
        good.wait_no_threads()


@pytest.mark.parametrize("extended", [False, True])
def test_many_long_reads_at_once_take_the_memory_of_one(
    good: Serving, extended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for everything and reads nothing holds up himself only."""
    monkeypatch.setattr(transmission, "_PATIENCE", 1000.0)
    most = 32 << 20
    good.do("blockdev-add", driver="null-co", node_name="null", size=most, read_zeroes=True)
    good.export("null", "null")
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()
    with good.connect() as client:
        (client.extend() if extended else client.structured()).go("null")
        layout, magic = (nbd.EXT_REQUEST, nbd.EXT_REQUEST_MAGIC) if extended else (nbd.REQUEST, nbd.REQUEST_MAGIC)
        read = layout.pack(magic, nbd.FLAG_DF, nbd.CMD_READ, 1, 0, most)
        client.send(read * 12)
        for _ in range(3):
            assert len(client.reply().data) == most
    good.wait_no_threads()
    assert memory("VmHWM") - before < 7 * most  # half of it is this client's


def test_many_long_answers_of_block_status(good: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmission, "_PATIENCE", 1000.0)
    monkeypatch.setattr(transmission, "OUT", 1 << 16)
    monkeypatch.setattr(replies, "OUT", 1 << 16)
    sent: list[int] = []
    flush = Transmission._flush_out
    monkeypatch.setattr(Transmission, "_flush_out", lambda self: (sent.append(self._end), flush(self)))
    good.raw("torn", (b"x" * 4096 + bytes(4096)) * 512)
    good.do("block-dirty-bitmap-add", node="torn", name="b", granularity=4096)
    with (good.folder / "torn.raw").open("r+b") as file:
        file.truncate(0)
        file.truncate(SIZE)
        for at in range(0, SIZE, 8192):
            file.seek(at)
            file.write(b"x" * 4096)
    good.export("torn", "torn")
    with good.connect() as client:
        client.structured().contexts("torn", "base:allocation")
        client.go("torn")
        first = client.status(0, SIZE)
        assert len(first[0]) == 1024
        status = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_BLOCK_STATUS, 7, 0, SIZE)
        client.send(status * 100)
        for _ in range(100):
            done, kind, cookie, body = client.chunk()
            assert (done, kind, cookie, len(body)) == (True, nbd.CHUNK_BLOCK_STATUS, 7, 4 + 8 * 1024)
    assert max(sent) < 2 << 16  # and not all of them at once


# -- inside TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(good: Serving) -> Serving:
    """The same server with TLS."""
    for name, content in Authority().files().items():
        (good.folder / name).write_bytes(content)
    good.do("nbd-server-stop")
    creds = {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "server", "verify-peer": False}
    good.do("object-add", **creds, dir=str(good.folder))
    good.start(tls_creds="tls")
    good.export("good", "the-good-one", writable=True)
    return good


def start_tls(serving: Serving) -> Client:
    client = serving.connect()
    assert client.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b"")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(serving.folder / "ca-cert.pem")
    client.socket = context.wrap_socket(client.socket)
    return client


def hello() -> bytes:
    """What a TLS client says first."""
    context, out = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    talk = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="server")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return out.read()


def test_malformed_streams_inside_tls(secure: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """Handshakes of TLS that are wrong or stop, and malformed streams in good ones; plain ones get no export."""
    chance = random.Random(6)
    streams, greeting = list(good_streams()), hello()
    flags, tls = struct.pack(">I", 3), option(nbd.OPT_STARTTLS)
    for number in range(1200):
        match number % 4:
            case 0:
                play(secure.path, malformed(streams, chance), chance)
            case 1:
                play(secure.path, flags + tls + malformed([greeting], chance), chance)
            case 2:
                play(secure.path, flags + tls + greeting[: chance.randrange(len(greeting))], chance)
            case _ if number % 16 == 3:
                with start_tls(secure) as client, contextlib.suppress(OSError, Gone):
                    client.send(malformed(streams, chance)[4:])
                    if chance.random() < 0.5:
                        client.socket.shutdown(socket.SHUT_RDWR)
    with start_tls(secure) as client:
        client.extend().go("the-good-one")
        assert client.write(0, b"alive") == 0
        assert client.read(0, 6) == b"alive\0"
    secure.wait_no_threads()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_tls_handshake_has_the_time_limit_too(secure: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIME_LIMIT", 0.4)
    greeting = hello()
    with secure.connect() as client, contextlib.suppress(Gone):
        client.option(nbd.OPT_STARTTLS)
        for byte in greeting[:-1]:
            client.send(bytes([byte]))
        client.socket.settimeout(20)
        client.receive(1)
    secure.wait_no_threads()
