"""The nbd driver on this engine's own server, and on one that comes and goes or lies."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.protocol.nbd_options import parse_filename
from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.driver import Status, WriteFlag
from engine.nbd import protocol as nbd
from engine.nbd.channel import Channel
from engine.nbd.negotiation import _Negotiation

MIB = 1 << 20
SIZE = 8 * MIB


class Pair:
    """An engine that serves ``disk`` (raw, 8 MiB), and one whose node ``n`` is connected to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sock"
        self.image = folder / "disk.raw"
        self.image.write_bytes(b"")
        with self.image.open("r+b") as file:
            file.truncate(SIZE)
        self.server, self.client = Engine(), Engine()
        child = {"driver": "file", "filename": str(self.image)}
        self.server.execute("blockdev-add", {"driver": "raw", "node-name": "disk", "file": child, "discard": "unmap"})

    def serve(self, *, writable: bool = True, **options: Any) -> None:
        address = {"type": "unix", "data": {"path": str(self.path)}}
        self.server.execute("nbd-server-start", {"addr": address, **options})
        self.server.execute(
            "block-export-add",
            {"type": "nbd", "id": "e", "node-name": "disk", "name": "d", "writable": writable},
        )

    def stop(self) -> None:
        self.server.execute("nbd-server-stop")

    def connect(self, name: str = "n", **options: Any) -> Any:
        """Add the node; its driver."""
        server = {"type": "unix", "path": str(self.path)}
        self.client.execute(
            "blockdev-add", {"driver": "nbd", "node-name": name, "server": server, "export": "d", **options}
        )
        return self.client.graph.nodes[name]

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def read(node: Any, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    node.read(offset, memoryview(buffer))
    return bytes(buffer)


def test_what_is_done_to_the_node_is_done_to_the_image(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(discard="unmap")
    rng = random.Random(7)
    model = bytearray(SIZE)
    for _ in range(300):
        offset = rng.randrange(SIZE)
        length = min(rng.choice([1, 511, 512, 4096, 70_000, 3 * MIB]), SIZE - offset)
        match rng.randrange(4):
            case 0:
                data = rng.randbytes(length)
                node.write(offset, memoryview(data), rng.choice([0, int(WriteFlag.FUA)]))
                model[offset : offset + length] = data
            case 1:
                node.write_zeroes(offset, length, rng.choice([0, int(WriteFlag.MAY_UNMAP)]))
                model[offset : offset + length] = bytes(length)
            case 2:
                assert read(node, offset, length) == model[offset : offset + length]
            case 3:
                # Where there are said to be zeros there are.
                extent = node.driver.block_status(offset, length)
                assert 0 < extent.length <= length
                if extent.flags & Status.ZERO:
                    assert not any(model[offset : offset + extent.length])
    node.flush()
    assert pair.image.read_bytes() == model


def test_discards_reach_the_server(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(discard="unmap")
    node.write(0, memoryview(b"x" * (2 * MIB)))
    node.flush()
    before = pair.image.stat().st_blocks
    node.discard(0, MIB)
    assert pair.image.stat().st_blocks < before


def test_many_threads_have_their_requests_on_the_way_together(pair: Pair) -> None:
    pair.image.write_bytes(b"".join(struct.pack("<I", n) * 1024 for n in range(SIZE // 4096)))
    pair.serve()
    node = pair.connect()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            page = rng.randrange(SIZE // 4096)
            assert read(node, page * 4096, 4096) == struct.pack("<I", page) * 1024

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


def test_a_server_in_the_same_engine_serves(pair: Pair) -> None:
    pair.serve()
    server = {"type": "unix", "path": str(pair.path)}
    pair.server.execute("blockdev-add", {"driver": "nbd", "node-name": "own", "server": server, "export": "d"})
    node = pair.server.graph.nodes["own"]
    node.write(5, memoryview(b"abc"))
    assert read(pair.server.graph.nodes["disk"], 4, 5) == b"\0abc\0"
    pair.server.execute("blockdev-del", {"node-name": "own"})


@pytest.mark.parametrize(("extended", "requests"), [(True, 1), (False, 257)])
def test_long_requests_are_one_with_extended_headers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, extended: bool, requests: int
) -> None:
    huge = 1 << 40
    if not extended:
        ask = _Negotiation._ask
        monkeypatch.setattr(
            _Negotiation,
            "_ask",
            lambda self, option, needed: option != nbd.OPT_EXTENDED_HEADERS and ask(self, option, needed=needed),
        )
    pair.server.execute("blockdev-add", {"driver": "null-co", "node-name": "z", "size": huge, "read-zeroes": True})
    pair.serve()
    pair.server.execute("block-export-add", {"type": "nbd", "id": "z", "node-name": "z", "writable": True})
    driver = pair.connect(export="z").driver
    sent: list[int] = []
    simple = Channel.simple
    monkeypatch.setattr(Channel, "simple", lambda self, *request: (sent.append(request[0]), simple(self, *request)))
    driver.write_zeroes(0, huge, int(WriteFlag.MAY_UNMAP))
    driver.discard(0, huge)
    assert sent == [nbd.CMD_WRITE_ZEROES] * requests + [nbd.CMD_TRIM] * requests
    run = driver.block_status(0, huge).length
    assert run == huge if extended else huge >> 9 < run < 1 << 32


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(pair: Pair, host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        port = str(free.getsockname()[1])
    where = {"host": host, "port": port}
    pair.server.execute("nbd-server-start", {"addr": {"type": "inet", "data": where}})
    options = {"type": "nbd", "id": "e", "node-name": "disk", "name": "d", "writable": True}
    pair.server.execute("block-export-add", options)
    node = pair.connect(server={"type": "inet", **where})
    node.write(3, memoryview(b"abc"))
    assert read(node, 2, 5) == b"\0abc\0"
    named = f"nbd://[{host}]:{port}/d" if ":" in host else f"nbd://{host}:{port}/d"
    pair.client.execute(
        "blockdev-add", {"driver": "raw", "node-name": "r", "file": parse_filename(named) | {"driver": "nbd"}}
    )
    assert read(pair.client.graph.nodes["r"], 3, 3) == b"abc"


# -- servers that go away --------------------------------------------------------------------------------------------


def test_without_a_delay_requests_fail_until_the_server_is_back(pair: Pair) -> None:
    pair.serve()
    node = pair.connect()
    node.write(0, memoryview(b"abc"))
    pair.stop()
    with pytest.raises(OSError) as error:
        read(node, 0, 3)
    assert error.value.errno == errno.EIO
    pair.serve()
    client = node.driver._client
    with client._state:
        assert client._state.wait_for(lambda: client._channels, 20)
    assert read(node, 0, 3) == b"abc"


def test_with_a_delay_requests_wait_for_the_server(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 60})
    node.write(0, memoryview(b"abc"))
    pair.stop()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(read, node, 0, 3) for _ in range(3)]
        client = node.driver._client
        with client._state:
            assert client._state.wait_for(lambda: not client._channels, 20)
        assert not any(future.done() for future in waiting)
        pair.serve()
        assert [future.result(30) for future in waiting] == [b"abc"] * 3


def test_the_delay_ends(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 1})
    pair.stop()
    with pytest.raises(OSError) as error:
        read(node, 0, 3)
    assert error.value.errno == errno.EIO


def test_a_job_goes_on_when_the_server_was_away(pair: Pair) -> None:
    pair.image.write_bytes(random.Random(1).randbytes(SIZE))
    pair.serve()
    pair.connect(**{"reconnect-delay": 60})
    pair.client.execute("blockdev-add", {"driver": "null-co", "node-name": "z", "size": SIZE})
    concluded = threading.Event()

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "BLOCK_JOB_COMPLETED":
            assert "error" not in event["data"]
            concluded.set()

    pair.client.subscribe(listen)
    pair.client.execute(
        "blockdev-backup", {"job-id": "b", "device": "n", "target": "z", "sync": "full", "speed": 4 * MIB}
    )
    pair.stop()
    assert pair.client.execute("query-jobs")[0]["status"] == "running"
    pair.serve()
    assert concluded.wait(30)


def test_an_engine_ends_while_its_server_is_away(pair: Pair) -> None:
    pair.serve()
    node = pair.connect()
    pair.stop()
    with pytest.raises(OSError):
        read(node, 0, 3)
    pair.client.close()


def test_a_server_that_comes_back_with_more_room_is_the_same(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 60})
    node.write(SIZE - 3, memoryview(b"abc"))
    pair.stop()
    pair.server.execute("block_resize", {"node-name": "disk", "size": SIZE * 2})
    pair.serve()
    assert read(node, SIZE - 3, 3) == b"abc"
    assert node.length == SIZE


def test_a_server_that_comes_back_as_another_is_not_trusted(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 60})
    pair.stop()
    pair.server.execute("block_resize", {"node-name": "disk", "size": SIZE // 2})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, node, 0, 3)
        pair.serve()
        with pytest.raises(OSError) as error:
            waiting.result(30)
    assert error.value.errno == errno.EIO


def test_a_busy_node_takes_more_connections_where_the_server_allows_it(pair: Pair) -> None:
    pair.serve()
    node = pair.connect()
    client = node.driver._client
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            read(node, 0, 256 << 10)

    with ThreadPoolExecutor(12) as pool:
        for _ in range(12):
            pool.submit(work)
        with client._state:
            found = client._state.wait_for(lambda: len(client._channels) > 1, 20)
        stop.set()
    assert found
    pair.stop()


def test_one_connection_is_enough_where_there_may_be_no_more(pair: Pair) -> None:
    pair.serve(**{"max-connections": 1})
    node = pair.connect()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: read(node, 0, 64 << 10), range(100)))
    assert len(node.driver._client._channels) == 1


# -- servers that lie ------------------------------------------------------------------------------------------------


def _data(cookie: int, offset: int, data: bytes, done: bool = True) -> bytes:
    return nbd.DATA_CHUNK.pack(nbd.CHUNK_MAGIC, done, nbd.CHUNK_OFFSET_DATA, cookie, 8 + len(data), offset) + data


LIES: dict[str, Callable[[int, int], bytes]] = {
    "no magic": lambda cookie, offset: bytes(64),
    "another cookie": lambda cookie, offset: _data(cookie + 1, offset, bytes(512)),
    "a simple reply": lambda cookie, offset: nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie) + bytes(512),
    "data before the range": lambda cookie, offset: _data(cookie, offset - 1, bytes(512)),
    "data behind the range": lambda cookie, offset: _data(cookie, offset + 1, bytes(512)),
    "too much data": lambda cookie, offset: _data(cookie, offset, bytes(1024)),
    "too little data": lambda cookie, offset: _data(cookie, offset, bytes(511)),
    "no data": lambda cookie, offset: _data(cookie, offset, b""),
    "a huge hole": lambda cookie, offset: nbd.HOLE_CHUNK.pack(
        nbd.CHUNK_MAGIC, 1, nbd.CHUNK_OFFSET_HOLE, cookie, 12, offset, 0xFFFFFFFF
    ),
    "a huge chunk": lambda cookie, offset: nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 1, 1, cookie, 0xFFFFFFFF),
    "a status that was not asked for": lambda cookie, offset: (
        nbd.STATUS_CHUNK.pack(nbd.CHUNK_MAGIC, 1, nbd.CHUNK_BLOCK_STATUS, cookie, 12, 0) + bytes(8)
    ),
    "an unknown chunk": lambda cookie, offset: nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 1, 77, cookie, 0),
    "an error that is none": lambda cookie, offset: nbd.ERROR_CHUNK.pack(
        nbd.CHUNK_MAGIC, 1, nbd.CHUNK_ERROR, cookie, 6, 0, 0
    ),
    "an error with too long a text": lambda cookie, offset: nbd.ERROR_CHUNK.pack(
        nbd.CHUNK_MAGIC, 1, nbd.CHUNK_ERROR, cookie, 6, 5, 100
    ),
    "nothing, and hangs up": lambda cookie, offset: b"",
}


