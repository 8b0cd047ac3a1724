"""vpc as the real tools have it: making, opening, whose size counts, errors of bad images; images go both ways."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.drivers.format.vpc import geometry_for
from engine.graph.opening import open_node
from tests.graphs import Bench
from tests.interop.cases import MIB, NODES, Case, add, assert_case, delete, file, io
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, WaitEvent
from tests.interop.plain_formats import assert_reads_the_same, broken, create, created, named, put, refused
from tests.qemu import QemuImages

GEOMETRIC = 5013504
"""A length, in bytes, that a geometry can tell: 144 cylinders, 4 heads, 17 sectors."""
Change = Callable[[bytearray], object]


def prepare(where: Path) -> None:
    images = QemuImages("qemu-img", "qemu-io")
    images.create(where / "a.vpc", 5 * MIB, fmt="vpc", force_size="on")
    images.create(where / "fixed.vpc", 5 * MIB, fmt="vpc", force_size="on", subformat="fixed")
    images.create(where / "old.vpc", 5 * MIB, fmt="vpc")
    images.create(where / "full.vpc", 5 * MIB, fmt="vpc", force_size="on")
    images.io(where / "full.vpc", "write -P 1 100k 2M", "write -P 2 4M 1M", fmt="vpc")
    (where / "new.img").touch()
    (where / "empty.vpc").touch()
    (where / "nothing.vpc").write_bytes(bytes(4096))


def sealed(at: int, change: Change) -> Change:
    """The change, and the checksum of the footer at *at* (from the end when negative) made right for it."""

    def apply(content: bytearray) -> None:
        change(content)
        start = at % len(content) if at < 0 else at
        content[start + 64 : start + 68] = bytes(4)
        content[start + 64 : start + 68] = struct.pack(">I", ~sum(content[start : start + 512]) & 0xFFFFFFFF)

    return apply


def footer(at: int, data: bytes) -> Case:
    return broken("vpc", "a.vpc", prepare, sealed(0, put(at, data)))


def fixed_footer(at: int, data: bytes) -> Case:
    return broken(
        "vpc", "fixed.vpc", prepare, sealed(-512, lambda content: put(len(content) - 512 + at, data)(content))
    )


def header(at: int, data: bytes) -> Case:
    return broken("vpc", "a.vpc", prepare, put(512 + at, data))


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def _masked(data: bytes) -> str:
    """A footer or header without time, checksum and identifier."""
    return (data[:24] + data[28:64] + data[84:]).hex() if data[:8] == b"conectix" else data.hex()


def made(where: Path) -> object:
    data = (where / "new.img").read_bytes()
    return len(data), [_masked(data[at : at + 512]) for at in range(0, min(len(data), 4096), 512)], _masked(data[-512:])


def tables(where: Path) -> object:
    data = (where / "a.vpc").read_bytes()
    # Footer, header, table; bitmaps; the footer at the end.
    parts = [data[:2048], data[2048:2560], data[2048 + 512 + (2 << 20) :][:512], data[-512:]]
    return len(data), [_masked(part) for part in parts[:1]], [part.hex() for part in parts[1:3]], parts[3] == data[:512]


CREATORS = [b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"CTXS", b"tap\0", b"tap!", b"zzzz", b"\0\0\0\0"]

# How much space a file that was written takes, is the host's own affair: it varies from one run to the next.
CASES = [
    Case(
        "add",
        [add("vpc", "v", file=file("full.vpc", "f")), NODES, delete("v")],
        prepare=prepare,
        ignore={"actual-size"},
    ),
    Case("add-old", [add("vpc", "v", file=file("old.vpc", "f")), NODES, delete("v")], prepare=prepare),
    Case("add-fixed", [add("vpc", "v", file=file("fixed.vpc", "f"), read_only=True), NODES], prepare=prepare),
    Case("no-file", [add("vpc", "v")], prepare=prepare),
    Case("unknown-option", [add("vpc", "v", file=file("a.vpc"), force_size_calc="chs")], prepare=prepare),
    Case("empty", [add("vpc", "v", file=file("empty.vpc"))], prepare=prepare),
    Case("nothing", [add("vpc", "v", file=file("nothing.vpc"))], prepare=prepare),
    Case(
        "write",
        [
            add("vpc", "v", file=file("a.vpc", "f")),
            io("v", "write -q -P 3 1000k 2000k"),
            io("v", "write -q -P 4 3M 5k"),
            io("v", "write -q -z 3M 1k"),
            io("v", "read -q -P 3 1000k 2000k"),
            Do("block_resize", {"node-name": "v", "size": 8 * MIB}),
            io("v", "flush"),
            delete("v"),
            Call(tables),
        ],
        real=SYSTEM_EMULATOR,
        prepare=prepare,
    ),
    Case(
        "reopen",
        [
            add("vpc", "v", file=file("a.vpc", "f"), read_only=True),
            Do("blockdev-reopen", {"options": [{"driver": "vpc", "node-name": "v", "file": "f", "read-only": False}]}),
            Do("blockdev-reopen", {"options": [{"driver": "vpc", "node-name": "v", "file": "f", "read-only": True}]}),
            NODES,
        ],
        prepare=prepare,
    ),
    *created(
        "vpc",
        prepare,
        made,
        {
            "plain": {"size": GEOMETRIC},
            "no-geometry": {"size": 5 * MIB},
            "negative": {"size": -1},
            "force": {"size": 5 * MIB, "force-size": True},
            "force-off": {"size": GEOMETRIC, "force-size": False},
            "odd": {"size": 1000, "force-size": True},
            "zero": {"size": 0},
            "zero-force": {"size": 0, "force-size": True},
            "dynamic": {"size": GEOMETRIC, "subformat": "dynamic"},
            "fixed": {"size": GEOMETRIC, "subformat": "fixed"},
            "fixed-force": {"size": 5 * MIB, "subformat": "fixed", "force-size": True},
            "largest": {"size": 0xFF000000 * 512, "force-size": True},
            "large": {"size": 65535 * 16 * 255 * 512},
            "larger": {"size": 1 << 40},
            "too-large": {"size": 0xFF000001 * 512},
        },
    ),
    *refused(
        "vpc",
        prepare,
        {"no-size": {}, "format": {"size": 1, "subformat": "static"}},
    ),
    Case("create-nowhere", create("vpc", {"size": GEOMETRIC}), prepare=prepare),
    *named(
        {
            "bad-cookie": footer(0, b"conectiy"),
            "bad-checksum": broken("vpc", "a.vpc", prepare, put(20, b"x")),
            "bad-fixed-checksum": broken("vpc", "fixed.vpc", prepare, put(5 * MIB + 20, b"x")),
            "fixed-type": fixed_footer(60, u32(3)),
            "fixed-size": fixed_footer(48, u64(7 * MIB)),
            "type-fixed": footer(60, u32(2)),
            "type-difference": footer(60, u32(4)),
            "huge": footer(48, u64(1 << 62)),
            "at-most": footer(48, u64(0xFF000000 * 512)),
            "larger-than-table": footer(48, u64(7 * MIB)),
            "data-offset-far": footer(16, u64(1 << 40)),
            "data-offset-beyond": footer(16, u64((1 << 64) - 1)),
            "bad-magic": header(0, b"cxsparsf"),
            "bad-table-far": header(16, u64(1 << 40)),
            "bad-table-beyond": header(16, u64(1 << 63)),
            "bad-block-size": header(32, u32(3000)),
            "bad-small-block": header(32, u32(256)),
            "bad-zero-block": header(32, u32(0)),
            "bad-entries": header(28, u32(2)),
            "bad-many-entries": header(28, u32(0x20000000)),
            "bad-most-entries": header(28, u32(0xFFFFFFFF)),
            "bad-long-table": header(28, u32(0x10000000)),
            "bad-entry": header(1024, u32(5000)),
            **{f"creator-{app.hex()}": footer(28, app) for app in CREATORS},
            **{f"fixed-creator-{app.hex()}": fixed_footer(28, app) for app in CREATORS},
            "creator-geometry": footer(28, b"qemu" + bytes(24) + bytes([1, 0, 4, 17])),
            "fixed-geometry": fixed_footer(28, b"vpc " + bytes(8) + u64(MIB) + u64(MIB) + bytes([0, 40, 4, 17])),
        }
    ),
]


def job_to_new_image(command: str, size: int, *steps: Step) -> Case:
    def source(where: Path) -> None:
        (where / "source.raw").write_bytes(b"s" * size)

    return Case(
        f"{command}-{size}",
        [
            add("raw", "r", file=file("source.raw")),
            Do(command, {"job-id": "j", "device": "r", "target": "$DIR/target.vpc", "format": "vpc", "sync": "full"}),
            *steps,
            Call(lambda where: _masked((where / "target.vpc").read_bytes()[:512])),
        ],
        real=SYSTEM_EMULATOR,
        prepare=source,
    )


COMPLETED = WaitEvent("BLOCK_JOB_COMPLETED")
CASES += [
    job_to_new_image("drive-backup", GEOMETRIC, COMPLETED),
    job_to_new_image("drive-backup", 5 * MIB),
    job_to_new_image(
        "drive-mirror", GEOMETRIC, WaitEvent("BLOCK_JOB_READY"), Do("block-job-cancel", {"device": "j"}), COMPLETED
    ),
    job_to_new_image("drive-mirror", 5 * MIB, COMPLETED),
]
"""Images that jobs make by file name are rounded up to what a geometry can tell."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_conversation(case: Case, tmp_path: Path) -> None:
    assert_case(case, tmp_path)


