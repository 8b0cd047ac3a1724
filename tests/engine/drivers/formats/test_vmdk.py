"""vmdk images of every layout: what is written is read again; broken ones are refused in bounded time and memory."""

from __future__ import annotations

import random
import shutil
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.format.vmdk import VmdkDriver, descriptor
from engine.errors import GenericError
from engine.graph.creation import GraphCreateContext
from engine.graph.node import Node
from engine.graph.options import BlockdevCreateOptions
from engine.graph.policy import OpenPolicy
from engine.qapi import from_wire
from tests.engine.drivers.formats.model import Run, get, make
from tests.graphs import Bench

MIB = 1 << 20
GRAIN = 65536
Z = "0x0000000000000000"
HEADER = struct.Struct("<4sIIQQQQIQQQ5sH")
"""magic, version, flags, capacity, grain, descriptor and its size, entries a table, redundant, directory, overhead."""


def opened(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="vmdk", node_name="n", file={"driver": "file", "filename": str(path)}, **options)


def driver_of(node: Node) -> VmdkDriver:
    assert isinstance(node.driver, VmdkDriver)
    return node.driver


def play(tmp_path: Path, path: Path, content: bytes, seed: int, bench: Bench, cluster: int = GRAIN) -> None:
    benches = [bench]

    def reopen() -> Node:
        benches.pop().graph.close()
        benches.append(Bench(tmp_path))
        return opened(benches[0], path)

    run = Run(reopen, content, cluster, seed)
    run.play(150)
    assert driver_of(run.node).check().corruptions == 0
    benches[0].graph.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("backed", [False, True])
