"""qcow images of version 1: what is written is read again, by us and by the real tools; broken ones are refused."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.format.qcow import QcowDriver
from engine.errors import GenericError
from engine.graph.driver import WriteFlag
from engine.graph.node import Node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
CLUSTER = 4096


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="qcow", node_name="q", file={"driver": "file", "filename": str(path)}, **options)


class Packing(Run):
    """Now and then writes a cluster compressed."""

    def step(self) -> None:
        super().step()
        if self.random.random() < 0.15:
            at = self.random.randrange(len(self.model) // self.cluster) * self.cluster
            data = bytes(self.random.choices(b"ab", k=self.cluster))
            self.node.write(at, memoryview(data), int(WriteFlag.COMPRESSED))
            self.model[at : at + self.cluster] = data


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backed", [False, True])
def test_random_operations(tmp_path: Path, seed: int, backed: bool) -> None:
    size = MIB + 512 * seed
    content = bytes(size)
    options: dict[str, Any] = {}
    if backed:
        base = b"base" * (MIB // 8)
        (tmp_path / "base.raw").write_bytes(base)
        content = base + bytes(size - len(base))
        options = {"backing_file": str(tmp_path / "base.raw")}
    benches = [Bench(tmp_path)]
    path = make(benches[0], tmp_path / "a.qcow", "qcow", size, **options)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Packing(reopen, content, 512 if backed else CLUSTER, seed)
    run.play(250)
    benches[0].graph.close()
    if shutil.which("qemu-img") is not None:
        subprocess.run(
            ["qemu-img", "convert", "-f", "qcow", "-O", "raw", path, tmp_path / "out"], check=True, timeout=30
        )
        assert (tmp_path / "out").read_bytes() == run.model


def test_clusters_longer_than_a_sector_keep_the_backing_file_around_a_write(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    path = make(bench, tmp_path / "a.qcow", "qcow", MIB)
    node = bench.add(
        driver="qcow",
        node_name="q",
        file={"driver": "file", "filename": str(path)},
        backing={"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "base.raw")}},
    )
    node.write(5000, memoryview(b"x" * 10))
    assert get(node, 4096, 4096) == b"b" * 904 + b"x" * 10 + b"b" * 3182
    QcowDriver.make_empty(node.driver)  # type: ignore[arg-type]
    assert get(node, 0, MIB) == b"b" * MIB
    node.write(0, memoryview(b"y" * 4096))
    assert get(node, 0, 4097) == b"y" * 4096 + b"b"


def test_many_l2_tables(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qcow", "qcow", 64 * MIB))
    data = random.Random(1).randbytes(9 * MIB)
    node.write(20 * MIB + 100, memoryview(data))
    node.write(63 * MIB, memoryview(b"z" * 512))
    assert get(node, 20 * MIB + 100, len(data)) == data
    assert get(node, 63 * MIB - 512, 1536) == bytes(512) + b"z" * 512 + bytes(512)


def test_concurrent_writers_keep_their_data(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qcow", "qcow", 2 * MIB))

    def write(number: int) -> None:
        for at in range(number * 1024, 2 * MIB, 16 << 10):
            node.write(at, memoryview(bytes([number + 1]) * 1024))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for at in range(0, 2 * MIB, 16 << 10):
        assert get(node, at, 4096) == b"".join(bytes([number + 1]) * 1024 for number in range(4))


def test_parts_of_clusters_are_not_compressed(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qcow", "qcow", MIB + 512))
    for offset, length in ((0, 512), (0, 8192), (512, 4096)):
        with pytest.raises(OSError, match="Invalid argument"):
            node.write(offset, memoryview(b"x" * length), int(WriteFlag.COMPRESSED))
    node.write(MIB, memoryview(b"x" * 512), int(WriteFlag.COMPRESSED))
    assert get(node, MIB, 512) == b"x" * 512


def test_no_resizing(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qcow", "qcow", MIB))
    with pytest.raises(GenericError, match="Image format driver does not support resize"):
        node.truncate(2 * MIB)


HEADERS = {
    "magic": (0, b"QFJ\xfb", "Image not in qcow format"),
    "version 2": (4, struct.pack(">I", 2), "qcow \\(v1\\) does not support qcow version 2"),
    "length 1": (24, struct.pack(">Q", 1), "Image size is too small"),
    "small cluster": (32, b"\x08", "Cluster size must be between 512 and 64k"),
    "big cluster": (32, b"\x11", "Cluster size must be between 512 and 64k"),
    "small table": (33, b"\x05", "L2 table size must be between 512 and 64k"),
    "big table": (33, b"\x0e", "L2 table size must be between 512 and 64k"),
    "AES": (36, struct.pack(">I", 1), "Encrypted qcow images are not supported"),
    "encryption": (36, struct.pack(">I", 2), "invalid encryption method in qcow header"),
    "too long": (24, struct.pack(">Q", 1 << 60), "Image too large"),
    "far too long": (24, struct.pack(">Q", (1 << 64) - 1), "Image too large"),
    "name": (8, struct.pack(">QI", 48, 1024), "Backing file name too long"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header_is_refused(bench: Bench, tmp_path: Path, case: str) -> None:
    path = make(bench, tmp_path / "a.qcow", "qcow", MIB)
    at, change, text = HEADERS[case]
    raw = bytearray(path.read_bytes())
    raw[at : at + len(change)] = change
    path.write_bytes(raw)
    with pytest.raises(GenericError, match=text):
        opened(bench, path)


@pytest.mark.parametrize("entry", [1 << 63 | 17 << 51 | 48, (1 << 63) - 512, 513, (1 << 64) - 1])
def test_a_broken_cluster_is_an_error(bench: Bench, tmp_path: Path, entry: int) -> None:
    path = make(bench, tmp_path / "a.qcow", "qcow", MIB)
    raw = bytearray(path.read_bytes().ljust(8192, b"\0"))
    raw[48:56] = (4096).to_bytes(8, "big")
    raw[4096:4104] = entry.to_bytes(8, "big")
    path.write_bytes(raw)
    node = opened(bench, path)
    with pytest.raises(OSError, match="Input/output error"):
        get(node, 0, 512)
    assert get(node, 4096, 512) == bytes(512)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_random_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    bench = Bench(folder)
    path = make(bench, folder / "a.qcow", "qcow", MIB)
    raw = bytearray(path.read_bytes())
    for at, value in changes:
        raw[at] = value
    path.write_bytes(raw)
    try:
        node = opened(bench, path, backing=None, read_only=True)
        get(node, 0, 65536)
    except (GenericError, OSError):
        pass
    finally:
        bench.graph.close()


def test_options_that_make_no_image(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(GenericError, match="cannot be zero length"):
        make(bench, tmp_path / "a.qcow", "qcow", 0)
    with pytest.raises(GenericError, match="Unsupported encryption format"):
        make(bench, tmp_path / "a.qcow", "qcow", MIB, encrypt={"format": "luks"})
    with pytest.raises(GenericError, match="Encrypted qcow images are not supported"):
        make(bench, tmp_path / "a.qcow", "qcow", MIB, encrypt={"format": "qcow"})
    with pytest.raises(GenericError, match="Image too large"):
        make(bench, tmp_path / "a.qcow", "qcow", 1 << 60)
