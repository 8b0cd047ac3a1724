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


def test_a_server_that_comes_back_as_another_is_not_trusted(pair: Pair) -> None:
    pair.serve()
    node = pair.connect(**{"reconnect-delay": 60})
    pair.stop()
    pair.server.execute("block_resize", {"node-name": "disk", "size": SIZE * 2})
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

_READ = struct.Struct(">IHHQQI")


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


class Liar:
    """A server that does the handshake right, and answers the first read with a lie."""

    def __init__(self, path: Path, lie: Callable[[int, int], bytes]) -> None:
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
            if option == nbd.OPT_SET_META_CONTEXT:
                sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_ERR_UNSUP, 0))
                continue
            if option == nbd.OPT_GO:
                info = struct.pack(">HQH", nbd.INFO_EXPORT, MIB, 1)
                sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_INFO, len(info)) + info)
            sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, nbd.REP_ACK, 0))
            if option == nbd.OPT_GO:
                break
        _, _, _, cookie, offset, _ = _READ.unpack(file.read(_READ.size))
        sock.sendall(self._lie(cookie, offset))
        sock.shutdown(socket.SHUT_WR)
        file.read()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_io_errors(lie: str, tmp_path: Path) -> None:
    liar = Liar(tmp_path / "sock", LIES[lie])
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
