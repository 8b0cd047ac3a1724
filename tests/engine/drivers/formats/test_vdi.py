"""vdi images: what is written is read again, by us and by the real tools; broken ones are refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.format import vdi
from engine.errors import GenericError
from engine.graph.node import Node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="vdi", node_name="v", file={"driver": "file", "filename": str(path)}, **options)


def driver_of(node: Node) -> vdi.VdiDriver:
    assert isinstance(node.driver, vdi.VdiDriver)
    return node.driver


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preallocation", ["off", "metadata"])
def test_random_operations(tmp_path: Path, seed: int, preallocation: str) -> None:
    size = 9 * MIB + 512 * seed
    benches = [Bench(tmp_path)]
    path = make(benches[0], tmp_path / "a.vdi", "vdi", size, preallocation=preallocation)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Run(reopen, bytes(size), 65536, seed)
    run.play(100)
    benches[0].graph.close()
    if shutil.which("qemu-img") is not None:
        subprocess.run(["qemu-img", "check", "-f", "vdi", path], check=True, timeout=30)
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, tmp_path / "out"], check=True, timeout=30)
        assert (tmp_path / "out").read_bytes() == run.model


def test_new_blocks_go_to_the_end_in_the_order_of_writing(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 8 * MIB)
    node = opened(bench, path)
    node.write(5 * MIB + 10, memoryview(b"five"))
    node.write(0, memoryview(b"\1" * 3 * MIB))
    assert path.stat().st_size == 1024 + 4 * MIB
    node.flush()
    assert struct.unpack_from("<8I", path.read_bytes(), 512) == (
        1,
        2,
        3,
        *[vdi.UNALLOCATED] * 2,
        0,
        *[vdi.UNALLOCATED] * 2,
    )
    first = node.block_status(0, 8 * MIB)
    assert (first.length, first.offset) == (3 * MIB, 1024 + MIB)
    assert get(node, 5 * MIB, 20) == bytes(10) + b"five" + bytes(6)


def test_entries_reach_the_file_after_their_data(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 2 * MIB)
    node = opened(bench, path)
    before = path.read_bytes()[:1024]
    node.write(0, memoryview(b"x"))
    assert path.read_bytes()[:1024] == before
    file = driver_of(node).file.child.driver
    steps: list[str] = []
    write, flush = file.write, file.flush

    def seen_write(offset: int, data: memoryview, flags: int = 0) -> None:
        steps.append(f"{offset}")
        write(offset, data, flags)

    def seen_flush() -> None:
        steps.append("flush")
        flush()

    file.write, file.flush = seen_write, seen_flush  # type: ignore[method-assign]
    node.flush()
    # The header, which counts the blocks, and the data; then the map.
    assert steps == ["0", "flush", "512", "flush"]
    steps.clear()
    node.flush()
    assert steps == []


def test_space_lost_in_a_cut_is_used_again_and_reads_as_zeros(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 2 * MIB)
    put(path, 0x184, struct.pack("<I", 1))  # as after a cut between header and map
    put(path, 1024, b"old" * 1000)
    node = opened(bench, path)
    node.write(MIB, memoryview(b"new"))
    assert get(node, MIB, 3000) == b"new" + bytes(2997)
    node.flush()
    assert driver_of(node).check().corruptions == 0
    assert path.stat().st_size == 1024 + MIB


def test_trimmed_blocks_read_as_zeros_and_can_be_written(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 2 * MIB)
    put(path, 512, struct.pack("<2I", vdi.DISCARDED, vdi.UNALLOCATED))
    node = opened(bench, path)
    assert get(node, 0, 2 * MIB) == bytes(2 * MIB)
    node.write(0, memoryview(b"x"))
    assert get(node, 0, 2) == b"x\0"


def test_threads_that_write_one_new_block_lose_nothing(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 4 * MIB)
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
    assert driver_of(node).check().corruptions == 0


def test_check_names_blocks_used_twice_or_not_there(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", 4 * MIB)
    put(path, 512, struct.pack("<4I", 0, 0, 7, vdi.UNALLOCATED))
    put(path, 0x184, struct.pack("<I", 3))
    node = opened(bench, path)
    result = driver_of(node).check()
    assert result.corruptions == 3
    assert result.messages == [
        "ERROR: block index 0 also used by 0",
        "ERROR: block index 2 out of range, is 7",
        "ERROR: allocated blocks mismatch, is 2, should be 3",
    ]
    with pytest.raises(OSError, match="not supported"):
        driver_of(node).check(frozenset({"errors"}))


def test_a_map_larger_than_the_file_takes_no_memory(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vdi", "vdi", MIB)
    put(path, 0x180, struct.pack("<I", vdi.MAX_BLOCKS))
    with pytest.raises(GenericError, match="the block map is not within the file"):
        opened(bench, path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 0x1C7), st.binary(min_size=1, max_size=8))
def test_broken_headers_open_or_fail_cleanly(tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("header")
    bench = Bench(folder)
    path = make(bench, folder / "a.vdi", "vdi", 2 * MIB)
    put(path, at, data)
    try:
        node = opened(bench, path)
    except GenericError:
        return
    get(node, 0, min(node.length, 2 * MIB))
    driver_of(node).check()
    bench.graph.close()