def test_random_operations(tmp_path: Path, seed: int, zeroed: bool, backed: bool) -> None:
    size = 2 * MIB + 512 * seed
    content, bench = bytes(size), Bench(tmp_path)
    options: dict[str, Any] = {}
    if backed:
        base = make(bench, tmp_path / "base.vmdk", "vmdk", MIB)
        node = opened(bench, base)
        node.write(0, memoryview(b"base" * (MIB // 4)))
        content = b"base" * (MIB // 4) + bytes(size - MIB)
        bench.graph.close()
        bench = Bench(tmp_path)
        options["backing_file"] = str(base)
    path = make(bench, tmp_path / "a.vmdk", "vmdk", size, zeroed_grain=zeroed, **options)
    play(tmp_path, path, content, seed, bench)


def describe(path: Path, lines: list[str], kind: str = "vmfs", rest: str = "") -> Path:
    path.write_text(
        f'version=1\nCID=00001234\nparentCID=ffffffff\ncreateType="{kind}"\n{rest}' + "\n".join(lines) + "\n"
    )
    return path


def esx(path: Path, sectors: int, grain: int = 8) -> Path:
    """An empty COWD extent, without grain tables."""
    entries = -(-sectors // (grain * 4096))
    path.write_bytes((b"COWD" + struct.pack("<IIIIIII", 1, 3, sectors, grain, 4, entries, 5)).ljust(2560, b"\0"))
    return path


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_on_several_extents(tmp_path: Path, seed: int) -> None:
    bench = Bench(tmp_path)
    make(bench, tmp_path / "sparse", "vmdk", 300 * 512)
    make(bench, tmp_path / "zeroed", "vmdk", MIB, zeroed_grain=True)
    (tmp_path / "flat").write_bytes(bytes(1000 * 512))
    esx(tmp_path / "esx", 40_000)
    lines = ['RW 300 SPARSE "sparse"', 'RW 777 FLAT "flat" 100', 'RW 2048 SPARSE "zeroed"', 'RW 40000 VMFSSPARSE "esx"']
    path = describe(tmp_path / "d.vmdk", lines)
    play(tmp_path, path, bytes((300 + 777 + 2048 + 40_000) * 512), seed, bench, 4096)


def stream(path: Path, grains: dict[int, bytes], size: int, *, footer: bool = True) -> Path:
    """A streamOptimized image as VMware writes it: tables behind the grains, the directory's place in the footer."""
    out = bytearray(128 * 512)
    entries = [0] * 512
    for number, data in grains.items():
        entries[number] = len(out) // 512
        packed = zlib.compress(data)
        out += struct.pack("<QI", number * 128, len(packed)) + packed
        out += bytes(-len(out) % 512)
    out += struct.pack("<QII", 4, 0, 1).ljust(512, b"\0")
    table = len(out) // 512
    out += struct.pack("<512I", *entries)
    out += struct.pack("<QII", 1, 0, 2).ljust(512, b"\0")
    directory = len(out) // 512
    out += struct.pack("<I", table).ljust(512, b"\0")

    def head(where: int) -> bytes:
        return HEADER.pack(b"KDMV", 3, 0x30001, size // 512, 128, 1, 20, 512, 0, where, 128, b"\0\n \r\n", 1).ljust(
            512, b"\0"
        )

    out += struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + head(directory) + bytes(512)
    out[:512] = head(0xFFFFFFFFFFFFFFFF if footer else directory)
    out[512:1024] = b'# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType="streamOptimized"\n'.ljust(
        512, b"\0"
    )
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("footer", [False, True])
def test_stream_of_vmware_is_read(tmp_path: Path, footer: bool) -> None:
    grains = {0: b"a" * GRAIN, 3: random.Random(1).randbytes(GRAIN)}
    node = opened(Bench(tmp_path), stream(tmp_path / "s.vmdk", grains, MIB, footer=footer), read_only=True)
    assert get(node, 0, MIB) == b"a" * GRAIN + bytes(2 * GRAIN) + grains[3] + bytes(12 * GRAIN)
    assert get(node, 3 * GRAIN + 5, 100) == grains[3][5:105]
    assert [node.block_status(offset, MIB).length for offset in (0, GRAIN, 3 * GRAIN)] == [GRAIN, 2 * GRAIN, GRAIN]


@pytest.mark.parametrize(
    "data", [b"a" * (GRAIN + 1), b"a" * 100, b"a" * (100 * MIB)], ids=["a byte more", "too little", "a bomb"]
)
def test_grain_of_wrong_length_is_an_error(tmp_path: Path, data: bytes) -> None:
    node = opened(Bench(tmp_path), stream(tmp_path / "s.vmdk", {0: data}, MIB), read_only=True)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            get(node, 0, GRAIN)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_huge_directory_takes_no_memory_that_the_file_does_not_have(tmp_path: Path) -> None:
    # 32 Mi entries of tables that map 64 KiB each.
    head = HEADER.pack(b"KDMV", 1, 3, 1 << 32, 1, 1, 20, 128, 21, 22, 23, b"\0\n \r\n", 0).ljust(512, b"\0")
    text = b"CID=1\nparentCID=ffffffff\n".ljust(11 * 2048, b"\0")
    (tmp_path / "a.vmdk").write_bytes(head + text)
    tracemalloc.start()
    try:
        node = opened(Bench(tmp_path), tmp_path / "a.vmdk")
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
        assert get(node, 1 << 40, 5000) == bytes(5000)
        with pytest.raises(OSError, match="Input/output error"):
            node.write(1 << 40, memoryview(b"x"))
    finally:
        tracemalloc.stop()


def se_sparse(path: Path, entries: list[int], grains: bytes, *, sectors: int = 8192, **fields: int) -> Path:
    """An SE sparse extent with one grain table; fields: other values for words of the header (w6=1 and so on)."""
    words = [0] * 64
    words[0:5] = [0xCAFEBABE, 0x200000001, sectors, 8, 64]
    words[10], words[16], words[17], words[18], words[19], words[24] = 1, 2, 1, 3, 64, 67
    volatile = [0] * 64
    volatile[0] = 0xCAFECAFE
    for name, value in fields.items():
        (volatile if name[0] == "v" else words)[int(name[1:])] = value
    directory = [0x1000000000000000] + [0] * 63
    table = entries + [0] * (4096 - len(entries))
    parts = (struct.pack(f"<{len(part)}Q", *part) for part in (words, volatile, directory, table))
    path.write_bytes(b"".join(parts) + grains)
    return path


def test_se_sparse_is_read_and_never_written(tmp_path: Path) -> None:
    allocated, zero, unmapped = 0x3 << 60, 0x2 << 60, 0x1 << 60
    # The low 12 bits of a grain's number are in bits 48 to 59.
    entries = [allocated | 1 << 48, zero, 0, unmapped, allocated]
    se_sparse(tmp_path / "se", entries, b"0" * 4096 + b"1" * 4096)
    path = describe(tmp_path / "d.vmdk", ['RW 8192 SESPARSE "se"'], "seSparse")
    bench = Bench(tmp_path)
    with pytest.raises(GenericError, match="No write support for seSparse images available"):
        opened(bench, path)
    node = opened(bench, path, auto_read_only=True)
    assert node.read_only
    assert get(node, 0, 6 * 4096) == b"1" * 4096 + bytes(3 * 4096) + b"0" * 4096 + bytes(4096)
    assert len(get(node, 0, node.length)) == 8192 * 512


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"w0": 1}, "Bad const header magic: 0x0000000000000001"),
        ({"w1": 2}, "Unsupported version: 0x0000000000000002"),
        ({"w3": 16}, "Unsupported grain size: 16"),
        ({"w4": 1}, "Unsupported grain table size: 1"),
        ({"w5": 4}, "Unsupported flags: 0x0000000000000004"),
        ({"w7": 5}, f"Unsupported reserved bits: {Z} 0x0000000000000005 {Z} {Z}"),
        ({"w30": 1}, "Unsupported non-zero const header padding"),
        ({"v0": 1}, "Bad volatile header magic: 0x0000000000000001"),
        ({"v3": 1}, "Image is dirty, Replaying journal not supported"),
        ({"v9": 1}, "Unsupported non-zero volatile header padding"),
        ({"w17": 1 << 30}, "L1 size too big"),
    ],
)
def test_broken_se_sparse_is_refused(tmp_path: Path, fields: dict[str, int], text: str) -> None:
    se_sparse(tmp_path / "se", [], b"", **fields)
    path = describe(tmp_path / "d.vmdk", ['RW 8192 SESPARSE "se"'], "seSparse")
    with pytest.raises(GenericError, match=f"^{text}$"):
        opened(Bench(tmp_path), path, read_only=True)


def test_broken_se_sparse_entry_is_an_error_and_a_finding(tmp_path: Path) -> None:
    se_sparse(tmp_path / "se", [0, 0x4 << 60], b"")
    node = opened(Bench(tmp_path), describe(tmp_path / "d.vmdk", ['RW 8192 SESPARSE "se"'], "seSparse"), read_only=True)
    assert get(node, 0, 4096) == bytes(4096)
    with pytest.raises(OSError, match="Input/output error"):
        get(node, 4096, 1)
    found = driver_of(node).check()
    assert found.corruptions == 1
    assert found.messages == ["ERROR: could not get cluster_offset for sector 8"]


def test_descriptor_that_would_reach_into_the_tables_is_refused(tmp_path: Path) -> None:
    # QEMU 7.2 writes it over the grain directory.
    with pytest.raises(GenericError, match=r"^VMDK description file too big$"):
        make(Bench(tmp_path), tmp_path / "a.vmdk", "vmdk", MIB, hwversion="4" * 11_000)


def test_what_a_file_held_before_is_not_taken_for_tables(tmp_path: Path) -> None:
    bench, path = Bench(tmp_path), tmp_path / "a.vmdk"
    path.write_bytes(b"\1\0\0\0" * 75_000)  # sector 1
    wire = {"driver": "vmdk", "size": MIB, "file": {"driver": "file", "filename": str(path)}}
    VmdkDriver.create(
        from_wire(BlockdevCreateOptions, wire).branch, GraphCreateContext(bench.graph, lambda function: function())
    )
    assert get(opened(bench, path), 0, MIB) == bytes(MIB)


def test_policy_decides_on_extents(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(bytes(512))
    path = describe(tmp_path / "d.vmdk", ['RW 1 FLAT "flat" 0'])
    bench = Bench(tmp_path)
    bench.graph.policy = OpenPolicy(follow=False)
    with pytest.raises(GenericError, match=r"Not opening extents\.0 '.*/flat' named by image 'n'"):
        opened(bench, path)


def test_extent_that_is_a_descriptor_is_refused(tmp_path: Path) -> None:
    head = HEADER.pack(b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 0, b"\0\n \r\n", 0).ljust(512, b"\0")
    text = b'CID=1\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\nRW 8 SPARSE "self.vmdk"\n'
    (tmp_path / "self.vmdk").write_bytes(head + text)
    with pytest.raises(GenericError, match="is a descriptor itself"):
        opened(Bench(tmp_path), tmp_path / "self.vmdk", read_only=True)


def test_number_of_extents_is_limited(tmp_path: Path) -> None:
    lines = b'RW 1 FLAT "flat" 0\n' * (descriptor.MAX_EXTENTS + 1)
    with pytest.raises(GenericError, match="more than 4096 extents"):
        list(descriptor.extent_lines(lines))


def test_new_grains_are_seen_by_others_only_after_their_data_are_stable(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = make(bench, tmp_path / "a.vmdk", "vmdk", MIB)
    node = opened(bench, path)
    steps: list[str] = []
    assert node.file is not None
    below = node.file.child.driver
    plain_write, plain_flush = below.write, below.flush

    def write(offset: int, data: memoryview, flags: int = 0) -> None:
        steps.append("data" if offset >= GRAIN else "descriptor" if offset < 21 * 512 else "table")
        plain_write(offset, data, flags)

    def flush() -> None:
        steps.append("flush")
        plain_flush()

    below.write, below.flush = write, flush  # type: ignore[method-assign]
    node.write(100, memoryview(b"x" * 1000))
    assert steps == ["data", "data", "data", "descriptor", "flush"]
    # As after a cut of the power: the space is lost, nothing else.
    shutil.copy(path, tmp_path / "cut.vmdk")
    cut = Bench(tmp_path).add(
        driver="vmdk", node_name="c", file={"driver": "file", "filename": str(tmp_path / "cut.vmdk")}
    )
    assert get(cut, 0, MIB) == bytes(MIB)
    node.write(5000, memoryview(b"y" * 1000))
    steps.clear()
    node.flush()
    assert steps[:4] == ["flush", "table", "table", "flush"]
    shutil.copy(path, tmp_path / "whole.vmdk")
    whole = Bench(tmp_path).add(
        driver="vmdk", node_name="w", file={"driver": "file", "filename": str(tmp_path / "whole.vmdk")}
    )
    assert get(whole, 0, 6000) == bytes(100) + b"x" * 1000 + bytes(3900) + b"y" * 1000


def test_failed_write_leaves_the_table_and_the_next_one_works(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    node = opened(bench, make(bench, tmp_path / "a.vmdk", "vmdk", MIB))
    assert node.file is not None
    below = node.file.child.driver
    plain, left = below.write, [1]

    def write(offset: int, data: memoryview, flags: int = 0) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        plain(offset, data, flags)

    below.write = write  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        node.write(100, memoryview(b"x" * 100))
    assert get(node, 0, MIB) == bytes(MIB)
    left[0] = 1000
    node.write(100, memoryview(b"z" * 100))
    assert get(node, 0, 300) == bytes(100) + b"z" * 100 + bytes(100)
    # The first try's space was used again.
    assert node.file.length == 2 * GRAIN


def test_writers_of_the_same_grains_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    node = opened(bench, make(bench, tmp_path / "a.vmdk", "vmdk", 4 * MIB))

    def write(number: int) -> None:
        for at in range(number * 512, 4 * MIB, 8 * 4096):
            node.write(at, memoryview(bytes([number + 1]) * 512))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    line = b"".join(bytes([number + 1]) * 512 for number in range(4)) + bytes(8 * 4096 - 2048)
    assert get(node, 0, 4 * MIB) == line * (4 * MIB // len(line))
    assert node.file is not None
    assert node.file.length == GRAIN + 4 * MIB


def test_write_and_status_go_over_missing_tables(tmp_path: Path) -> None:
    size = 80 * MIB  # a table maps 16 MiB
    esx(tmp_path / "esx", size // 512)
    bench = Bench(tmp_path)
    node = opened(bench, describe(tmp_path / "d.vmdk", [f'RW {size // 512} VMFSSPARSE "esx"']))
    assert node.block_status(5000, size)[0] == size - 5000
    data = random.Random(1).randbytes(33 * MIB)
    node.write(31 * MIB + 5, memoryview(data))
    assert get(node, 30 * MIB, 36 * MIB) == bytes(MIB + 5) + data + bytes(2 * MIB - 5)
    assert node.block_status(0, size)[0] == 16 * MIB
    assert node.block_status(65 * MIB, size)[0] == 15 * MIB
    assert driver_of(node).check().corruptions == 0


def test_cid_changes_once_and_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(bytes(1024))
    path = describe(tmp_path / "d.vmdk", ['RW 2 FLAT "flat" 0'])
    before = path.read_bytes()
    bench = Bench(tmp_path)
    node = opened(bench, path)
    node.write(0, memoryview(b"x"))
    first = path.read_bytes()
    node.write(0, memoryview(b"y"))
    bench.graph.close()
    assert path.read_bytes() == first != before
    assert len(first) == len(before)
    assert descriptor.cid(first) != 0x1234
    assert first[:14] + first[22:] == before[:14] + before[22:]


def test_short_cid_is_replaced_by_a_long_one(tmp_path: Path) -> None:
    text = b"version=1\nCID=12\nparentCID=ffffffff\nrest"
    change = descriptor.change_cid(text, 0xAB)
    assert change is not None
    assert text[: change[0]] + change[1] == b"version=1\nCID=000000ab\nparentCID=ffffffff\nrest"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_damaged_images_are_refused_or_read(patches: list[tuple[int, bytes]]) -> None:
    _fuzz(_template(), patches)


def _fuzz(data: bytes, patches: list[tuple[int, bytes]]) -> None:
    import tempfile

    image = bytearray(data)
    for at, new in patches:
        image[at : at + len(new)] = new
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.vmdk"
        path.write_bytes(image)
        bench = Bench(Path(folder))
        try:
            node = opened(bench, path, read_only=True)
        except GenericError:
            return
        for offset in (0, node.length // 2, max(node.length - 4096, 0)):
            try:
                node.block_status(offset, 1 << 30)
                get(node, offset, 4096)
            except OSError:
                pass
        bench.graph.close()


_made: list[bytes] = []


def _template() -> bytes:
    if not _made:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = stream(Path(folder) / "s", {0: b"a" * GRAIN}, MIB)
            _made.append(path.read_bytes())
    return _made[0]


@pytest.mark.parametrize(
    ("head", "score"),
    [
        (b"KDMV", 100),
        (b"COWD", 100),
        (b"# Disk DescriptorFile\nversion=1\n", 100),
        (b"# x\r\n  \r\n # no", 0),
        (b"#a\n   \nversion=3\r\n", 100),
        (b"version=2\n", 100),
        (b"version=4\n", 0),
        (b"\nversion=1\n", 0),
        (b"# only a comment", 0),
        (b"KDM", 0),
    ],
)
def test_probe(head: bytes, score: int) -> None:
    assert VmdkDriver.probe(head, "") == score