@pytest.mark.parametrize("options", [{}, {"force_size": "on"}, {"subformat": "fixed"}], ids=str)
def test_images_of_qemu_read_the_same(bench: Bench, images: QemuImages, options: dict[str, str]) -> None:
    path = images.create(bench.folder / "a.vpc", 7 * MIB + 512 * 3, fmt="vpc", **options)
    images.io(path, "write -P 1 100k 2M", "write -P 2 5M 1M", "write -P 3 7M 512", fmt="vpc")
    assert_reads_the_same(bench, images, path, "vpc", probed="subformat" not in options)


@pytest.mark.parametrize("algorithm", ["chs", "current_size", "best"])
@pytest.mark.parametrize("forced", [False, True])
def test_size_by_algorithm(bench: Bench, images: QemuImages, algorithm: str, forced: bool) -> None:
    prepare(bench.folder)
    path = bench.folder / "old.vpc"
    content = bytearray(path.read_bytes())
    sealed(0, put(28, b"win " if forced else b"vpc "))(content)
    sealed(0, put(48, u64(4 * MIB)))(content)
    path.write_bytes(content)
    name = "json:" + json.dumps(
        {"driver": "vpc", "force_size_calc": algorithm, "file": {"driver": "file", "filename": str(path)}}
    )
    done = subprocess.run(["qemu-img", "info", "--output=json", name], capture_output=True, text=True, timeout=20)
    if done.returncode:
        with pytest.raises(Exception, match="Invalid size calculation mode: 'best'"):
            open_node(bench.graph, {"read-only": True}, filename=name)
        assert "Invalid size calculation mode: 'best'" in done.stderr
        return
    node = open_node(bench.graph, {"read-only": True}, filename=name)
    assert node.length == json.loads(done.stdout)["virtual-size"]
    assert json.loads(node.filename.removeprefix("json:"))["force_size_calc"] == algorithm
    bench.graph.unpin(node)


@pytest.mark.parametrize("size", ["1k", "34M", "500M", "8G", "33G", "120G", "126G"])
def test_geometry_is_that_of_qemu(images: QemuImages, tmp_path: Path, size: str) -> None:
    path = images.create(tmp_path / "a.vpc", size, fmt="vpc")
    cylinders, heads, sectors = struct.unpack_from(">HBB", path.read_bytes(), 56)
    length = images.info(path)["virtual-size"]
    assert length == cylinders * heads * sectors * 512
    # What QEMU came to by trying is a geometry that our rule gives for some length at most as long, rounding down.
    ours = next(
        found
        for extra in range(20000)
        if (found := geometry_for(length // 512 + extra)) and found[0] * found[1] * found[2] * 512 >= length
    )
    assert ours == (cylinders, heads, sectors)
