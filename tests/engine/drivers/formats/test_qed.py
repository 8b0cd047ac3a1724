"""QED images: what is written is read again, by us and by the real tools; broken ones are refused or repaired."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.format.qed import QedDriver
from engine.drivers.format.qed import image as qed_image
from engine.errors import GenericError
from engine.graph.drain import drained
from engine.graph.node import Node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
CLUSTER = 4096


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="qed", node_name="q", file={"driver": "file", "filename": str(path)}, **options)


def flags(path: Path) -> int:
    with open(path, "rb") as file:
        return struct.unpack_from("<Q", file.read(64), 16)[0]  # type: ignore[no-any-return]


def driver_of(node: Node) -> QedDriver:
    assert isinstance(node.driver, QedDriver)
    return node.driver


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backed", [False, True])
def test_random_operations(tmp_path: Path, seed: int, backed: bool) -> None:
    size = 2 * MIB + 512 * seed
    content = bytes(size)
    options: dict[str, Any] = {}
    if backed:
        base = b"base" * (MIB // 4)
        (tmp_path / "base.raw").write_bytes(base)
        content = base + bytes(size - len(base))
        options = {"backing_file": str(tmp_path / "base.raw"), "backing_fmt": "raw"}
    benches = [Bench(tmp_path)]
    # Tables of two clusters: an L2 table maps 4 MiB, but with a cluster of 4096 bytes the file stays small.
    path = make(benches[0], tmp_path / "a.qed", "qed", size, cluster_size=CLUSTER, table_size=2, **options)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Run(reopen, content, CLUSTER, seed)
    run.play(250)
    benches[0].graph.close()
    assert not flags(path) & 2
    if shutil.which("qemu-img") is not None:
        done = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, check=True, timeout=30)
        assert "leaks" not in json.loads(done.stdout)
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, tmp_path / "out"], check=True, timeout=30)
        assert (tmp_path / "out").read_bytes() == run.model


def test_many_l2_tables(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.qed", "qed", 64 * MIB, cluster_size=CLUSTER, table_size=2)
    node = opened(bench, path)
    for at in range(0, 64 * MIB, 3 * MIB):
        node.write(at, memoryview(bytes([at // MIB + 1]) * 8192))
    across = b"x" * (9 * MIB)
    node.write(20 * MIB + 100, memoryview(across))
    assert get(node, 20 * MIB + 100, len(across)) == across
    assert get(node, 60 * MIB, 8193) == bytes([61]) * 8192 + b"\0"
    assert driver_of(node).check().corruptions == 0
    assert driver_of(node).check().leaks == 0


def test_a_write_across_two_pages_of_a_table(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qed", "qed", 1 << 30))
    node.write(0, memoryview(b"a" * 512))
    middle = 512 * MIB
    # Both pages of the L2 table are known before the write.
    assert get(node, middle - 512, 1024) == bytes(1024)
    node.write(middle - MIB, memoryview(b"x" * 2 * MIB))
    assert get(node, middle, 512) == b"x" * 512
    assert get(node, middle - MIB - 512, 2 * MIB + 1024) == bytes(512) + b"x" * 2 * MIB + bytes(512)


def test_concurrent_writers_keep_their_data(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qed", "qed", 8 * MIB, cluster_size=CLUSTER, table_size=2))

    def write(number: int) -> None:
        for at in range(number * 1024, 8 * MIB, 64 << 10):
            node.write(at, memoryview(bytes([number + 1]) * 1024))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for at in range(0, 8 * MIB, 64 << 10):
        assert get(node, at, 4096) == b"".join(bytes([number + 1]) * 1024 for number in range(4))
    result = driver_of(node).check()
    assert (result.corruptions, result.leaks) == (0, 0)


def test_the_mark_comes_with_the_first_allocation_and_goes_with_a_drain(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.qed", "qed", MIB)
    node = opened(bench, path)
    assert flags(path) == 0
    node.write(0, memoryview(b"x" * 512))
    info = node.driver.info()
    assert flags(path) == 2
    assert info is not None
    assert info.is_dirty
    with drained([node]):
        assert flags(path) == 0


def test_the_mark_goes_by_itself(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qed_image, "CHECK_DELAY", 0.05)
    path = make(bench, tmp_path / "a.qed", "qed", MIB)
    node = opened(bench, path)
    node.write(0, memoryview(b"x" * 512))
    for thread in threading.enumerate():
        if thread.name == "qed-need-check":
            thread.join(10)
    assert flags(path) == 0


def test_no_mark_with_a_backing_file(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    path = make(bench, tmp_path / "a.qed", "qed", MIB, backing_file=str(tmp_path / "base.raw"), backing_fmt="raw")
    node = opened(bench, path)
    node.write(0, memoryview(b"x" * 512))
    assert flags(path) == 1 | 4
    assert get(node, 511, 2) == b"xb"


def test_a_marked_image_is_repaired_when_it_is_opened_for_writing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = make(bench, tmp_path / "a.qed", "qed", MIB, cluster_size=CLUSTER, table_size=2)
    node = opened(bench, path)
    node.write(0, memoryview(b"x" * 8192))
    bench.graph.close()
    raw = bytearray(path.read_bytes())
    l2 = int.from_bytes(raw[CLUSTER : CLUSTER + 8], "little")
    raw[16] |= 2
    raw[l2 : l2 + 8] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(raw)
    bench = Bench(tmp_path)
    node = opened(bench, path, read_only=True)
    with pytest.raises(OSError, match="Invalid argument"):
        get(node, 0, 512)
    assert flags(path) == 2
    assert driver_of(node).check().corruptions == 1
    bench.graph.close()
    bench = Bench(tmp_path)
    node = opened(bench, path)
    assert get(node, 0, 8192) == bytes(4096) + b"x" * 4096
    assert flags(path) == 0
    assert driver_of(node).check().leaks == 1
    bench.graph.close()


def test_resizing(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.qed", "qed", MIB))
    node.truncate(3 * MIB)
    node.write(3 * MIB - 512, memoryview(b"e" * 512))
    assert node.length == 3 * MIB
    with pytest.raises(GenericError, match="Shrinking images is currently not supported"):
        node.truncate(MIB)
    with pytest.raises(GenericError, match="Invalid image size specified"):
        node.truncate(4 * MIB + 1)
    assert node.length == 3 * MIB


def test_the_backing_string_is_changed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    path = make(bench, tmp_path / "a.qed", "qed", MIB)
    node = opened(bench, path)
    node.driver.change_backing_string("base.raw", "raw")
    bench.graph.close()
    again = Bench(tmp_path)
    node = opened(again, path)
    assert node.auto_backing_file == "base.raw"
    assert get(node, 0, 512) == b"b" * 512
    with pytest.raises(OSError, match="No space left"):
        node.driver.change_backing_string("x" * 65536, None)
    again.graph.close()


HEADERS = {
    "magic": (0, b"QFD\0", "Image not in QED format"),
    "cluster size": (4, struct.pack("<I", 65537), "QED cluster size is invalid"),
    "small cluster": (4, struct.pack("<I", 2048), "QED cluster size is invalid"),
    "table size": (8, struct.pack("<I", 3), "QED table size is invalid"),
    "single cluster": (8, struct.pack("<I", 1), "QED table offset is invalid"),
    "header size": (12, struct.pack("<I", 1 << 17), "QED table offset is invalid"),
    "feature": (16, struct.pack("<Q", 0x18), "Unsupported QED features: 18"),
    "table offset": (40, struct.pack("<Q", 1 << 60), "QED table offset is invalid"),
    "overflowing offset": (40, struct.pack("<Q", (1 << 64) - 65536), "QED table offset is invalid"),
    "length": (48, struct.pack("<Q", 1000), "QED image size is invalid"),
    "too long": (48, struct.pack("<Q", 1 << 62), "QED image size is invalid"),
    "name": (16, struct.pack("<6Q", 1, 0, 0, 65536, MIB, 70000), "QED backing filename offset is invalid"),
    "long name": (16, struct.pack("<5Q2I", 1, 0, 0, 65536, MIB, 64, 5000), "Failed to read backing filename: Invalid"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header_is_refused(bench: Bench, tmp_path: Path, case: str) -> None:
    path = make(bench, tmp_path / "a.qed", "qed", MIB)
    at, change, text = HEADERS[case]
    raw = bytearray(path.read_bytes())
    raw[at : at + len(change)] = change
    path.write_bytes(raw)
    with pytest.raises(GenericError, match=text):
        opened(bench, path)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_random_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    bench = Bench(folder)
    path = make(bench, folder / "a.qed", "qed", MIB, cluster_size=CLUSTER, table_size=2)
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cluster_size": 1000}, "within range \\[4096, 67108864\\]"),
        ({"table_size": 3}, "within range \\[1, 16\\]"),
        ({"size": 1000}, "QED image size must be a non-zero multiple"),
        ({"size": 1 << 50}, "less than 70368744177664 bytes"),
    ],
)
def test_options_that_make_no_image(bench: Bench, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(GenericError, match=text):
        make(bench, tmp_path / "a.qed", "qed", **({"size": MIB} | options))
