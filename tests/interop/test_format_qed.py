"""QED beside the real programs: the same images, the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.cases import add, file
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, assert_same
from tests.interop.format_talk import CLOSE, MIB, NODES, create, io, opened, patch, same_bytes, told
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

# QEMU drains the node after each qemu-io command, which takes the mark away; here it takes the next drain, or 5 s.
IGNORE = {"dirty-flag"}
CONVERSATIONS: dict[str, list[Step]] = {
    "create": [*create("x.qed", "qed"), same_bytes("x.qed"), opened("x.qed", "qed"), NODES],
    "create small tables": [*create("x.qed", "qed", cluster_size=4096, table_size=2), same_bytes("x.qed")],
    "create a table of one cluster": [*create("x.qed", "qed", table_size=1), opened("x.qed", "qed")],
    "create with a raw backing file": [
        *create("x.qed", "qed", backing_file="base.raw", backing_fmt="raw"),
        opened("x.qed", "qed"),
        NODES,
    ],
    "create with a backing file to be probed": [
        *create("x.qed", "qed", backing_file="base.qcow2", backing_fmt="qcow2"),
        opened("x.qed", "qed"),
        NODES,
    ],
    "create with wrong options": [
        *create("x.qed", "qed", cluster_size=1000),
        *create("x.qed", "qed", cluster_size=128 * MIB),
        *create("x.qed", "qed", table_size=3),
        *create("x.qed", "qed", table_size=0),
        *create("x.qed", "qed", table_size=32),
        *create("x.qed", "qed", size=1000),
        *create("x.qed", "qed", size=1 << 50),
        *create("x.qed", "qed", cluster_size=64 * MIB, table_size=16),
        *create("x.qed", "qed", size=0),
        *create("x.qed", "qed", nope=1),
        *create("x.qed", "qed", size="1"),
    ],
    "write": [
        *create("x.qed", "qed", cluster_size=4096, table_size=2, size=8 * MIB),
        opened("x.qed", "qed"),
        io("n", "write -q -P 1 4096 10000"),
        NODES,
        io("n", "write -q -P 2 6M 512"),
        io("n", "write -q -z 1M 64k"),
        io("n", "write -q -z 4100 8k"),
        io("n", "write -q -P 3 1040k 100"),
        io("n", "write -q -P 4 4190000 20000"),
        io("n", "discard -q 0 1M"),
        io("n", "flush"),
        CLOSE,
        same_bytes("x.qed"),
        told("x.qed"),
    ],
    "write over a backing file": [
        *create("x.qed", "qed", backing_file="base.raw", backing_fmt="raw", size=2 * MIB),
        opened("x.qed", "qed"),
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -P 2 1020k 8k"),
        io("n", "write -q -z 128k 64k"),
        # A write into a part of a cluster of zeros is left out: QEMU 7.2 lets the backing file show up around it again.
        NODES,
        CLOSE,
        same_bytes("x.qed"),
    ],
    "resize": [
        *create("x.qed", "qed"),
        opened("x.qed", "qed"),
        Do("block_resize", {"node-name": "n", "size": 3 * MIB}),
        Do("block_resize", {"node-name": "n", "size": MIB}),
        Do("block_resize", {"node-name": "n", "size": 3 * MIB + 1}),
        Do("block_resize", {"node-name": "n", "size": 1 << 60}),
        NODES,
        CLOSE,
        same_bytes("x.qed"),
    ],
    "options": [
        *create("x.qed", "qed"),
        add("qed", "n"),
        add("qed", "n", file=file("x.qed"), nope=1),
        add("qed", "n", file=file("x.qed"), backing=1),
        add("qed", "n", file=file("x.qed"), backing=None),
        add("qed", "m", file=file("x.qed"), read_only=True),
    ],
    "reopen": [
        *create("x.qed", "qed"),
        opened("x.qed", "qed"),
        io("n", "write -q -P 1 0 64k"),
        Do("blockdev-reopen", {"options": [{"driver": "qed", "node-name": "n", "file": "f", "read-only": True}]}),
        NODES,
        Do("blockdev-reopen", {"options": [{"driver": "qed", "node-name": "n", "file": "f", "read-only": False}]}),
        io("n", "write -q -P 2 64k 64k"),
        io("n", "read -q -P 1 0 64k"),
        NODES,
        CLOSE,
        same_bytes("x.qed"),
    ],
    "an overlay by name": [
        *create("x.qed", "qed"),
        opened("x.qed", "qed"),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "n", "snapshot-file": "$DIR/o.qed", "format": "qed", "snapshot-node-name": "o"},
        ),
        io("o", "write -q -P 1 0 1k"),
        NODES,
        Do("change-backing-file", {"device": "o", "image-node-name": "o", "backing-file": "other"}),
    ],
    "broken headers": [
        *create("x.qed", "qed"),
        patch("x.qed", 16, b"\x08"),
        opened("x.qed", "qed"),
        patch("x.qed", 16, b"\0"),
        patch("x.qed", 8, b"\x05"),
        opened("x.qed", "qed"),
        patch("x.qed", 8, b"\x04"),
        patch("x.qed", 4, b"\x05"),
        opened("x.qed", "qed"),
        patch("x.qed", 4, b"\0"),
        patch("x.qed", 40, b"\x01"),
        opened("x.qed", "qed"),
        patch("x.qed", 40, b"\0"),
        patch("x.qed", 48, b"\x01"),
        opened("x.qed", "qed"),
        patch("x.qed", 48, b"\0"),
        patch("x.qed", 12, b"\0\0\1\0"),
        opened("x.qed", "qed"),
        patch("x.qed", 12, b"\1\0\0\0"),
        patch("x.qed", 0, b"x"),
        opened("x.qed", "qed"),
        add("qcow2", "n", file=file("x.qed")),
    ],
    "broken tables": [
        *create("x.qed", "qed"),
        patch("x.qed", 65536, b"\3"),
        opened("x.qed", "qed"),
        io("n", "read 0 64k", "read failed: Invalid argument\r\n"),
        io("n", "write 0 64k", "write failed: Invalid argument\r\n"),
        CLOSE,
        patch("x.qed", 16, b"\2"),
        opened("x.qed", "qed"),
        io("n", "read -q -P 0 0 64k"),
        NODES,
        CLOSE,
        same_bytes("x.qed"),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_talk_is_that_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        (where / "base.raw").write_bytes(b"b" * MIB)
        images.create(where / "base.qcow2", "1M")

    assert_same(CONVERSATIONS[name], tmp_path, prepare=prepare, real=SYSTEM_EMULATOR, ignore=IGNORE)
