"""NBD servers of other people as processes, and an engine with a disk on one of them."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from engine.engine import Engine
from engine.errors import QMPError
from engine.graph.driver import Status, WriteFlag
from tests.conftest import find_tool

MIB = 1 << 20
SIZE = 4 * MIB


def listening(path: Path) -> bool:
    """Whether somebody listens there. (To connect would take a client's place; to look for the file is too early.)"""
    told = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[3] == "00010000" and words[-1] == str(path) for words in told)


class Server:
    """A server's process, listening at a Unix socket."""

    def __init__(self, path: Path, *command: str | Path) -> None:
        path.unlink(missing_ok=True)
        self._process = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not listening(path):
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait(20)

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)


def qemu_nbd(folder: Path, *options: str | Path) -> Server:
    command = ["qemu-nbd", "-k", folder / "sock", "-t", "-e", "8", "-f", "raw", "--discard=unmap", *options]
    return Server(folder / "sock", *command, folder / "a.raw")


def nbdkit(folder: Path, *options: str | Path) -> Server:
    return Server(folder / "sock", find_tool("nbdkit"), "-f", "-U", folder / "sock", *options)


class Disk:
    """An engine with the node "n" on the server at the socket of a folder. creds: kind of TLS credentials "t"."""

    def __init__(self, folder: Path, creds: str = "", keys: Path | None = None, **options: Any) -> None:
        self.engine = Engine()
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.engine.subscribe(self._take)
        server = {"type": "unix", "path": str(folder / "sock")}
        try:
            if creds:
                self.do("object-add", **{"qom-type": f"tls-creds-{creds}"}, id="t", endpoint="client", dir=str(keys))
            self.do("blockdev-add", **({"driver": "nbd", "node_name": "n", "server": server} | options))
        except QMPError:
            self.engine.close()
            raise
        self.node: Any = self.engine.graph.nodes["n"]

    def _take(self, event: dict[str, Any]) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def do(self, command: str, **arguments: Any) -> Any:
        return self.engine.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event, and forget it and those before it."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(event["event"] == name for event in self._events), 30), name
            while True:
                event = self._events.pop(0)
                if event["event"] == name:
                    data: dict[str, Any] = event["data"]
                    return data

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.node.read(offset, memoryview(data))
        return bytes(data)

    def extents(self, length: int) -> list[tuple[int, bool, bool]]:
        """(length, data, zero) of all there is."""
        found, at = [], 0
        while at < length:
            extent = self.node.driver.block_status(at, length - at)
            run = min(extent.length, length - at)
            found.append((run, bool(extent.flags & Status.DATA), bool(extent.flags & Status.ZERO)))
            at += run
        return found

    def back(self) -> None:
        """Wait until the connection is back."""
        client = self.node.driver._client
        with client._state:
            assert client._state.wait_for(lambda: client._channels, 30)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()


def churn(disk: Disk, model: bytearray, seed: int = 7, align: int = 1) -> None:
    """Do things to the node and to a model of it, and compare."""
    chance = random.Random(seed)
    node = disk.node
    for _ in range(200):
        offset = chance.randrange(len(model) // align) * align
        length = min(chance.choice([1, 511, 4096, 70_000, MIB]), len(model) - offset)
        match chance.randrange(5):
            case 0 | 1:
                data = chance.randbytes(length)
                node.write(offset, memoryview(data), chance.choice([0, int(WriteFlag.FUA)]))
                model[offset : offset + length] = data
            case 2:
                node.write_zeroes(offset, length, chance.choice([0, int(WriteFlag.MAY_UNMAP)]))
                model[offset : offset + length] = bytes(length)
            case 3:
                node.flush()
            case 4:
                assert disk.read(offset, length) == model[offset : offset + length]
    assert disk.read(0, len(model)) == model
    at = 0
    for run, _, zero in disk.extents(len(model)):
        assert not zero or not any(model[at : at + run])
        at += run
