"""Random operations on a writable image in a real graph, compared byte by byte with a bytearray."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.graph.creation import GraphCreateContext
from engine.graph.driver import Status, drivers
from engine.graph.node import Node
from engine.graph.options import BlockdevCreateOptions
from engine.qapi import from_wire
from tests.graphs import Bench


def make(bench: Bench, path: Path, driver: str, size: int, **options: Any) -> Path:
    """blockdev-create of an image in a new file, without a job."""
    path.write_bytes(b"")
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    wire |= {"driver": driver, "size": size, "file": {"driver": "file", "filename": str(path)}}
    create = drivers[driver].create
    typed = from_wire(BlockdevCreateOptions, wire)
    create(typed.branch, GraphCreateContext(bench.graph, lambda function: function()))
    return path


def get(node: Node, offset: int, length: int) -> bytes:
    """What the node reads there."""
    buffer = bytearray(b"?" * length)
    node.read(offset, memoryview(buffer))
    return bytes(buffer)


class Run:
    """One image and its model. reopen: opens it anew, as after closing it."""

    def __init__(self, open_node: Callable[[], Node], content: bytes, cluster: int, seed: int) -> None:
        self._open = open_node
        self.node = open_node()
        self.model = bytearray(content)
        self.cluster = cluster
        self.random = random.Random(seed)

    def _range(self) -> tuple[int, int]:
        pick, size = self.random, len(self.model)
        unit = pick.choice((1, 512, self.cluster, self.cluster))
        offset = pick.randrange(size) // unit * unit
        longest = pick.choice((512, self.cluster, 3 * self.cluster, 20 * self.cluster))
        length = -(-pick.randrange(1, longest + 1) // unit) * unit
        return offset, max(min(length, size - offset), 1)

    def compare(self, offset: int, length: int) -> None:
        assert get(self.node, offset, length) == self.model[offset : offset + length], (offset, length)

    def status(self, offset: int, length: int) -> None:
        """What the status says is zero reads so, and data are found where it says they are."""
        end = offset + length
        while offset < end:
            extent = self.node.block_status(offset, end - offset)
            assert 1 <= extent.length <= end - offset
            if extent.flags & Status.ZERO:
                assert not any(self.model[offset : offset + extent.length])
            elif extent.flags & Status.DATA and extent.flags & Status.OFFSET_VALID:
                assert extent.node is not None
                there = get(extent.node, extent.offset, extent.length)
                assert there == self.model[offset : offset + extent.length]
            offset += extent.length

    def step(self) -> None:
        """One random operation."""
        pick = self.random.random()
        offset, length = self._range()
        if pick < 0.45:
            data = self.random.randbytes(length)
            self.node.write(offset, memoryview(data))
            self.model[offset : offset + length] = data
        elif pick < 0.6:
            self.node.write_zeroes(offset, length)
            self.model[offset : offset + length] = bytes(length)
        elif pick < 0.85:
            self.compare(offset, length)
        elif pick < 0.95:
            self.status(offset, length)
        elif pick < 0.98:
            self.node.flush()
        else:
            self.node = self._open()

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.compare(0, len(self.model))


__all__ = ["Run", "get", "make"]