def _extended(cookie: int, offset: int, kind: int, payload: bytes, length: int | None = None, done: int = 1) -> bytes:
    size = len(payload) if length is None else length
    return nbd.EXT_CHUNK.pack(nbd.EXT_CHUNK_MAGIC, done, kind, cookie, offset, size) + payload


EXTENDED_LIES: dict[str, Callable[[int, int], bytes]] = {
    "no magic": lambda cookie, offset: bytes(64),
    "a compact reply": lambda cookie, offset: _data(cookie, offset, bytes(512)),
    "a simple reply": lambda cookie, offset: nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie) + bytes(512),
    "another cookie": lambda cookie, offset: _extended(cookie + 1, offset, 1, offset.to_bytes(8) + bytes(512)),
    "another offset": lambda cookie, offset: _extended(cookie, offset + 1, 1, offset.to_bytes(8) + bytes(512)),
    "a huge chunk": lambda cookie, offset: _extended(cookie, offset, 1, offset.to_bytes(8), 1 << 60),
    "too little data": lambda cookie, offset: _extended(cookie, offset, 1, offset.to_bytes(8) + bytes(511)),
    "nothing": lambda cookie, offset: _extended(cookie, offset, nbd.CHUNK_NONE, b""),
    "a status": lambda cookie, offset: _extended(cookie, offset, nbd.CHUNK_BLOCK_STATUS_EXT, bytes(24)),
    "nothing, and hangs up": lambda cookie, offset: b"",
}


