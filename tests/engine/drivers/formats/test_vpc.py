"""vpc images: what is written is read again, by us and by the real tools; broken ones are refused."""

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

from engine.errors import GenericError
from engine.graph.node import Node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
BLOCK = 2 * MIB
FIRST = 2048
"""Where the first block of a small image begins, with its bitmap."""


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="vpc", node_name="v", file={"driver": "file", "filename": str(path)}, **options)


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def table(path: Path, entries: int) -> tuple[int, ...]:
    return struct.unpack_from(f">{entries}I", path.read_bytes(), 1536)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_random_operations(tmp_path: Path, seed: int, subformat: str) -> None:
    size = 9 * MIB + 512 * seed
    benches = [Bench(tmp_path)]
    path = make(benches[0], tmp_path / "a.vpc", "vpc", size, subformat=subformat, force_size=True)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Run(reopen, bytes(size), 65536, seed)
    run.play(100)
    benches[0].graph.close()
    if shutil.which("qemu-img") is not None:
        subprocess.run(
            ["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, tmp_path / "out"], check=True, timeout=30
        )
        assert (tmp_path / "out").read_bytes() == run.model


def test_a_block_has_its_bitmap_and_the_footer_moves(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", 6 * MIB, force_size=True)
    footer = path.read_bytes()[:512]
    node = opened(bench, path)
    node.write(4 * MIB + 10, memoryview(b"two"))
    node.flush()
    content = path.read_bytes()
    assert len(content) == FIRST + 512 + BLOCK + 512
    assert content[FIRST : FIRST + 512] == b"\xff" * 512
    assert content[FIRST + 512 : FIRST + 512 + 15] == bytes(10) + b"two" + bytes(2)
    assert content[-512:] == footer
    assert table(path, 3) == (0xFFFFFFFF, 0xFFFFFFFF, FIRST // 512)


def test_the_bitmap_of_an_older_block_is_filled_before_the_first_write(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", 2 * MIB, force_size=True)
    node = opened(bench, path)
    node.write(0, memoryview(b"x"))
    bench.graph.close()
    put(path, FIRST, bytes(512))
    bench = Bench(tmp_path)
    node = opened(bench, path)
    # Reading goes by the table alone.
    assert get(node, 0, 2) == b"x\0"
    assert path.read_bytes()[FIRST : FIRST + 512] == bytes(512)
    node.write(MIB, memoryview(b"y"))
    assert path.read_bytes()[FIRST : FIRST + 512] == b"\xff" * 512


def test_what_a_cut_left_behind_does_not_show(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", 4 * MIB, force_size=True)
    node = opened(bench, path)
    node.write(0, memoryview(b"old" * 1000))
    # The power goes: the table still tells of nothing.
    assert table(path, 2) == (0xFFFFFFFF, 0xFFFFFFFF)
    content = path.read_bytes()
    bench.graph.close()
    path.write_bytes(content)
    bench = Bench(tmp_path)
    node = opened(bench, path)
    assert get(node, 0, 10) == bytes(10)
    node.write(2 * MIB, memoryview(b"new"))
    assert get(node, 2 * MIB, 3000) == b"new" + bytes(2997)
    bench.graph.close()
    if shutil.which("qemu-img") is not None:
        subprocess.run(["qemu-img", "info", "-f", "vpc", path], check=True, timeout=30)


def test_threads_that_write_one_new_block_lose_nothing(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", 4 * MIB, force_size=True)
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
    assert path.stat().st_size == FIRST + 2 * (512 + BLOCK) + 512


def test_the_footer_of_a_fixed_image_is_not_written_over(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", MIB, subformat="fixed", force_size=True)
    content = bytearray(path.read_bytes())
    footer = content[MIB:]
    footer[48:56] = struct.pack(">Q", 2 * MIB)
    footer[64:68] = bytes(4)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    path.write_bytes(content[:MIB] + footer)
    node = opened(bench, path)
    assert node.length == 2 * MIB
    node.write(MIB - 4, memoryview(b"last"))
    with pytest.raises(OSError, match="Input/output error"):
        node.write(MIB - 4, memoryview(b"too far"))
    assert path.read_bytes()[MIB:] == footer


def test_a_table_larger_than_the_file_takes_no_memory(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vpc", "vpc", MIB, force_size=True)
    put(path, 512 + 28, struct.pack(">I", (1 << 29) - 1))
    with pytest.raises(GenericError, match="The image has been truncated"):
        opened(bench, path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1534), st.binary(min_size=1, max_size=8))
def test_broken_headers_open_or_fail_cleanly(tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("header")
    bench = Bench(folder)
    path = make(bench, folder / "a.vpc", "vpc", 2 * MIB, force_size=True)
    put(path, at, data)
    head = bytearray(path.read_bytes()[:512])
    head[64:68] = bytes(4)
    put(path, 64, struct.pack(">I", ~sum(head) & 0xFFFFFFFF))
    try:
        node = opened(bench, path)
    except GenericError:
        return
    get(node, 0, min(node.length, 2 * MIB))
    node.write(0, memoryview(b"x") if node.length else memoryview(b""))
    bench.graph.close()
