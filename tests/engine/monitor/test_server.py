"""Monitors of one engine: as the command line makes them, and to their end."""

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.monitor.server import Monitors
from tests.engine.monitor.wire import Client


class Made:
    """An engine with monitors."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.announced: list[str] = []
        self.waiting = threading.Event()
        self.monitors = Monitors(self.engine, self._announce)

    def _announce(self, sentence: str) -> None:
        self.announced.append(sentence)
        self.waiting.set()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.engine.control.loop).result(20)

    def monitor(self, text: str) -> None:
        self.engine.control.call(lambda: self.monitors.add_monitor(text))


@pytest.fixture
def made() -> Any:
    made = Made()
    yield made
    made.engine.close()


def connect(path: Path) -> Client:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return Client(sock)


def test_one_socket_serves_several_clients_at_once(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    made.do(made.monitors.listen("control", f"unix:{path}"))
    clients = [connect(path).negotiate() for _ in range(3)]
    for client in reversed(clients):
        assert "return" in client.ask("query-version")
    chardev = clients[0].ask("query-chardev")["return"]
    assert chardev == [{"label": "compat_monitor0", "filename": f"unix:{path},server=on", "frontend-open": True}]
    for client in clients:
        client.close()


def test_chardev_and_monitor(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    made.do(made.monitors.add_chardev(f"socket,id=m,path={path},server=on,wait=off"))
    early = connect(path)  # before a monitor is there
    for text, complaint in (
        ("chardev=x", 'chardev "x" not found'),
        ("mode=control", "Parameter 'chardev' is missing"),
        ("chardev=m,mode=foo", "Parameter 'mode' does not accept value 'foo'"),
        ("chardev=m,mode=readline,pretty=on", "'pretty' is not compatible with HMP monitors"),
    ):
        with pytest.raises(GenericError) as caught:
            made.monitor(text)
        assert caught.value.desc == complaint
    made.monitor("chardev=m,mode=control,id=mon")
    early.negotiate()
    with pytest.raises(GenericError, match="Device 'm' is in use"):
        made.monitor("m")
    with pytest.raises(GenericError, match="Chardev with id 'm' already exists"):
        made.do(made.monitors.add_chardev(f"socket,id=m,path={path}2,server=on,wait=off"))
    early.close()


def test_hmp_on_a_socket(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "hmp"
    made.do(made.monitors.add_chardev(f"socket,id=m,path={path},server=on,wait=off"))
    made.monitor("chardev=m,mode=readline")
    client = connect(path)
    assert client.line() == b"QEMU 7.2.22 monitor - type 'help' for more information\r\n"
    client.close()


def test_a_server_that_waits(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    loop = made.engine.control.loop
    opening = asyncio.run_coroutine_threadsafe(made.monitors.add_chardev(f"socket,id=m,path={path},server=on"), loop)
    assert made.waiting.wait(20)
    assert made.announced == [f"waiting for connection on: disconnected:unix:{path},server=on"]
    assert not opening.done()
    client = connect(path)
    opening.result(20)
    made.monitor("m")
    client.negotiate()
    client.close()


def test_waiting_can_be_given_up(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    loop = made.engine.control.loop
    opening = asyncio.run_coroutine_threadsafe(made.monitors.add_chardev(f"socket,id=m,path={path},server=on"), loop)
    assert made.waiting.wait(20)
    opening.cancel()
    made.do(asyncio.sleep(0))
    made.do(asyncio.sleep(0))
    assert not path.exists()


def test_a_client_connects_and_connects_again(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "manager"
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(str(path))
        manager.listen()
        manager.settimeout(20)
        made.do(made.monitors.add_chardev(f"socket,id=m,path={path},reconnect=1"))
        made.monitor("m")
        for _ in range(2):
            client = Client(manager.accept()[0])
            client.negotiate()
            client.close()


def test_the_end(tmp_path: Path) -> None:
    made = Made()
    path = tmp_path / "qmp"
    made.do(made.monitors.listen("control", f"unix:{path}"))
    made.do(made.monitors.listen("readline", f"unix:{path}.hmp"))
    active, deaf, person = connect(path).watch(), connect(path).negotiate(), connect(Path(f"{path}.hmp"))
    deaf.send(b'{"execute": "query-qmp-schema"}' * 20)  # it will never read the answers
    made.engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 65536})
    active.event("X_BLOCKMON_GRAPH_CHANGE")
    made.engine.close()
    assert os.listdir(tmp_path) == []
    while line := active.line():
        assert b"event" in line
    assert person.line().startswith(b"QEMU")
    for client in (active, deaf, person):
        client.close()