class Liar:
    """A server that does the handshake right, and answers the first request with a lie.

    extended: it knows extended headers. status: it has a metadata context (of number 1).
    """

    def __init__(
        self,
        path: Path,
        lie: Callable[[int, int], bytes],
        *,
        extended: bool = False,
        status: bool = False,
        size: int = MIB,
    ) -> None:
        self._extended, self._status, self._size = extended, status, size
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._lie = lie
        self.handshakes = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with sock, sock.makefile("rb") as file:
                self.handshakes += 1
                with contextlib.suppress(OSError, struct.error):  # the client has gone
                    self._serve(sock, file)

    def _serve(self, sock: socket.socket, file: Any) -> None:
        sock.sendall(nbd.MAGIC + nbd.OPTION_MAGIC + b"\0\3")
        file.read(4)
        while True:
            _, option, length = nbd.OPTION.unpack(file.read(nbd.OPTION.size))
            file.read(length)
            known = {nbd.OPT_SET_META_CONTEXT: self._status, nbd.OPT_EXTENDED_HEADERS: self._extended}
            if not known.get(option, True):
                sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_ERR_UNSUP, 0))
                continue
            if option == nbd.OPT_SET_META_CONTEXT:
                context = b"\0\0\0\1base:allocation"
                head = nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_META_CONTEXT, len(context))
                sock.sendall(head + context)
            if option == nbd.OPT_GO:
                info = struct.pack(">HQH", nbd.INFO_EXPORT, self._size, nbd.HAS_FLAGS)
                sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_INFO, len(info)) + info)
            sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_ACK, 0))
            if option == nbd.OPT_GO:
                break
        layout = nbd.EXT_REQUEST if self._extended else nbd.REQUEST
        _, _, _, cookie, offset, _ = layout.unpack(file.read(layout.size))
        sock.sendall(self._lie(cookie, offset))
        sock.shutdown(socket.SHUT_WR)
        file.read()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


