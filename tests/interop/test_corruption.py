"""Metadata found corrupt while an image is in use, played to our engine and to QEMU 7.2: events, and what is left."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, WaitEvent, assert_same
from tests.qemu import QemuImages

MIB = 1 << 20
COPIED = 1 << 63


def image(poke: Callable[[bytearray, int, int], None]) -> Callable[[Path], None]:
    """Makes a.qcow2 with data in two clusters and damages it: poke(bytes of the file, offset of L1, offset of L2)."""

    def prepare(where: Path) -> None:
        path = where / "a.qcow2"
        images = QemuImages("qemu-img", "qemu-io")
        images.run("create", "-q", "-f", "qcow2", path, str(MIB))
        images.io(path, "write -q -P 1 0 128k")
        content = bytearray(path.read_bytes())
        l1 = struct.unpack_from(">Q", content, 40)[0]
        l2 = struct.unpack_from(">Q", content, l1)[0] & 0x00FFFFFFFFFFFE00
        poke(content, l1, l2)
        path.write_bytes(content)

    return prepare


def put(content: bytearray, offset: int, value: int) -> None:
    struct.pack_into(">Q", content, offset, value)


def opened(**options: Any) -> Do:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    file = {"driver": "file", "filename": "$DIR/a.qcow2", "node-name": "f"}
    return Do("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": file, **given})


def hmp(line: str, prints: str | None = None) -> Do:
    # The real one prints what qemu-io says on its standard output.
    return Do("human-monitor-command", {"command-line": line}, {"return": prints} if prints is not None else None)


def io(command: str, prints: str | None = None) -> Do:
    return hmp(f'qemu-io a "{command}"', prints)


def corrupted(fatal: bool) -> WaitEvent:
    return WaitEvent("BLOCK_IMAGE_CORRUPTED", {"fatal": fatal, "node-name": "a"})


EIO, GONE = "failed: Input/output error\r\n", "failed: No medium found\r\n"
NODES = Do("query-named-block-nodes")
FLAT = Do("query-named-block-nodes", {"flat": True})
CLOSE = Do("blockdev-del", {"node-name": "a"})
EJECTED: list[Step] = [
    NODES,
    FLAT,
    Do("query-block"),
    Do("x-debug-query-block-graph"),
    Do("block_resize", {"node-name": "a", "size": 2 * MIB}),
    hmp("info block -n"),
    io("read -q 64k 64k", f"read {GONE}"),
    io("write -q 64k 64k", f"write {GONE}"),
    io("write -q -z 64k 64k", f"write {GONE}"),
    io("length", "getlength: No medium found\r\n"),
    io("map", "Failed to query image length: No medium found\r\n"),
    io("flush"),
    Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": "a"}),
    Do("blockdev-add", {"driver": "raw", "node-name": "below", "file": "f"}),
    Do("blockdev-del", {"node-name": "below"}),
]
AFTER: list[Step] = [
    CLOSE,
    opened(),
    opened(read_only=True),
    FLAT,
    io("read -q -P 1 64k 64k"),
    CLOSE,
    Call(lambda where: list((where / "a.qcow2").read_bytes()[72:80])),
]


def overlap(content: bytearray, l1: int, l2: int) -> None:
    put(content, l2, COPIED | l1)


def unaligned_cluster(content: bytearray, l1: int, l2: int) -> None:
    put(content, l2, COPIED | 0x52A00)


def unaligned_table(content: bytearray, l1: int, l2: int) -> None:
    put(content, l1, COPIED | 0x42A00)


def unaligned_cluster_not_the_first(content: bytearray, l1: int, l2: int) -> None:
    put(content, l2 + 5 * 8, COPIED | 0x52A00)


CASES: dict[str, tuple[Callable[[bytearray, int, int], None], Sequence[Step]]] = {
    "a write into metadata": (
        overlap,
        [opened(), io("write -q -P 5 0 64k", f"write {EIO}"), corrupted(True), *EJECTED, *AFTER],
    ),
    "a table where none can be": (
        unaligned_table,
        [opened(), io("read -q 0 64k", f"read {EIO}"), corrupted(True), *EJECTED, CLOSE, opened(), FLAT],
    ),
    "a cluster where none can be": (
        unaligned_cluster,
        [opened(), io("read -q 0 64k", f"read {EIO}"), corrupted(True), *EJECTED, *AFTER],
    ),
    "a cluster, the sixth": (
        unaligned_cluster_not_the_first,
        [opened(), io("write -q 320k 1k", f"write {EIO}"), corrupted(True), FLAT, *AFTER],
    ),
    "a read-only image stays in use": (
        unaligned_cluster,
        [
            opened(read_only=True),
            io("read -q 0 64k", f"read {EIO}"),
            corrupted(False),
            io("read -q 0 64k", f"read {EIO}"),
            io("read -q -P 1 64k 64k"),
            NODES,
            CLOSE,
            opened(),
            io("read -q -P 1 64k 64k"),
            CLOSE,
        ],
    ),
}


@pytest.mark.parametrize(("poke", "talk"), CASES.values(), ids=CASES.keys())
def test_same(
    poke: Callable[[bytearray, int, int], None], talk: Sequence[Step], tmp_path: Path, qemu_io: str, qemu_system: str
) -> None:
    assert_same(talk, tmp_path, prepare=image(poke), real=SYSTEM_EMULATOR)
