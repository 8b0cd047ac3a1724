"""VHDX images: what is written is read again, by us and by the real tools; logs are replayed, broken ones refused."""

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

from engine.drivers.format.vhdx import VhdxDriver, layout
from engine.drivers.format.vhdx.crc32c import crc32c, sealed
from engine.errors import GenericError
from engine.graph.node import Node
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
GUID = bytes(range(1, 17))


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="vhdx", node_name="n", file={"driver": "file", "filename": str(path)}, **options)


def driver_of(node: Node) -> VhdxDriver:
    assert isinstance(node.driver, VhdxDriver)
    return node.driver


def qemu_content(path: Path) -> bytes:
    """What the real qemu-img reads; it also checks the image."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", path], check=True, timeout=30)
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, f"{path}.raw"], check=True, timeout=30)
    return Path(f"{path}.raw").read_bytes()


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fmt", ["dynamic", "fixed", "not present"])
def test_random_operations(tmp_path: Path, seed: int, fmt: str) -> None:
    size = 5 * MIB + 512 * seed
    benches = [Bench(tmp_path)]
    options: dict[str, Any] = {"block_size": MIB, "subformat": "fixed" if fmt == "fixed" else "dynamic"}
    if fmt == "not present":
        options["block_state_zero"] = False
    path = make(benches[0], tmp_path / "a.vhdx", "vhdx", size, **options)

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Run(reopen, bytes(size), 65536, seed)
    run.play(80)
    assert driver_of(run.node).check().corruptions == 0
    benches[0].graph.close()
    if shutil.which("qemu-img") is not None:
        assert qemu_content(path) == run.model


def test_sector_bitmaps_are_left_out_of_the_table(bench: Bench, tmp_path: Path) -> None:
    # With blocks of 256 MiB, every 17th entry belongs to a bitmap.
    path = make(bench, tmp_path / "a.vhdx", "vhdx", 9 << 30, block_size=256 * MIB)
    node = opened(bench, path)
    for block in (15, 16, 17, 35):
        node.write(block * 256 * MIB, memoryview(bytes([block]) * 512))
    for block in (15, 16, 17, 35):
        assert get(node, block * 256 * MIB, 513) == bytes([block]) * 512 + b"\0"
    with open(path, "rb") as file:
        file.seek(2 * MIB)
        entries = struct.unpack("<40Q", file.read(40 * 8))
    assert [i for i, entry in enumerate(entries) if entry & 7 == 6] == [15, 17, 18, 37]


def test_concurrent_writers_keep_their_data(bench: Bench, tmp_path: Path) -> None:
    node = opened(bench, make(bench, tmp_path / "a.vhdx", "vhdx", 16 * MIB, block_size=MIB))

    def write(number: int) -> None:
        for at in range(number * 1024, 16 * MIB, 128 << 10):
            node.write(at, memoryview(bytes([number + 1]) * 1024))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for at in range(0, 16 * MIB, 128 << 10):
        assert get(node, at, 4096) == b"".join(bytes([number + 1]) * 1024 for number in range(4))


def with_log(path: Path, entries: list[bytes], guid: bytes = GUID) -> Path:
    """Put entries into the log, and name it in the newest header."""
    raw = bytearray(path.read_bytes())
    head = bytearray(raw[layout.HEADERS[1] : layout.HEADERS[1] + 4096])
    head[8:16] = (1000).to_bytes(8, "little")
    head[48:64] = guid
    raw[layout.HEADERS[1] : layout.HEADERS[1] + 4096] = sealed(head)
    at = MIB
    for entry in entries:
        raw[at : at + len(entry)] = entry
        at += len(entry)
    path.write_bytes(raw)
    return path


def log_entry(
    sequence: int, offset: int, data: bytes, *, zeros: tuple[int, int] | None = None, tail: int = 0, size: int = 0
) -> bytes:
    """An entry that writes one sector, and zeros."""
    descriptors = struct.pack("<4s4sQQQ", b"desc", data[-4:], int.from_bytes(data[:8], "little"), offset, sequence)
    if zeros is not None:
        descriptors += struct.pack("<4sIQQQ", b"zero", 0, zeros[1], zeros[0], sequence)
    count = len(descriptors) // 32
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, 8192, tail, sequence, count, 0, GUID, size, size)
    sector = struct.pack("<4sI", b"data", sequence >> 32) + data[8:-4] + struct.pack("<I", sequence & 0xFFFFFFFF)
    return sealed((head + descriptors).ljust(4096, b"\0") + sector)


SECTOR = bytes(range(256)) * 16


@pytest.fixture
def logged(bench: Bench, tmp_path: Path) -> Path:
    """An image with two blocks of data, and a log that changes them: zeros, then data; the entry after it is old."""
    path = make(bench, tmp_path / "a.vhdx", "vhdx", 4 * MIB, block_size=MIB)
    node = opened(bench, path)
    node.write(0, memoryview(b"x" * 2 * MIB))
    bench.graph.close()
    size = path.stat().st_size
    return with_log(
        path,
        [
            log_entry(7, 9 * MIB, SECTOR, size=size),
            log_entry(8, 8 * MIB + 8192, SECTOR, zeros=(8 * MIB, 8192), size=size),
            log_entry(6, 8 * MIB, b"old!" * 1024, tail=16384, size=size),
        ],
    )


REPLAYED = bytes(8192) + SECTOR + b"x" * (MIB - 12288) + SECTOR + b"x" * (MIB - 4096) + bytes(2 * MIB)


def test_a_log_is_replayed(tmp_path: Path, logged: Path) -> None:
    if shutil.which("qemu-img") is not None:
        shutil.copy(logged, tmp_path / "b.vhdx")
        subprocess.run(["qemu-img", "check", "-q", "-r", "all", tmp_path / "b.vhdx"], check=False, timeout=30)
        assert qemu_content(tmp_path / "b.vhdx") == REPLAYED
    bench = Bench(tmp_path)
    node = opened(bench, logged)
    assert get(node, 0, 4 * MIB) == REPLAYED
    assert driver_of(node).check().corruptions_fixed == 1
    bench.graph.close()
    bench = Bench(tmp_path)
    node = opened(bench, logged, read_only=True)
    assert get(node, 0, 4 * MIB) == REPLAYED
    bench.graph.close()


def test_a_log_is_not_replayed_read_only(tmp_path: Path, logged: Path) -> None:
    bench = Bench(tmp_path)
    before = logged.read_bytes()
    with pytest.raises(GenericError, match="opened read-only, but contains a log that needs to be replayed"):
        opened(bench, logged, read_only=True)
    assert logged.read_bytes() == before
    bench.graph.close()


def test_a_log_of_others_is_left_alone(tmp_path: Path, logged: Path) -> None:
    with_log(logged, [], guid=bytes(reversed(GUID)))
    bench = Bench(tmp_path)
    assert get(opened(bench, logged), 0, MIB) == b"x" * MIB
    bench.graph.close()


def test_a_damaged_entry_ends_the_log(tmp_path: Path, logged: Path) -> None:
    raw = bytearray(logged.read_bytes())
    raw[MIB + 8192 + 5000] ^= 1
    logged.write_bytes(raw)
    bench = Bench(tmp_path)
    node = opened(bench, logged)
    assert get(node, 0, 2 * MIB) == b"x" * MIB + SECTOR + b"x" * (MIB - 4096)
    bench.graph.close()


def header_patch(at: int, value: bytes) -> list[tuple[int, bytes]]:
    return [(place + at, value) for place in layout.HEADERS]


BROKEN: dict[str, tuple[list[tuple[int, bytes]], str]] = {
    "signature": ([(0, b"x")], "Invalid argument"),
    "both headers": (header_patch(100, b"x"), "No valid VHDX header found"),
    "regions": ([(place + 40, b"x") for place in layout.REGION_TABLES], "Invalid argument"),
    "metadata": ([(3 * MIB, b"x")], "Invalid argument"),
    "block size": ([(3 * MIB + 65536, struct.pack("<I", 3 * MIB))], "Invalid argument"),
    "block size 0": ([(3 * MIB + 65536, bytes(4))], "Invalid argument"),
    "parent": ([(3 * MIB + 65540, b"\2")], "Operation not supported"),
    "length": ([(3 * MIB + 65544, struct.pack("<Q", 1000))], "Invalid argument"),
    "long": ([(3 * MIB + 65544, struct.pack("<Q", 65 << 40))], "Invalid argument"),
    "table too short": ([(3 * MIB + 65544, struct.pack("<Q", 1 << 40))], "Invalid argument"),
    "sector": ([(3 * MIB + 65568, struct.pack("<I", 4096))], "Operation not supported"),
    "unknown metadata": ([(3 * MIB + 32, b"x")], "Operation not supported"),
    "block over the log": ([(2 * MIB, struct.pack("<Q", MIB | 6))], "overlaps with region"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused(bench: Bench, tmp_path: Path, case: str) -> None:
    path = make(bench, tmp_path / "a.vhdx", "vhdx", 4 * MIB, block_size=MIB)
    changes, text = BROKEN[case]
    raw = bytearray(path.read_bytes())
    for at, value in changes:
        raw[at : at + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises((GenericError, OSError), match=text):
        opened(bench, path)


def test_one_broken_header_or_region_table_does_not_matter(bench: Bench, tmp_path: Path) -> None:
    path = make(bench, tmp_path / "a.vhdx", "vhdx", 4 * MIB)
    raw = bytearray(path.read_bytes())
    raw[layout.HEADERS[0] + 20] ^= 1
    raw[layout.REGION_TABLES[0] + 20] ^= 1
    path.write_bytes(raw)
    node = opened(bench, path)
    node.write(0, memoryview(b"x" * 512))
    assert get(node, 0, 1024) == b"x" * 512 + bytes(512)


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from([2 * MIB, 3 * MIB, 3 * MIB + 65536]), st.integers(0, 200), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    )
)
def test_random_damage_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    bench = Bench(folder)
    path = make(bench, folder / "a.vhdx", "vhdx", 4 * MIB, block_size=MIB)
    with open(path, "r+b") as file:
        for base, at, value in changes:
            file.seek(base + at)
            file.write(bytes([value]))
    try:
        node = opened(bench, path, read_only=True)
        get(node, 0, 65536)
    except (GenericError, OSError):
        pass
    finally:
        bench.graph.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 65 << 40}, "Image size too large; max of 64TB"),
        ({"log_size": 1 << 32}, "Log size must be smaller than 4 GB"),
        ({"log_size": MIB + 1}, "Log size must be a multiple of 1 MB"),
        ({"block_size": MIB + 1}, "Block size must be a multiple of 1 MB"),
        ({"block_size": 3 * MIB}, "Block size must be a power of two"),
        ({"block_size": 512 * MIB}, "Block size must not exceed 268435456"),
    ],
)
def test_options_that_make_no_image(bench: Bench, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(GenericError, match=text):
        make(bench, tmp_path / "a.vhdx", "vhdx", **({"size": MIB} | options))
