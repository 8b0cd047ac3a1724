"""A cut at any moment: what was flushed before is there, and nothing is where it should not be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.protocol.file import FileDriver
from engine.graph.node import Node
from tests.engine.drivers.formats.model import get, make
from tests.graphs import Bench

MIB = 1 << 20
UNIT = 16 << 10
FORMATS: dict[str, dict[str, Any]] = {
    "qed": {"cluster_size": 4096, "table_size": 2},
    "qcow": {},
    "vhdx": {"block_size": MIB},
}


class Recorder:
    """Writes down what reaches the file; None stands for a flush."""

    def __init__(self, driver: FileDriver) -> None:
        self.steps: list[Callable[[bytearray], None] | None] = []
        write, truncate, flush = driver.write, driver.truncate, driver.flush

        def record_write(offset: int, data: memoryview, flags: int = 0) -> None:
            kept = bytes(data)
            self.steps.append(lambda disk: _put(disk, offset, kept))
            write(offset, data, flags)

        def record_truncate(length: int, **options: Any) -> None:
            self.steps.append(lambda disk: _resize(disk, length))
            truncate(length, **options)

        def record_flush() -> None:
            self.steps.append(None)
            flush()

        driver.write = record_write  # type: ignore[method-assign]
        driver.truncate = record_truncate  # type: ignore[method-assign]
        driver.flush = record_flush  # type: ignore[method-assign]


def _put(disk: bytearray, offset: int, data: bytes) -> None:
    disk.extend(bytes(max(offset + len(data) - len(disk), 0)))
    disk[offset : offset + len(data)] = data


def _resize(disk: bytearray, length: int) -> None:
    disk.extend(bytes(max(length - len(disk), 0)))
    del disk[length:]


def opened(bench: Bench, driver: str, path: Path) -> Node:
    return bench.add(driver=driver, node_name="n", file={"driver": "file", "filename": str(path)})


@pytest.mark.parametrize(
    ("driver", "backed"), [("qed", False), ("qed", True), ("qcow", False), ("qcow", True), ("vhdx", False)]
)
def test_a_cut_loses_nothing_that_was_flushed(tmp_path: Path, driver: str, backed: bool) -> None:
    pick = random.Random(5)
    options = FORMATS[driver]
    below = bytes(UNIT)
    if backed:
        below = b"b" * UNIT
        (tmp_path / "base.raw").write_bytes(below * (2 * MIB // UNIT))
        options = options | {"backing_file": str(tmp_path / "base.raw")}
        if driver == "qed":
            options["backing_fmt"] = "raw"
    bench = Bench(tmp_path)
    path = make(bench, tmp_path / "image", driver, 2 * MIB, **options)
    before = path.read_bytes()
    node = opened(bench, driver, path)
    assert node.file is not None
    assert isinstance(node.file.child.driver, FileDriver)
    recorder = Recorder(node.file.child.driver)
    places = pick.sample(range(2 * MIB // UNIT), 12)
    durable: list[tuple[int, int]] = []
    for number, place in enumerate(places):
        # Not aligned, so that the rest of the clusters has to come from somewhere.
        node.write(place * UNIT + 512, memoryview(bytes([number + 1]) * (UNIT - 1024)))
        if number % 3 == 2:
            node.flush()
            durable.append((len(recorder.steps), number + 1))
    steps = list(recorder.steps)
    bench.graph.close()
    for cut in range(len(steps)):
        disk = bytearray(before)
        last_flush = max((i for i in range(cut) if steps[i] is None), default=-1)
        for index, step in enumerate(steps[:cut]):
            if step is not None and (index < last_flush or pick.random() < 0.5):
                step(disk)
        path.write_bytes(disk)
        safe = max((count for end, count in durable if end <= cut), default=0)
        bench = Bench(tmp_path)
        node = opened(bench, driver, path)
        for number, place in enumerate(places):
            content = get(node, place * UNIT, UNIT)
            whole = below[:512] + bytes([number + 1]) * (UNIT - 1024) + below[:512]
            if number < safe:
                assert content == whole, (cut, number)
            else:
                # Parts of the old and of the new, but never another's data, nor nothing where there was something.
                assert set(content) <= set(whole) | {below[0]}, (cut, number)
        check = getattr(node.driver, "check", None)
        if check is not None:
            assert check().corruptions == 0
        bench.graph.close()
