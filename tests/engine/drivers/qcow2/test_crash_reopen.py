"""Power cuts while a node is written, reopened with other options, made read-only and writable again.

The node is a real one in a graph; what its file node does to the file is logged, and replayed as in test_crash.py.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from engine.graph.driver import Prealloc, WriteFlag
from engine.graph.internal_snapshots import create_snapshot, delete_snapshot, goto_snapshot, snapshot_now
from engine.graph.node import Node
from engine.graph.reopen import reopen
from tests.engine.drivers.qcow2.support import make
from tests.engine.drivers.qcow2.test_crash import Event, History
from tests.graphs import Bench

OPTIONS: dict[str, list[Any]] = {
    "lazy-refcounts": [True, False],
    "l2-cache-size": [4096, 1 << 20],
    "l2-cache-entry-size": [512],
    "refcount-cache-size": [4096, 1 << 20],
    "overlap-check": ["none", "constant", "all"],
    "pass-discard-other": [True, False],
    "discard": ["unmap", "ignore"],
    "cache-clean-interval": [0, 900],
}


class Log:
    """Stands in for the recording child of a History."""

    def __init__(self) -> None:
        self.log: list[Event] = []

    def listen(self, node: Node) -> None:
        """Log what *node*, a file node, is told to change."""
        driver: Any = node.driver
        write, flush, truncate = driver.write, driver.flush, driver.truncate

        def logged_write(offset: int, data: memoryview, flags: int = 0) -> None:
            self.log.append(Event("write", offset, bytes(data)))
            write(offset, data, flags)

        def logged_zeroes(offset: int, length: int, flags: int = 0) -> None:
            logged_write(offset, memoryview(bytes(length)))

        def logged_discard(offset: int, length: int) -> None:
            self.log.append(Event("discard", offset, size=length))

        def logged_flush() -> None:
            self.log.append(Event("flush"))
            flush()

        def logged_truncate(length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
            self.log.append(Event("truncate", length))
            truncate(length, exact=exact, prealloc=prealloc)

        driver.write, driver.write_zeroes, driver.discard = logged_write, logged_zeroes, logged_discard
        driver.flush, driver.truncate = logged_flush, logged_truncate

    def close(self) -> None:
        """Nothing is open."""


class NodeHistory(History):
    """Random work on a node, reopened now and then."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.before = path.read_bytes()
        self.bench = Bench(path.parent)
        self.node = self.bench.add(
            driver="qcow2",
            node_name="n",
            discard="unmap",
            file={"driver": "file", "node-name": "f", "filename": str(path)},
        )
        self.child: Any = Log()
        file = self.node.file
        assert file is not None
        self.child.listen(file.child)
        self.random = random.Random(seed)
        self.cluster = self.node.driver.limits.discard_alignment
        self.model = bytearray(self.node.length)
        self.marks = [(0, bytes(self.model))]
        self.changes = []
        self.saved: dict[str, bytes] = {}

    def _mark(self) -> None:
        self.marks.append((len(self.child.log), bytes(self.model)))

    def _refresh(self) -> None:
        self.model = bytearray(self.node.length)
        self.node.read(0, memoryview(self.model))

    def step(self, resize: bool) -> None:
        offset, length = self._range()
        pick = self.random.random()
        if pick < 0.12:
            self._reopen()
        elif pick < 0.2:
            self._snapshot()
        elif pick < 0.3:
            self.node.flush()
            self._mark()
        elif pick < 0.34:
            size = max(len(self.model) + self.random.randrange(-6, 20) * self.cluster, self.cluster)
            self.changes.append((len(self.child.log), min(size, len(self.model)), 1 << 62))
            self.node.truncate(size)
            self._refresh()
            self.node.flush()
            self._mark()
        else:
            self.changes.append((len(self.child.log), offset, offset + length))
            if pick < 0.75:
                data = self.random.randbytes(length)
                self.node.write(offset, memoryview(data))
            elif pick < 0.85:
                self.node.write_zeroes(offset, length, int(WriteFlag.MAY_UNMAP))
            else:
                self.node.discard(offset, length)
            self._refresh()

    def _reopen(self) -> None:
        chosen = self.random.sample(sorted(OPTIONS), 3)
        given = {name: self.random.choice(OPTIONS[name]) for name in chosen}
        if self.random.random() < 0.5:
            reopen(self.node, given | {"read-only": True}, keep_old=True)
            self._mark()
        reopen(self.node, given | {"read-only": False}, keep_old=True)
        self._mark()

    def _snapshot(self) -> None:
        if self.saved and self.random.random() < 0.5:
            name = self.random.choice(sorted(self.saved))
            if self.random.random() < 0.5:
                delete_snapshot(self.node, None, name)
                del self.saved[name]
            else:
                self.changes.append((len(self.child.log), 0, 1 << 62))
                goto_snapshot(self.node, name)
                self.model = bytearray(self.saved[name])
        elif len(self.saved) < 3:
            name = f"s{len(self.marks)}"
            create_snapshot(self.node, snapshot_now(name))
            self.saved[name] = bytes(self.model)
        else:
            return
        self._mark()

    def finish(self) -> None:
        self.bench.graph.close()
        self._mark()


CASES: list[tuple[str, dict[str, Any]]] = [
    ("512", {"cluster_size": 512}),
    ("4k-lazy", {"cluster_size": 4096, "lazy_refcounts": True}),
    ("16k-extended", {"cluster_size": 16384, "extended_l2": True}),
]


@pytest.mark.interop
@pytest.mark.parametrize(("name", "options"), CASES, ids=[case[0] for case in CASES])
def test_power_cut_among_reopens(name: str, options: dict[str, Any], tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, 48 * options["cluster_size"], **options)
    seed = zlib.crc32(name.encode())
    history = NodeHistory(path, seed)
    for _ in range(150):
        history.step(True)
    history.finish()
    assert path.read_bytes()[79] & 1 == 0
    pick = random.Random(seed)
    log = history.child.log
    brinks = [i for i, event in enumerate(log) if event.kind == "flush" and i]
    for _ in range(40):
        at = pick.choice(brinks) if pick.random() < 0.8 else pick.randrange(1, len(log) + 1)
        history.crash(at, pick if pick.random() < 0.8 else None, copy)
        history.verify(at, copy, True)
