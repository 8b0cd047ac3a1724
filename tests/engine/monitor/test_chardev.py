"""Character devices: their options, sockets, and the transport of the standard streams."""

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GenericError
from engine.monitor.addresses import chardev_from_address
from engine.monitor.chardev.kinds import make_chardev
from engine.monitor.chardev.options import chardev_from_option
from engine.monitor.chardev.stdio import FdTransport
from engine.qapi import to_wire
from engine.sockets.addresses import InetSocketAddress, UnixSocketAddress
from engine.sockets.streams import connect, connect_inet, connect_unix, listen_inet, listen_unix


def described(text: str) -> Any:
    return to_wire(chardev_from_option(text))


def test_options_and_json_mean_the_same() -> None:
    unix = described("socket,id=m,path=/tmp/a,,b,server=on,wait=off")
    assert unix == {
        "id": "m",
        "backend": {
            "type": "socket",
            "data": {
                "addr": {"type": "unix", "data": {"path": "/tmp/a,b"}},
                "server": True,
                "wait": False,
            },
        },
    }
    assert described(json.dumps(unix)) == unix
    inet = described("socket,id=m,host=::1,port=4444,to=4450,ipv4=off,nodelay")["backend"]["data"]
    assert inet["addr"]["data"] == {"host": "::1", "port": "4444", "to": 4450, "ipv4": False}
    assert inet["nodelay"] is True
    assert inet["server"] is False
    assert described("backend=stdio,id=a.b,signal=off")["backend"] == {"type": "stdio", "data": {"signal": False}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "chardev: no id specified"),
        ("stdio", "chardev: no id specified"),
        ("id=m", 'chardev: "m" missing backend'),
        ("foo,id=m", "'foo' is not a valid char driver name"),
        ("stdio,id=1m", "Parameter 'id' expects an identifier"),
        ("stdio,id=", "Parameter 'id' expects an identifier"),
        ("stdio,id=m,signal=maybe", "Parameter 'signal' expects 'on' or 'off'"),
        ("stdio,id=m,path=x", "chardev: stdio: the option 'path' is not available"),
        ("socket,id=m,path=x,foo=1", "Invalid parameter 'foo'"),
        ("socket,id=m,path=x,telnet=on", "chardev: socket: the option 'telnet' is not available"),
        ("socket,id=m,host=x", "chardev: socket: no port given"),
        ("socket,id=m", "chardev: socket: one of 'path' and 'host' is required"),
        ("socket,id=m,path=x,host=y", "chardev: socket: one of 'path' and 'host' is required"),
        ('{"id": "m"}', "Parameter 'backend' is missing"),
        ('{"id": "m", "backend": {"type": "foo"}}', "Parameter 'type' does not accept value 'foo'"),
    ],
)
def test_bad_options(text: str, complaint: str) -> None:
    with pytest.raises(GenericError) as caught:
        chardev_from_option(text)
    assert caught.value.desc == complaint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("socket,id=m,path=x,wait=on", "'wait' option is incompatible with socket in client connect mode"),
        (
            "socket,id=m,path=x,server=on,reconnect=1",
            "'reconnect' option is incompatible with socket in server listen mode",
        ),
        ("socket,id=m,path=x,nodelay=on", "chardev: socket: the option 'nodelay' is for TCP"),
    ],
)
def test_options_that_do_not_go_together(text: str, complaint: str) -> None:
    with pytest.raises(GenericError) as caught:
        make_chardev(chardev_from_option(text))
    assert caught.value.desc == complaint


def test_addresses() -> None:
    def data(text: str) -> Any:
        return to_wire(chardev_from_address(text, "c"))["backend"]["data"]

    assert data("unix:/a:b,,c") == {
        "addr": {"type": "unix", "data": {"path": "/a:b,c"}},
        "server": True,
        "wait": False,
    }
    assert data("unix:/a,server=off")["server"] is False
    assert data("unix:/a,wait=on")["wait"] is True
    assert data("tcp:localhost:4444")["addr"]["data"] == {"host": "localhost", "port": "4444"}
    assert data("tcp:[::1]:4444,ipv6=on")["addr"]["data"] == {"host": "::1", "port": "4444", "ipv6": True}
    assert data("tcp::4444")["addr"]["data"] == {"host": "", "port": "4444"}
    assert to_wire(chardev_from_address("stdio", "c"))["backend"] == {"type": "stdio", "data": {}}


