"""Random operations on a two-layer qcow2 chain in a real graph, compared byte by byte with a bytearray."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.drivers.format.qcow2 import Qcow2Driver
from engine.graph.driver import Status, WriteFlag
from engine.graph.node import Node
from tests.engine.drivers.qcow2.support import make, qemu_check, qemu_read, run
from tests.graphs import Bench


@dataclass
class Shape:
    """What kind of images to try; options are those of blockdev-create."""

    name: str
    options: dict[str, Any]
    size: int
    cluster: int
    base: bool = True
    top_options: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return 2 if self.options.get("version") == "v2" else 3


def shapes() -> list[Shape]:
    """Cluster sizes, refcount widths, versions and features, at sizes that make the tables grow."""

    def shape(name: str, cluster: int, size: int, **options: Any) -> Shape:
        return Shape(name, {"cluster_size": cluster, **options}, size, cluster, base=options.pop("base", True))

    return [
        shape("512-v2", 512, 192 << 10, version="v2"),
        shape("512-v3-rc1", 512, 256 << 10, refcount_bits=1),
        shape("512-v3-rc64", 512, 256 << 10, refcount_bits=64),
        shape("4k-v3-rc2", 4096, 2 << 20, refcount_bits=2),
        shape("4k-v2", 4096, 2 << 20, version="v2"),
        shape("64k-v3", 65536, 8 << 20),
        shape("64k-v3-lazy", 65536, 8 << 20, lazy_refcounts=True),
        shape("64k-v3-rc4", 65536, 8 << 20, refcount_bits=4),
        shape("2m-v3-rc64", 2 << 20, 24 << 20, refcount_bits=64),
        shape("2m-v3-rc1", 2 << 20, 24 << 20, refcount_bits=1),
        shape("16k-extended", 16384, 2 << 20, extended_l2=True),
        shape("64k-extended-rc8", 65536, 8 << 20, extended_l2=True, refcount_bits=8),
    ]


class Run:
    """One chain and its model."""

    def __init__(self, shape: Shape, folder: Path, seed: int, cache: dict[str, Any] | None = None) -> None:
        self.shape = shape
        self.random = random.Random(seed)
        self.folder = folder
        self.cache = cache or {}
        self.operations = 0
        self.base = folder / f"{shape.name}-base.qcow2"
        self.top = folder / f"{shape.name}-top.qcow2"
        make(self.base, shape.size, **shape.options)
        self.path = self.base
        self.backed = False
        self.model = bytearray(shape.size)
        self.below = b""
        self.node = self._open()

    # -- the chain -------------------------------------------------------------------------------------------

    def _open(self) -> Node:
        self.bench = Bench(self.folder)
        options: dict[str, Any] = {
            "driver": "qcow2",
            "node_name": "top",
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(self.path)},
            **self.cache,
        }
        return self.bench.add(**options)

    def close(self) -> None:
        self.bench.graph.close()

    def overlay(self) -> None:
        """Put an overlay on top; what was written so far is the backing file's."""
        self.close()
        size = self.shape.size
        if self.random.random() < 0.5:
            size = len(self.model) + self.random.randrange(-8, 9) * 4096
        size = max(size - size % 512, 512)
        make(self.top, size, backing_file=str(self.base), backing_fmt="qcow2", **self.shape.options)
        self.path = self.top
        self.backed = True
        self.below = bytes(self.model)
        self.model = self.model[:size] + bytes(max(size - len(self.model), 0))
        self.node = self._open()

    def verify(self) -> None:
        """Close, let qemu-img check and read the image, and open it again."""
        self.compare(0, len(self.model))
        self.close()
        qemu_check(self.path)
        assert qemu_read(self.path) == self.model
        self.node = self._open()

    # -- operations ------------------------------------------------------------------------------------------

    def _range(self) -> tuple[int, int]:
        pick, size = self.random, len(self.model)
        unit = pick.choice((1, 512, self.shape.cluster, self.shape.cluster, self.shape.cluster // 32 or 1))
        cluster = self.shape.cluster
        longest = min(size, pick.choice((512, cluster, cluster, 3 * cluster, 3 * cluster, 9 * cluster, 70 * cluster)))
        offset = pick.randrange(size) // unit * unit
        length = -(-pick.randrange(1, longest + 1) // unit) * unit
        return offset, max(min(length, size - offset), 1)

    def compare(self, offset: int, length: int) -> None:
        buffer = bytearray(length)
        self.node.read(offset, memoryview(buffer))
        if buffer != self.model[offset : offset + length]:
            at = next(i for i in range(length) if buffer[i] != self.model[offset + i])
            raise AssertionError(
                f"{self.shape.name}: byte {offset + at:#x} is {buffer[at]:#x}, not {self.model[offset + at]:#x}, "
                f"after {self.operations} operations"
            )

    def step(self) -> None:
        """One random operation."""
        self.operations += 1
        pick = self.random.random()
        offset, length = self._range()
        end = offset + length
        if pick < 0.34:
            data = self.random.randbytes(length)
            self.node.write(offset, memoryview(data))
            self.model[offset:end] = data
        elif pick < 0.60:
            self.compare(offset, length)
        elif pick < 0.74:
            flags = self.random.choice((0, int(WriteFlag.MAY_UNMAP)))
            self.node.write_zeroes(offset, length, flags)
            self.model[offset:end] = bytes(length)
        elif pick < 0.86:
            self.node.discard(offset, length)
            self._discarded(offset, end)
        elif pick < 0.93:
            self._status(offset, length)
        elif pick < 0.945:
            self._compress(offset // self.shape.cluster * self.shape.cluster)
        elif pick < 0.965:
            self.node.flush()
        elif pick < 0.975:
            self._resize()
        elif pick < 0.99:
            self._reserve(offset, length)
        elif pick < 0.997:
            self.close()
            self.node = self._open()
        else:
            self.empty()

    def empty(self) -> None:
        """Drop what the layer holds, as after a commit."""
        driver = self.node.driver
        assert isinstance(driver, Qcow2Driver)
        driver.make_empty()
        size = len(self.model)
        self.model = bytearray(self.below[:size] + bytes(max(size - len(self.below), 0)))

    def _discarded(self, offset: int, end: int) -> None:
        cluster = self.shape.cluster
        first = -(-offset // cluster) * cluster
        last = end if end == len(self.model) else end // cluster * cluster
        if first < last and (self.shape.version > 2 or not self.backed):
            self.model[first:last] = bytes(last - first)

    def _status(self, offset: int, length: int) -> None:
        at = offset
        while at < offset + length:
            extent = self.node.block_status(at, offset + length - at)
            assert 1 <= extent.length <= offset + length - at
            if extent.flags & Status.ZERO:
                assert not any(self.model[at : at + extent.length]), f"status says zero at {at:#x}"
            if extent.flags & Status.DATA and extent.flags & Status.OFFSET_VALID:
                assert extent.node is not None
                there = bytearray(extent.length)
                extent.node.read(extent.offset, memoryview(there))
                assert there == self.model[at : at + extent.length]
            at += extent.length

    def _compress(self, offset: int) -> None:
        length = min(self.shape.cluster, len(self.model) - offset)
        data = bytes(self.random.choices(b"ab", k=length))
        try:
            self.node.write(offset, memoryview(data), int(WriteFlag.COMPRESSED))
        except OSError as exc:
            # EIO: the cluster has data already.
            if exc.errno != errno.EIO:
                raise
            return
        self.model[offset : offset + length] = data

    def _resize(self) -> None:
        size = len(self.model) + self.random.randrange(-40, 50) * self.random.choice((512, 4096, self.shape.cluster))
        size = min(max(size // 512 * 512, 512), self.shape.size * 2)
        self.node.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def _reserve(self, offset: int, length: int) -> None:
        cluster = self.shape.cluster
        first, last = offset // cluster * cluster, -(-(offset + length) // cluster) * cluster
        last = min(last, len(self.model))
        plan = self.node.driver.begin_write(first, last - first)
        assert plan is not None
        data = self.random.randbytes(last - first)
        at = 0
        for node, host, size in plan.extents:
            node.write(host, memoryview(data)[at : at + size])
            at += size
        assert at == last - first
        if self.random.random() < 0.3:
            plan.abort()
            buffer = bytearray(last - first)
            self.node.read(first, memoryview(buffer))
            self.model[first:last] = self._after_abort(first, buffer, data)
        else:
            plan.commit()
            self.node.after_host_write(first, last - first)
            self.model[first:last] = data

    def _after_abort(self, first: int, found: bytearray, data: bytes) -> bytes:
        """After an abort each byte is the old or, in clusters written in place, the new one."""
        for i, value in enumerate(found):
            assert value in (self.model[first + i], data[i])
        return bytes(found)


def play(
    shape: Shape, folder: Path, seed: int, operations: int, checks: int, cache: dict[str, Any] | None = None
) -> int:
    """Run *operations* on a chain of *shape*, verified by qemu-img *checks* times. Returns the operations done."""
    game = Run(shape, folder, seed, cache)
    try:
        for part in range(checks):
            if part == 1:
                game.overlay()
            if part > 1 and part % 2:
                game.empty()
            for _ in range(operations // checks):
                game.step()
            game.verify()
    finally:
        game.close()
    run("qemu-img", "compare", game.path, game.path)
    for path in (game.base, game.top):
        path.unlink(missing_ok=True)
    return game.operations
