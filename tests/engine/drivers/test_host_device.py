"""host_device on a loop device, where the machine gives us one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.graph.driver import WriteFlag
from engine.graph.opening import open_node
from tests.graphs import Bench

MIB = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    if os.geteuid() or shutil.which("losetup") is None:
        pytest.skip("a loop device needs root and losetup")
    image = tmp_path / "device.img"
    image.write_bytes(b"d" * (4 * MIB))
    made = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, timeout=30, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], timeout=30, check=False)


def test_reads_writes_and_zeroes(bench: Bench, device: str) -> None:
    node = bench.add(driver="host_device", node_name="d", filename=device, discard="unmap")
    assert node.length == 4 * MIB
    node.write(MIB, memoryview(b"w" * 4096))
    node.write_zeroes(2 * MIB, 65536, WriteFlag.MAY_UNMAP)
    node.discard(3 * MIB, 65536)
    node.flush()
    buffer = bytearray(8192)
    node.read(MIB, memoryview(buffer))
    assert bytes(buffer) == b"w" * 4096 + b"d" * 4096
    zeros = bytearray(b"?" * 65536)
    node.read(2 * MIB, memoryview(zeros))
    assert not any(zeros)


def test_a_device_does_not_grow(bench: Bench, device: str) -> None:
    node = bench.add(driver="host_device", node_name="d", filename=device)
    with pytest.raises(OSError, match="No space left on device"):
        node.write(4 * MIB - 512, memoryview(bytes(1024)))
    with pytest.raises(GenericError, match="Cannot resize device files"):
        node.truncate(8 * MIB)
    with pytest.raises(GenericError, match="Cannot grow device files"):
        node.truncate(8 * MIB, exact=False)
    node.truncate(MIB, exact=False)
    assert node.length == 4 * MIB


def test_a_device_is_known_by_its_path(bench: Bench, device: str) -> None:
    node = open_node(bench.graph, {"read-only": True}, filename=device)
    assert node.driver.name == "raw"
    assert node.file is not None
    assert node.file.child.driver.name == "host_device"
    bench.graph.unpin(node)
