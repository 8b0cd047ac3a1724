"""parallels as the real tools have it: making, opening, checking and repairing; images go both ways."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.drivers.format.parallels import ParallelsDriver
from engine.graph.opening import open_node
from tests.graphs import Bench
from tests.interop.cases import MIB, NODES, Case, add, assert_case, delete, file, io
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do
from tests.interop.plain_formats import assert_reads_the_same, broken, create, created, named, put, refused
from tests.qemu import QemuImages

SIZE = 5 * MIB


def prepare(where: Path) -> None:
    images = QemuImages("qemu-img", "qemu-io")
    images.create(where / "a.hdd", SIZE, fmt="parallels")
    images.create(where / "small.hdd", SIZE, fmt="parallels", cluster_size=4096)
    images.create(where / "full.hdd", SIZE, fmt="parallels")
    images.io(where / "full.hdd", "write -P 1 100k 2M", "write -P 2 4M 1M", fmt="parallels")
    (where / "base.raw").write_bytes(b"b" * SIZE)
    (where / "new.img").touch()
    (where / "empty.hdd").touch()
    (where / "nothing.hdd").write_bytes(bytes(4096))


def bad(at: int, data: bytes) -> Case:
    return broken("parallels", "a.hdd", prepare, put(at, data))


def bad_read_only(at: int, data: bytes) -> Case:
    return broken("parallels", "a.hdd", prepare, put(at, data), read_only=True)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def made(where: Path) -> object:
    data = (where / "new.img").read_bytes()
    return len(data), data[:4096].hex(), any(data[64:])


def whole(name: str) -> Call:
    def look(where: Path) -> object:
        data = (where / name).read_bytes()
        return len(data), data[:1024].hex(), [data[at] for at in range(0, len(data), 65536)]

    return Call(look)


# How much space a file that was written takes, is the host's own affair: it varies from one run to the next.
CASES = [
    Case(
        "add",
        [add("parallels", "p", file=file("full.hdd", "f")), NODES, delete("p"), whole("full.hdd")],
        prepare=prepare,
        ignore={"actual-size"},
    ),
    Case(
        "add-read-only",
        [add("parallels", "p", file=file("full.hdd", "f"), read_only=True), NODES],
        prepare=prepare,
        ignore={"actual-size"},
    ),
    Case("in-use", [add("parallels", "p", file=file("a.hdd", "f")), whole("a.hdd")], prepare=prepare),
    Case("no-file", [add("parallels", "p")], prepare=prepare),
    Case("option", [add("parallels", "p", file=file("a.hdd"), prealloc_size=4096)], prepare=prepare),
    Case("backing", [add("parallels", "p", file=file("a.hdd"), backing=None)], prepare=prepare),
    Case("empty", [add("parallels", "p", file=file("empty.hdd"))], prepare=prepare),
    Case("nothing", [add("parallels", "p", file=file("nothing.hdd"))], prepare=prepare),
    *(
        Case(
            f"write-{name}",
            [
                add("parallels", "p", file=file(f"{name}.hdd", "f")),
                io("p", "write -q -P 3 1000k 2000k"),
                io("p", "write -q -P 4 3M 5k"),
                io("p", "write -q -z 3M 1k"),
                io("p", "read -q -P 3 1000k 2000k"),
                io("p", "write -q -P 5 1000000 1"),
                Do("block_resize", {"node-name": "p", "size": 8 * MIB}),
                io("p", "flush"),
                delete("p"),
                whole(f"{name}.hdd"),
            ],
            real=SYSTEM_EMULATOR,
            prepare=prepare,
        )
        for name in ("a", "small", "full")
    ),
    Case(
        "overlay",
        [
            add("parallels", "p", file=file("a.hdd", "f"), read_only=False),
            add("raw", "b", file=file("base.raw", "bf")),
            Do("blockdev-snapshot", {"node": "b", "overlay": "p"}),
            io("p", "write -q -P 3 1000k 10k"),
            io("p", "read -q -P 98 0 1000k"),
            io("p", "read -q -P 98 1010k 1000k"),
            io("p", "read -q -P 3 1000k 10k"),
            io("p", "flush"),
        ],
        real=SYSTEM_EMULATOR,
        prepare=prepare,
    ),
    Case(
        "reopen",
        [
            add("parallels", "p", file=file("a.hdd", "f"), read_only=True),
            Do(
                "blockdev-reopen",
                {"options": [{"driver": "parallels", "node-name": "p", "file": "f", "read-only": False}]},
            ),
        ],
        prepare=prepare,
    ),
    *created(
        "parallels",
        prepare,
        made,
        {
            "plain": {"size": SIZE},
            "zero": {"size": 0},
            "odd": {"size": 1000},
            "part": {"size": SIZE + 512},
            "cluster": {"size": SIZE, "cluster-size": 65536},
            "sector": {"size": SIZE, "cluster-size": 512},
            "odd-cluster": {"size": SIZE, "cluster-size": 1000},
            "three-sectors": {"size": SIZE, "cluster-size": 1536},
            "no-cluster": {"size": SIZE, "cluster-size": 0},
            "huge-cluster": {"size": SIZE, "cluster-size": 1 << 40},
            "large": {"size": 1 << 40},
            "too-large": {"size": 1 << 52},
            "too-large-for-cluster": {"size": 1 << 41, "cluster-size": 512},
        },
    ),
    *refused("parallels", prepare, {"no-size": {}, "unknown": {"size": 1, "subformat": "static"}}),
    Case("create-nowhere", create("parallels", {"size": MIB}), prepare=prepare),
    *named(
        {
            "bad-magic": bad(0, b"x"),
            "bad-version": bad(16, u32(3)),
            "bad-tracks": bad(28, u32(0)),
            "bad-many-tracks": bad(28, u32(4186129)),
            "most-tracks": bad_read_only(28, u32(4186128)),
            "bad-entries": bad(32, u32(1 << 29)),
            "few-entries": bad(32, u32(2)),
            "shorter": bad(36, u64(7)),
            "old-magic": bad(0, b"WithoutFreeSpace"),
            "old-size": bad(0, b"WithoutFreeSpace" + u32(2) + bytes(8) + u32(2048) + u32(5) + u64((5 << 32) + 99)),
            "unclean": bad(44, u32(0x746F6E59)),
            "unclean-read-only": bad_read_only(44, u32(0x746F6E59)),
            "entry": bad_read_only(64, u32(1000)),
            "no-data-offset": bad(48, u32(0)),
        }
    ),
]

MAGIC = 0xAB234CEF23DCEA87
BITMAP = 0x20385FAE252CB34A
CLUSTER = 4096


def bitmap(
    table: Sequence[int] = (1,), *, sectors: int = SIZE // 512, name: bytes = bytes(range(16)), count: int | None = None
) -> bytes:
    number = len(table) if count is None else count
    return struct.pack(f"<Q16sII{len(table)}Q", sectors, name, 8, number, *table)


def feature(data: bytes, *, magic: int = BITMAP, flags: int = 0) -> bytes:
    return struct.pack("<QQII", magic, flags, len(data), 0) + data


def extended(name: str, features: bytes, *, magic: int = MAGIC, intact: bool = True, read_only: bool = True) -> Case:
    """A case of an image with an extension; cluster 3 of the file holds bits."""

    def make(where: Path) -> None:
        prepare(where)
        content = bytearray((where / "small.hdd").read_bytes().ljust(3 * CLUSTER, b"\0"))
        content += b"\x55" * CLUSTER
        body = features.ljust(CLUSTER - 24, b"\0")
        digest = hashlib.md5(body, usedforsecurity=False).digest() if intact else bytes(16)
        content[56:64] = u64(len(content) // 512)
        content += struct.pack("<Q", magic) + digest + body
        (where / "small.hdd").write_bytes(content)

    add_node = add("parallels", "p", file=file("small.hdd"), read_only=read_only)
    remove = Do("block-dirty-bitmap-remove", {"node": "p", "name": "00010203-0405-0607-0809-0a0b0c0d0e0f"})
    return Case(f"extension-{name}", [add_node, NODES, remove, NODES], prepare=make)


CASES += [
    extended("all-ones", feature(bitmap())),
    extended("no-ones", feature(bitmap([0]))),
    extended("some-ones", feature(bitmap([24]))),
    extended("beyond-the-file", feature(bitmap([1 << 40]))),
    extended("two", feature(bitmap()) + feature(bitmap([24], name=b"x" * 16))),
    extended("same-name", feature(bitmap()) + feature(bitmap())),
    extended("not-loaded-for-writing", feature(bitmap()), read_only=False),
    extended("nothing", b""),
    extended("bad-magic", b"", magic=5),
    extended("bad-checksum", b"", intact=False),
    extended("flags", feature(bitmap(), flags=1)),
    extended("unknown", feature(b"", magic=77)),
    extended("long", struct.pack("<QQII", BITMAP, 0, CLUSTER, 0)),
    extended("short", feature(b"12345678")),
    extended("bad-size", feature(bitmap(sectors=5))),
    extended("bad-count", feature(bitmap(count=3))),
    extended("bad-table", feature(bitmap([1, 1]))),
    extended("no-table", feature(bitmap([]))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_conversation(case: Case, tmp_path: Path) -> None:
    assert_case(case, tmp_path)


@pytest.mark.parametrize("cluster", [MIB, 65536, 1536])
def test_images_of_qemu_read_the_same(bench: Bench, images: QemuImages, cluster: int) -> None:
    path = images.create(bench.folder / "a.hdd", SIZE + 512, fmt="parallels", cluster_size=cluster)
    images.io(path, "write -P 1 100k 2M", "write -P 2 4M 1M", "write -P 3 5M 512", fmt="parallels")
    assert_reads_the_same(bench, images, path, "parallels")


def _entry(at: int, value: int) -> Callable[[bytearray], object]:
    return put(64 + 4 * at, u32(value))


def _longer(by: int) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        content.extend(bytes(by))

    return change


def _shorter(content: bytearray) -> None:
    del content[-MIB - 5 :]


def _each(*changes: Callable[[bytearray], object]) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        for one in changes:
            one(content)

    return change


DAMAGE: dict[str, Callable[[bytearray], object]] = {
    "none": _each(),
    "unclean": put(44, u32(0x746F6E59)),
    "outside": _entry(3, 1000),
    "first-outside": _entry(0, 77),
    "at-the-end": _entry(3, 5),
    "leak": _longer(3 * MIB + 5),
    "less": _shorter,
    "fragmented": _each(_entry(0, 2), _entry(1, 1)),
    "all": _each(_entry(3, 99), put(44, u32(0x746F6E59)), _longer(MIB)),
}


@pytest.mark.parametrize("fix", ["", "leaks", "all"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_check_finds_and_repairs_what_qemu_does(bench: Bench, images: QemuImages, damage: str, fix: str) -> None:
    prepare(bench.folder)
    path = bench.folder / "full.hdd"
    content = bytearray(path.read_bytes())
    DAMAGE[damage](content)
    path.write_bytes(content)
    other = bench.folder / "other.hdd"
    other.write_bytes(content)
    command = ["qemu-img", "check", "--output=json", "-f", "parallels", *(["-r", fix] if fix else []), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    real = json.loads(done.stdout)
    node = open_node(
        bench.graph,
        {"driver": "parallels", "read-only": not fix, "file": {"driver": "file", "filename": str(path)}},
        for_check=True,
    )
    assert isinstance(node.driver, ParallelsDriver)
    wanted = frozenset({"": (), "leaks": ("leaks",), "all": ("leaks", "errors")}[fix])
    result = node.driver.check(wanted)
    names = {
        "image-end-offset": result.image_end_offset,
        "total-clusters": result.total_clusters,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "leaks-fixed": result.leaks_fixed,
        "corruptions-fixed": result.corruptions_fixed,
    }
    assert {key: value for key, value in names.items() if value} == {
        key: value for key, value in real.items() if key in names and value
    }
    if not fix:
        assert (result.corruptions, result.leaks) == (real.get("corruptions", 0), real.get("leaks", 0))
        assert result.messages == [line for line in done.stderr.splitlines() if line]
    bench.graph.unpin(node)
    assert not bench.graph.nodes
    if fix == "all":
        images.check(path, "parallels")
        images.assert_identical(path, other, a_format="parallels", b_format="parallels")


@pytest.mark.parametrize("mode", ["falloc", "truncate", "best"])
def test_space_is_taken_ahead_and_given_back(bench: Bench, images: QemuImages, mode: str) -> None:
    prepare(bench.folder)
    path = bench.folder / "a.hdd"
    name = "json:" + json.dumps(
        {
            "driver": "parallels",
            "prealloc-mode": mode,
            "prealloc-size": 3 * MIB,
            "file": {"driver": "file", "filename": str(path)},
        }
    )
    if mode == "best":
        with pytest.raises(Exception, match="invalid parameter value: best"):
            open_node(bench.graph, {}, filename=name)
        done = subprocess.run(["qemu-io", "-c", "q", name], capture_output=True, text=True, timeout=20)
        assert "invalid parameter value: best" in done.stderr
        return
    node = open_node(bench.graph, {}, filename=name)
    node.write(0, memoryview(b"x" * 512))
    assert path.stat().st_size == MIB + MIB + 3 * MIB
    assert (path.stat().st_blocks > 3 * MIB // 512) == (mode == "falloc")
    bench.graph.unpin(node)
    assert not bench.graph.nodes
    assert path.stat().st_size == 2 * MIB
    images.check(path, "parallels")
