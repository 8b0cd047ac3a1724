#!/usr/bin/env python3
"""Add, query, reopen and delete many nodes, by QMP over a socket, here and in qemu-storage-daemon, in the same run.

Prints seconds for each and the ratio (below 1: faster than the daemon). Run it with the project's Python:
.venv/bin/python scripts/bench/nodes.py [NODES]
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Client:
    """A QMP client that sends one command after the other."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 20
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.02)
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: Any = None) -> Any:
        request = {"execute": command} | ({"arguments": arguments} if arguments is not None else {})
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        while True:
            reply = json.loads(self._file.readline())
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(reply["error"]["desc"])


@contextmanager
def running(command: Sequence[str | Path], path: Path) -> Iterator[Client]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Client(path, process)
    finally:
        process.terminate()
        process.wait()


def options(folder: Path, number: int) -> dict[str, Any]:
    file = {"driver": "file", "node-name": f"f{number}", "filename": str(folder / f"{number}.raw")}
    return {"driver": "raw", "node-name": f"n{number}", "file": file}


def measure(client: Client, folder: Path, count: int) -> dict[str, float]:
    """Seconds that each kind of command took for *count* pairs of a raw and a file node."""
    times: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        times[name] = time.perf_counter() - started

    with timed("add"):
        for i in range(count):
            client.execute("blockdev-add", options(folder, i))
    with timed("query, 5 times"):
        for _ in range(5):
            assert len(client.execute("query-named-block-nodes", {"flat": True})) == 2 * count
    with timed("reopen one by one"):
        for i in range(count):
            changed = {"driver": "raw", "node-name": f"n{i}", "file": f"f{i}", "read-only": True}
            client.execute("blockdev-reopen", {"options": [changed]})
    with timed("reopen all at once"):
        every = [{"driver": "raw", "node-name": f"n{i}", "file": f"f{i}", "read-only": False} for i in range(count)]
        client.execute("blockdev-reopen", {"options": every})
    with timed("delete"):
        for i in range(count):
            client.execute("blockdev-del", {"node-name": f"n{i}"})
    return times


def main() -> int:
    count = int(sys.argv[1]) // 2 if len(sys.argv) > 1 else 500
    daemon = shutil.which("qemu-storage-daemon")
    ours = Path(sys.executable).with_name("blockmon")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            (folder / f"{i}.raw").write_bytes(bytes(65536))
        path = folder / "ours"
        with running([ours, "serve", "--qmp", f"unix:{path}"], path) as client:
            here = measure(client, folder, count)
        there: dict[str, float] = {}
        if daemon is not None:
            path = folder / "theirs"
            chardev = f"socket,id=m,path={path},server=on,wait=off"
            with running([daemon, "--chardev", chardev, "--monitor", "chardev=m"], path) as client:
                there = measure(client, folder, count)
        print(f"{2 * count} nodes{'':>18}blockmon  qemu-storage-daemon  ratio")
        for what, seconds in here.items():
            theirs = there.get(what)
            beside = f"{theirs:>17.3f} s  {seconds / theirs:5.2f}" if theirs else ""
            print(f"  {what:<22}{seconds:>8.3f} s{beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