STATUS_LIES: dict[str, Callable[[int, int], bytes]] = {
    "no extent": lambda cookie, offset: _extended(cookie, offset, nbd.CHUNK_NONE, b""),
    "an extent of no length": lambda cookie, offset: _status(cookie, offset, 1, 1, (0, 0)),
    "another context": lambda cookie, offset: _status(cookie, offset, 2, 1, (512, 0)),
    "a wrong number": lambda cookie, offset: _status(cookie, offset, 1, 2, (512, 0)),
    "half an extent": lambda cookie, offset: _extended(cookie, offset, 6, struct.pack(">IIQ", 1, 1, 512)),
    "two answers": lambda cookie, offset: (
        _status(cookie, offset, 1, 1, (512, 0), done=0) + _status(cookie, offset, 1, 1, (512, 0))
    ),
    "data": lambda cookie, offset: _extended(cookie, offset, 1, offset.to_bytes(8) + bytes(512)),
}


def _status(cookie: int, offset: int, context: int, number: int, *extents: tuple[int, int], done: int = 1) -> bytes:
    numbers = [number for extent in extents for number in extent]
    payload = struct.pack(f">II{len(numbers)}Q", context, number, *numbers)
    return _extended(cookie, offset, nbd.CHUNK_BLOCK_STATUS_EXT, payload, done=done)


