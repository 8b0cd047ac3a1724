"""vdi as the real tools have it: making, opening, what queries tell, errors of bad images; images go both ways."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.graphs import Bench
from tests.interop.cases import MIB, NODES, Case, add, assert_case, delete, file, io
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do
from tests.interop.plain_formats import assert_reads_the_same, broken, create, created, named, put, refused
from tests.qemu import QemuImages

SIZE = 5 * MIB


def prepare(where: Path) -> None:
    images = QemuImages("qemu-img", "qemu-io")
    images.create(where / "a.vdi", SIZE, fmt="vdi")
    images.create(where / "static.vdi", SIZE, fmt="vdi", static="on")
    images.create(where / "full.vdi", SIZE, fmt="vdi")
    images.io(where / "full.vdi", "write -P 1 100k 2M", "write -P 2 4M 1M", fmt="vdi")
    (where / "new.img").touch()
    (where / "empty.vdi").touch()


def not_vdi(where: Path) -> None:
    (where / "a.qcow2").write_bytes(b"QFI\xfb" * 999)


def made(where: Path) -> object:
    """A new image without its two random identifiers."""
    data = (where / "new.img").read_bytes()
    return len(data), data[:0x188].hex(), data[0x1A8:1024].hex()


def bad(at: int, data: bytes) -> Case:
    return broken("vdi", "a.vdi", prepare, put(at, data))


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


# How much space a file that was written takes, is the host's own affair: it varies from one run to the next.
CASES = [
    Case(
        "add",
        [add("vdi", "v", file=file("full.vdi", "f")), NODES, delete("v")],
        prepare=prepare,
        ignore={"actual-size"},
    ),
    Case("add-static", [add("vdi", "v", file=file("static.vdi", "f"), read_only=True), NODES], prepare=prepare),
    Case("no-file", [add("vdi", "v")], prepare=prepare),
    Case("unknown-option", [add("vdi", "v", file=file("a.vdi"), nothing=1)], prepare=prepare),
    Case("backing", [add("vdi", "v", file=file("a.vdi"), backing=None)], prepare=prepare),
    Case("empty", [add("vdi", "v", file=file("empty.vdi"))], prepare=prepare),
    Case(
        "other-format",
        [add("vdi", "v", file=file("a.qcow2"))],
        prepare=not_vdi,
    ),
    Case(
        "write",
        [
            add("vdi", "v", file=file("a.vdi", "f")),
            io("v", "write -q -P 3 1000k 1000k"),
            io("v", "write -q -P 4 3M 5k"),
            io("v", "write -q -z 3M 1k"),
            io("v", "read -q -P 3 1000k 1000k"),
            Do("block_resize", {"node-name": "v", "size": 8 * MIB}),
            io("v", "flush"),
            delete("v"),
            Call(lambda where: (where / "a.vdi").read_bytes()[:0x188].hex()),
            Call(lambda where: (where / "a.vdi").read_bytes()[0x1C8:1024].hex()),
            Call(lambda where: (where / "a.vdi").stat().st_size),
        ],
        real=SYSTEM_EMULATOR,
        prepare=prepare,
    ),
    Case(
        "reopen",
        [
            add("vdi", "v", file=file("a.vdi", "f"), read_only=True),
            Do("blockdev-reopen", {"options": [{"driver": "vdi", "node-name": "v", "file": "f", "read-only": False}]}),
            Do("blockdev-reopen", {"options": [{"driver": "vdi", "node-name": "v", "file": "f", "read-only": True}]}),
            NODES,
        ],
        prepare=prepare,
    ),
    *created(
        "vdi",
        prepare,
        made,
        {
            "plain": {"size": SIZE},
            "odd": {"size": 1000},
            "zero": {"size": 0},
            "off": {"size": MIB, "preallocation": "off"},
            "static": {"size": SIZE, "preallocation": "metadata"},
            "static-odd": {"size": SIZE + 700, "preallocation": "metadata"},
            "negative": {"size": -1},
            "falloc": {"size": SIZE, "preallocation": "falloc"},
            "full": {"size": SIZE, "preallocation": "full"},
            "too-large": {"size": 1 << 62},
            "just-too-large": {"size": (0x1FFFFF80 << 20) + 1},
        },
    ),
    *refused(
        "vdi",
        prepare,
        {"no-size": {}, "unknown": {"size": 1, "subformat": "static"}},
    ),
    Case("create-nowhere", create("vdi", {"size": MIB}), prepare=prepare),
    *named(
        {
            "bad-signature": bad(0x40, b"abcd"),
            "bad-version": bad(0x44, u32(0x00010002)),
            "bad-bmap-offset": bad(0x154, u32(513)),
            "bad-data-offset": bad(0x158, u32(1025)),
            "bad-sector-size": bad(0x168, u32(4096)),
            "bad-block-size": bad(0x178, u32(1 << 19)),
            "bad-few-blocks": bad(0x180, u32(4)),
            "bad-many-blocks": bad(0x180, u32(0x1FFFFF81)),
            "bad-link": bad(0x1A8, b"x"),
            "bad-parent": bad(0x1B8, b"x"),
            "bad-huge": bad(0x170, struct.pack("<Q", 1 << 60)),
            "odd-size": bad(0x170, struct.pack("<Q", SIZE - 100)),
            "image-type": bad(0x4C, u32(77)),
            "allocated": bad(0x184, u32(3)),
        }
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_conversation(case: Case, tmp_path: Path) -> None:
    assert_case(case, tmp_path)


@pytest.mark.parametrize("static", ["off", "on"])
def test_images_of_qemu_read_the_same(bench: Bench, images: QemuImages, static: str) -> None:
    path = images.create(bench.folder / "a.vdi", SIZE + 512, fmt="vdi", static=static)
    images.io(path, "write -P 1 100k 2M", "write -P 2 4M 1M", "write -P 3 5M 512", fmt="vdi")
    assert_reads_the_same(bench, images, path, "vdi")
