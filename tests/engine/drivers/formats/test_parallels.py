"""parallels images: what is written is read again, by us and by the real tools; broken ones are refused or repaired."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.format import parallels
from engine.errors import GenericError
from engine.graph.node import Node
from engine.graph.opening import open_node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
CLUSTER = 65536
IN_USE = struct.pack("<I", parallels.IN_USE)


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="parallels", node_name="p", file={"driver": "file", "filename": str(path)}, **options)


def driver_of(node: Node) -> parallels.ParallelsDriver:
    assert isinstance(node.driver, parallels.ParallelsDriver)
    return node.driver


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backed", [False, True])
def test_random_operations(tmp_path: Path, seed: int, backed: bool) -> None:
    size = 2 * MIB + 512 * seed
    content = bytes(size)
    options: dict[str, Any] = {}
    if backed:
        base = b"base" * (MIB // 4)
        (tmp_path / "base.raw").write_bytes(base)
        content = base + bytes(size - len(base))
        below = {"driver": "file", "filename": str(tmp_path / "base.raw")}
        options = {"backing": {"driver": "raw", "file": below}}
    benches = [Bench(tmp_path)]
    path = make(benches[0], tmp_path / "a.hdd", "parallels", size, cluster_size=CLUSTER)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path, **options)

    run = Run(reopen, content, CLUSTER, seed)
    run.play(100)
    benches[0].graph.close()
    if shutil.which("qemu-img") is not None:
        subprocess.run(["qemu-img", "check", "-f", "parallels", path], check=True, timeout=30)
        if not backed:
            command = ["qemu-img", "convert", "-f", "parallels", "-O", "raw", str(path), str(tmp_path / "out")]
            subprocess.run(command, check=True, timeout=30)
            assert (tmp_path / "out").read_bytes() == run.model


def test_the_header_says_in_use_while_the_image_can_be_written(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", MIB)
    node = opened(bench, path)
    assert path.read_bytes()[44:48] == IN_USE
    node.write(0, memoryview(b"x" * 512))
    assert path.stat().st_size > 100 * MIB
    node.flush()
    crashed = path.read_bytes()
    bench.graph.close()
    assert path.read_bytes()[44:48] == bytes(4)
    assert path.stat().st_size == 2 * MIB

    path.write_bytes(crashed)
    bench = Bench(tmp_path)
    with pytest.raises(GenericError, match="Image was not closed correctly; cannot be opened read/write"):
        opened(bench, path)
    options = {"driver": "parallels", "file": {"driver": "file", "filename": str(path)}}
    node = open_node(bench.graph, options, for_check=True)
    result = driver_of(node).check(frozenset({"errors", "leaks"}))
    assert (result.corruptions_fixed, result.leaks_fixed) == (1, 128)
    bench.graph.unpin(node)
    assert path.stat().st_size == 2 * MIB
    node = opened(bench, path)
    assert get(node, 0, 513) == b"x" * 512 + b"\0"


def test_what_lies_after_the_clusters_does_not_show(bench: Bench, tmp_path: Path) -> None:
    for mode in ("falloc", "truncate"):
        path = make(bench, tmp_path / f"{mode}.hdd", "parallels", 4 * MIB)
        put(path, MIB, b"old" * MIB)
        options = {"driver": "parallels", "prealloc-mode": mode, "file": {"driver": "file", "filename": str(path)}}
        node = open_node(bench.graph, options)
        node.write(512, memoryview(b"new" * 512))
        assert get(node, 0, MIB) == bytes(512) + b"new" * 512 + bytes(MIB - 2048)
        bench.graph.unpin(node)


def test_what_a_failed_write_left_behind_does_not_show(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", 4 * MIB)
    node = opened(bench, path)
    file = driver_of(node).file.child.driver
    write = file.write

    def half(offset: int, data: memoryview, flags: int = 0) -> None:
        write(offset, data[:1024], flags)
        raise OSError(28, "No space left on device")

    file.write = half  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        node.write(0, memoryview(b"x" * 4096))
    file.write = write  # type: ignore[method-assign]
    node.write(2 * MIB + 4096, memoryview(b"y" * 512))
    assert get(node, 0, 4096) == bytes(4096)
    assert get(node, 2 * MIB, 4096) == bytes(4096)


def test_entries_reach_the_file_after_their_data(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", 2 * MIB)
    node = opened(bench, path)
    node.write(MIB, memoryview(b"x" * 512))
    assert not any(path.read_bytes()[64:512])
    node.flush()
    assert path.read_bytes()[64:72] == struct.pack("<2I", 0, 1)


def test_threads_that_write_one_new_cluster_lose_nothing(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", 4 * MIB)
    node = opened(bench, path)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for at in range(number * 4096, 4 * MIB, 8 * 4096):
            node.write(at, memoryview(bytes([number + 1]) * 4096))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get(node, 0, 4 * MIB) == b"".join(bytes([number + 1]) * 4096 for number in range(8)) * 128


def test_a_disk_longer_than_its_table_reads_as_zeros_and_refuses_writes(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", 2 * MIB)
    put(path, 36, struct.pack("<Q", 4 * MIB // 512))
    node = opened(bench, path)
    assert get(node, MIB, 3 * MIB) == bytes(3 * MIB)
    node.write(2 * MIB - 512, memoryview(b"x" * 512))
    with pytest.raises(OSError, match="Invalid argument"):
        node.write(2 * MIB, memoryview(b"x" * 512))


@pytest.mark.parametrize(
    ("at", "data", "text"),
    [
        # QEMU takes these: the first makes its daemon allocate 2 GiB, the second can't be asked for its length then.
        (32, struct.pack("<I", parallels.MAX_ENTRIES), "The catalog is not within the file"),
        (36, struct.pack("<Q", 1 << 60), "Could not refresh total sector count: File too large"),
    ],
)
def test_impossible_sizes_are_refused(bench: Bench, tmp_path: Path, at: int, data: bytes, text: str) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", MIB)
    put(path, at, data)
    with pytest.raises(GenericError, match=text):
        opened(bench, path)


def with_extension(path: Path, granularity: int) -> None:
    """Add an extension with one bitmap to an image of 1 MiB clusters. QEMU 7.2 dies of granularities like 3 sectors."""
    bitmap = struct.pack("<Q16sIIQ", MIB // 512, bytes(16), granularity, 1, 1)
    body = (struct.pack("<QQII", 0x20385FAE252CB34A, 0, len(bitmap), 0) + bitmap).ljust(MIB - 24, b"\0")
    header = struct.pack("<Q", 0xAB234CEF23DCEA87) + hashlib.md5(body, usedforsecurity=False).digest()
    put(path, 56, struct.pack("<Q", path.stat().st_size // 512))
    with open(path, "ab") as file:
        file.write(header + body)


@pytest.mark.parametrize("granularity", [0, 3, 1 << 31])
def test_impossible_granularities_of_bitmaps_are_refused(bench: Bench, tmp_path: Path, granularity: int) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", MIB)
    with_extension(path, granularity)
    with pytest.raises(GenericError, match="is not a power of two"):
        opened(bench, path, read_only=True)


def test_an_extension_past_the_end_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.hdd", "parallels", MIB)
    put(path, 56, struct.pack("<Q", 1 << 60))
    with pytest.raises(GenericError, match="The format extension is not within the file"):
        opened(bench, path, read_only=True)


def test_no_image_is_made_that_could_not_be_opened(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(GenericError, match="Image size is too large for this cluster size"):
        make(bench, tmp_path / "a.hdd", "parallels", 1 << 50)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 71), st.binary(min_size=1, max_size=8))
def test_broken_headers_open_or_fail_cleanly(tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("header")
    bench = Bench(folder)
    path = make(bench, folder / "a.hdd", "parallels", 2 * MIB)
    put(path, at, data)
    try:
        node = opened(bench, path, read_only=True)
    except GenericError:
        return
    get(node, 0, min(node.length, 2 * MIB))
    driver_of(node).check()
    bench.graph.close()