TERABYTE = 1 << 40
TRUTHS: dict[str, Callable[[int, int], bytes]] = {
    "extended": lambda cookie, offset: _status(cookie, offset, 1, 1, (TERABYTE, 3)),
    "not counted": lambda cookie, offset: _status(cookie, offset, 1, 0, (TERABYTE, 3)),
    "more than asked for": lambda cookie, offset: _status(cookie, offset, 1, 2, (1 << 50, 3), (1, 2)),
    "compact": lambda cookie, offset: _extended(
        cookie, offset, nbd.CHUNK_BLOCK_STATUS, struct.pack(">III", 1, 1 << 30, 3)
    ),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_status_of_a_long_range_is_one_request(truth: str, tmp_path: Path) -> None:
    server = Liar(tmp_path / "sock", TRUTHS[truth], extended=True, status=True, size=TERABYTE)
    engine = Engine()
    try:
        address = {"type": "unix", "path": str(tmp_path / "sock")}
        engine.execute("blockdev-add", {"driver": "nbd", "node-name": "n", "server": address, "read-only": True})
        extent = engine.graph.nodes["n"].driver.block_status(0, TERABYTE)
        assert extent.length == (1 << 30 if truth == "compact" else TERABYTE)
        assert extent.flags & Status.ZERO
    finally:
        engine.close()
        server.close()


@pytest.mark.parametrize("lie", STATUS_LIES)
def test_lies_about_the_status(lie: str, tmp_path: Path) -> None:
    server = Liar(tmp_path / "sock", STATUS_LIES[lie], extended=True, status=True)
    engine = Engine()
    try:
        address = {"type": "unix", "path": str(tmp_path / "sock")}
        engine.execute("blockdev-add", {"driver": "nbd", "node-name": "n", "server": address})
        node = engine.graph.nodes["n"]
        with pytest.raises(OSError) as error:
            node.driver.block_status(0, MIB)
        assert error.value.errno == errno.EIO
    finally:
        engine.close()
        server.close()


@pytest.mark.parametrize(
    ("lie", "extended"), [*((lie, False) for lie in LIES), *((lie, True) for lie in EXTENDED_LIES)]
)
def test_lies_are_io_errors(lie: str, extended: bool, tmp_path: Path) -> None:
    liar = Liar(tmp_path / "sock", (EXTENDED_LIES if extended else LIES)[lie], extended=extended)
    engine = Engine()
    try:
        server = {"type": "unix", "path": str(tmp_path / "sock")}
        engine.execute("blockdev-add", {"driver": "nbd", "node-name": "n", "server": server})
        node = engine.graph.nodes["n"]
        with pytest.raises(OSError) as error:
            read(node, 4096, 512)
        assert error.value.errno == errno.EIO
        if "hangs up" not in lie:
            # Who breaks the protocol is not asked again.
            with pytest.raises(OSError):
                read(node, 4096, 512)
            assert liar.handshakes == 1
    finally:
        engine.close()
        liar.close()


class Silent:
    """Somebody who takes connections and says nothing."""

    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listening.bind(str(path))
        self._listening.listen()

    def wait(self) -> socket.socket:
        """The next who comes."""
        self._listening.settimeout(20)
        return self._listening.accept()[0]

    def close(self) -> None:
        self._listening.close()


def test_a_silent_server_is_none(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.drivers.protocol.nbd.HANDSHAKE_LIMIT", 0.2)
    silent = Silent(pair.path)
    with pytest.raises(GenericError, match="Failed to read initial magic: Connection timed out"):
        pair.connect()
    silent.close()


def test_a_node_goes_while_a_silent_server_has_its_connection(pair: Pair) -> None:
    pair.serve()
    node = pair.connect()
    pair.stop()
    silent = Silent(pair.path)
    with pytest.raises(OSError):
        read(node, 0, 3)
    with silent.wait() as connection:
        pair.client.execute("blockdev-del", {"node-name": "n"})
        connection.settimeout(20)
        assert connection.recv(1) == b""
    silent.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "nbd connect"]


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nbd:unix:/a b", {"server": {"type": "unix", "path": "/a b"}}),
        ("nbd:unix:/s:exportname=x:y", {"export": "x:y", "server": {"type": "unix", "path": "/s"}}),
        ("nbd:h:1", {"server": {"type": "inet", "host": "h", "port": "1"}}),
        ("nbd:[::1]:1:exportname=e", {"export": "e", "server": {"type": "inet", "host": "::1", "port": "1"}}),
        ("nbd://h", {"server": {"type": "inet", "host": "h", "port": "10809"}}),
        ("nbd+tcp://h:5/a%20b", {"export": "a b", "server": {"type": "inet", "host": "h", "port": "5"}}),
        ("nbd://[::1]:5", {"server": {"type": "inet", "host": "::1", "port": "5"}}),
        ("nbd+unix:///e/f?socket=/tmp/x", {"export": "e/f", "server": {"type": "unix", "path": "/tmp/x"}}),
        ("nbd+unix://?socket=/tmp/x", {"server": {"type": "unix", "path": "/tmp/x"}}),
    ],
)
def test_file_names(name: str, options: dict[str, Any]) -> None:
    assert parse_filename(name) == options