@pytest.mark.parametrize(
    "text", ["", "foo", "unix:", "tcp:", "tcp:1", "tcp:::1:5", "tcp:[::1]", "unix:/a,foo=1", "stdiox"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(GenericError):
        chardev_from_address(text, "c")


# -- sockets ------------------------------------------------------------------------------------------------------


def test_a_stale_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    old = socket.socket(socket.AF_UNIX)
    old.bind(path)
    old.close()
    first = listen_unix(UnixSocketAddress(path=path))
    # Somebody listens there now: it is not taken away from him.
    with pytest.raises(GenericError, match=r"^Failed to bind socket to .*: Address already in use$"):
        listen_unix(UnixSocketAddress(path=path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    first.remove_file()
    first.sock.close()
    assert not os.path.lexists(path)
    image = tmp_path / "disk.raw"
    image.write_bytes(b"precious")
    with pytest.raises(GenericError, match="Address already in use"):
        listen_unix(UnixSocketAddress(path=str(image)))
    assert image.read_bytes() == b"precious"


def test_a_file_that_is_another_s_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = listen_unix(UnixSocketAddress(path=str(path)))
    path.unlink()
    path.write_bytes(b"new")
    listening.remove_file()
    listening.sock.close()
    assert path.read_bytes() == b"new"


def test_long_path() -> None:
    with pytest.raises(GenericError, match="is too long") as caught:
        listen_unix(UnixSocketAddress(path="x" * 108))
    assert caught.value.hint == "Path must be less than 108 bytes"


async def test_abstract_sockets() -> None:
    for tight in (True, False):
        address = UnixSocketAddress(path=f"blockmon-{os.getpid()}", abstract=True, tight=tight)
        listening = listen_unix(address)
        client = await connect_unix(address)
        client.close()
        listening.sock.close()


async def test_tcp() -> None:
    listening = await listen_inet(InetSocketAddress(host="127.0.0.1", port="0"))
    port = listening.sock.getsockname()[1]
    taken = InetSocketAddress(host="127.0.0.1", port=str(port))
    with pytest.raises(GenericError, match="Failed to find an available port: Address already in use"):
        await listen_inet(taken)
    client = await connect_inet(taken)
    client.close()
    next_free = await listen_inet(InetSocketAddress(host="127.0.0.1", port=str(port), to=min(port + 20, 65535)))
    assert next_free.sock.getsockname()[1] > port
    next_free.sock.close()
    listening.sock.close()
    with pytest.raises(GenericError, match=f"Failed to connect to '127.0.0.1:{port}': Connection refused"):
        await connect_inet(taken)
    with pytest.raises(GenericError, match="address resolution failed for localhost:nosuch: "):
        await connect_inet(InetSocketAddress(host="localhost", port="nosuch"))


# -- standard streams ---------------------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """Remembers what comes, and stops reading when told to."""

    def __init__(self) -> None:
        self.data = b""
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.transport: Any = None
        self.stop_at: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.stop_at is not None and len(self.data) >= self.stop_at:
            self.transport.pause_reading()
            self.events.put_nowait("stopped")

    def eof_received(self) -> bool:
        self.events.put_nowait("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.put_nowait("lost")

    def pause_writing(self) -> None:
        self.events.put_nowait("pause")

    def resume_writing(self) -> None:
        self.events.put_nowait("resume")

    async def expect(self, event: str) -> None:
        assert await asyncio.wait_for(self.events.get(), 20) == event


@pytest.fixture
def pipes() -> Any:
    """(input's reading end, writing end, output's reading end, writing end)."""
    ends = [*os.pipe(), *os.pipe()]
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


async def test_fd_transport_reads_to_the_end(pipes: list[int]) -> None:
    recorder = Recorder()
    transport = FdTransport(recorder, pipes[0], pipes[3])
    os.write(pipes[1], b"abc")
    os.close(pipes[1])
    await recorder.expect("eof")
    assert recorder.data == b"abc"
    transport.write(b"x")
    transport.write(b"yz")
    transport.close()
    await recorder.expect("lost")
    assert os.read(pipes[2], 10) == b"xyz"


async def test_fd_transport_stops_reading(pipes: list[int]) -> None:
    recorder = Recorder()
    recorder.stop_at = 1
    transport = FdTransport(recorder, pipes[0], pipes[3])
    os.write(pipes[1], b"abc")
    await recorder.expect("stopped")
    os.write(pipes[1], b"def")
    assert not transport.is_reading()
    assert recorder.data == b"abc"
    recorder.stop_at = None
    transport.resume_reading()
    os.close(pipes[1])
    await recorder.expect("eof")
    assert recorder.data == b"abcdef"
    transport.close()


async def test_fd_transport_tells_when_nobody_reads(pipes: list[int]) -> None:
    recorder = Recorder()
    transport = FdTransport(recorder, pipes[0], pipes[3])
    transport.write(bytes(1 << 20))
    await recorder.expect("pause")
    received = 0

    def drain() -> None:
        nonlocal received
        while received < 1 << 20:
            received += len(os.read(pipes[2], 65536))

    await asyncio.to_thread(drain)
    await recorder.expect("resume")
    transport.close()
    await recorder.expect("lost")


async def test_fd_transport_survives_a_reader_that_goes(pipes: list[int]) -> None:
    recorder = Recorder()
    transport = FdTransport(recorder, pipes[0], pipes[3])
    os.close(pipes[2])
    transport.write(b"x")
    await recorder.expect("lost")


async def test_fd_transport_reads_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"q" * 200_000)
    recorder = Recorder()
    with path.open("rb") as file, (tmp_path / "output").open("wb") as output:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        transport = FdTransport(recorder, file.fileno(), output.fileno())
        await recorder.expect("eof")
        assert len(recorder.data) == 200_000
        transport.close()
        await recorder.expect("lost")


async def test_a_numeric_address_looks_up_no_name() -> None:
    with pytest.raises(GenericError, match="address resolution failed for localhost:0: Name or service not known"):
        await listen_inet(InetSocketAddress(host="localhost", port="0", numeric=True))
    listening = await listen_inet(InetSocketAddress(host="127.0.0.1", port="0", numeric=True))
    port = str(listening.sock.getsockname()[1])
    try:
        with pytest.raises(GenericError, match=f"address resolution failed for localhost:{port}: "):
            connect(InetSocketAddress(host="localhost", port=port, numeric=True))
        with connect(InetSocketAddress(host="127.0.0.1", port=port, numeric=True, keep_alive=True)) as sock:
            assert sock.getpeername()[1] == int(port)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        listening.sock.close()


def test_blocking_connections_fail_with_the_address(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(GenericError, match=f"Failed to connect to '{missing}': No such file or directory"):
        connect(UnixSocketAddress(path=missing))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(GenericError, match=f"Failed to connect to '127.0.0.1:{port}': Connection refused"):
            connect(InetSocketAddress(host="127.0.0.1", port=str(port)))