@pytest.mark.parametrize("name", ["nbd://", "nbd://h:x", "nbd://h?a=b", "nbd+unix:///e", "nbd+unix://h/e?socket=/s"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(GenericError, match="No valid URL specified"):
        parse_filename(name)


def test_images_over_nbd_are_opened_by_name_and_shown_by_name(pair: Pair) -> None:
    pair.serve()
    name = f"nbd+unix:///d?socket={pair.path}"
    pair.client.execute("x-blockmon-open", {"filename": name})
    files = {node["file"] for node in pair.client.execute("query-named-block-nodes")}
    assert files == {name}


@pytest.mark.parametrize("command", ["blockdev-mirror", "blockdev-backup"])
def test_a_cancelled_job_does_not_wait_for_a_lost_target(pair: Pair, command: str) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 3600})
    pair.client.execute("blockdev-add", {"driver": "null-co", "node-name": "z", "size": SIZE})
    ended = threading.Event()

    def listen(event: dict[str, Any]) -> None:
        if event["event"] in ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED"):
            ended.set()

    pair.client.subscribe(listen)
    pair.stop()
    arguments = {"job-id": "j", "device": "z", "target": "n", "sync": "full"}
    client = node.driver._client
    pair.client.execute(command, arguments)
    with client._state:
        assert client._state.wait_for(lambda: client._wait_until > 0, 20)
    pair.client.execute("block-job-cancel", {"device": "j", "force": True})
    assert ended.wait(20)
