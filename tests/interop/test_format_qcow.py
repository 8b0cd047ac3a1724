"""qcow, version 1, beside the real programs: the same images, the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.cases import add, file
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, assert_same
from tests.interop.format_talk import CLOSE, MIB, NODES, create, io, opened, patch, same_bytes, told
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

# How the host file system lays out what was written.
IGNORE = {"actual-size"}
AES = {"format": "aes", "key-secret": "s"}


def read_by_qemu(name: str, *commands: str) -> Call:
    """What is in the image the real qemu-io must agree with."""
    return Call(lambda where: QemuImages("qemu-img", "qemu-io").io(where / name, *commands, fmt="qcow") and None)


CONVERSATIONS: dict[str, list[Step]] = {
    "create": [*create("x.qcow", "qcow"), same_bytes("x.qcow"), opened("x.qcow", "qcow"), NODES],
    "create odd sizes": [
        *create("x.qcow", "qcow", size=1000),
        same_bytes("x.qcow"),
        opened("x.qcow", "qcow"),
        NODES,
        CLOSE,
        *create("x.qcow", "qcow", size=1),
        opened("x.qcow", "qcow"),
        *create("x.qcow", "qcow", size=0),
    ],
    "create with a backing file": [
        *create("x.qcow", "qcow", backing_file="base.raw"),
        same_bytes("x.qcow"),
        opened("x.qcow", "qcow"),
        NODES,
    ],
    "create with wrong options": [
        *create("x.qcow", "qcow", backing_fmt="raw"),
        *create("x.qcow", "qcow", encrypt={"format": "luks"}),
        *create("x.qcow", "qcow", encrypt={"format": "aes"}),
    ],
    "write": [
        *create("x.qcow", "qcow", size=8 * MIB),
        opened("x.qcow", "qcow"),
        io("n", "write -q -P 1 4096 4096"),
        io("n", "write -q -P 2 6M 8k"),
        io("n", "write -q -P 3 4M 4k"),
        io("n", "write -q -z 12k 4k"),
        io("n", "discard -q 0 1M"),
        io("n", "flush"),
        NODES,
        CLOSE,
        told("x.qcow"),
        same_bytes("x.qcow"),
    ],
    "write parts": [
        *create("x.qcow", "qcow", size=8 * MIB),
        opened("x.qcow", "qcow"),
        io("n", "write -q -P 1 100 10000"),
        io("n", "write -q -P 2 2093056 8192"),
        NODES,
        CLOSE,
        told("x.qcow"),
        read_by_qemu("x.qcow", "read -q -P 1 100 10000", "read -q -P 0 0 100", "read -q -P 2 2093056 8192"),
    ],
    "write over a backing file": [
        *create("x.qcow", "qcow", backing_file="base.raw", size=2 * MIB),
        opened("x.qcow", "qcow"),
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -P 2 1020k 8k"),
        NODES,
        CLOSE,
        told("x.qcow"),
        read_by_qemu("x.qcow", "read -q -P 1 4096 10000", "read -q -P 98 14096 10000", "read -q -P 0 1028k 8k"),
    ],
    "compressed": [
        *create("x.qcow", "qcow"),
        opened("x.qcow", "qcow"),
        io("n", "write -q -c -P 1 0 4k"),
        io("n", "write -q -c -P 2 64k 4k"),
        io("n", "write -c 4k 8k", "write failed: Invalid argument\r\n"),
        io("n", "read -q -P 1 0 4k"),
        io("n", "read -q -P 2 64k 4k"),
        io("n", "write -q -P 3 1k 1k"),
        io("n", "read -q -P 1 2k 2k"),
        CLOSE,
        told("x.qcow"),
        read_by_qemu("x.qcow", "read -q -P 1 0 1k", "read -q -P 3 1k 1k", "read -q -P 2 64k 4k"),
    ],
    "no resizing": [
        *create("x.qcow", "qcow"),
        opened("x.qcow", "qcow"),
        Do("block_resize", {"node-name": "n", "size": 3 * MIB}),
        NODES,
    ],
    "options": [
        *create("x.qcow", "qcow"),
        add("qcow", "n"),
        add("qcow", "n", file=file("x.qcow"), nope=1),
        add("qcow", "n", file=file("x.qcow"), encrypt=AES),
        add("qcow", "n", file=file("x.qcow"), encrypt={"format": "luks"}),
        add("qcow", "n", file=file("x.qcow"), encrypt={}),
        add("qcow", "n", file=file("x.qcow"), backing=None),
    ],
    "reopen": [
        *create("x.qcow", "qcow"),
        opened("x.qcow", "qcow"),
        Do("blockdev-reopen", {"options": [{"driver": "qcow", "node-name": "n", "file": "f", "read-only": True}]}),
        NODES,
        Do("blockdev-reopen", {"options": [{"driver": "qcow", "node-name": "n", "file": "f", "read-only": False}]}),
        io("n", "write -q -P 2 64k 64k"),
        NODES,
    ],
    "an overlay by name": [
        *create("x.qcow", "qcow"),
        opened("x.qcow", "qcow"),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "n", "snapshot-file": "$DIR/o.qcow", "format": "qcow", "snapshot-node-name": "o"},
        ),
        NODES,
        Do("change-backing-file", {"device": "o", "image-node-name": "o", "backing-file": "other"}),
    ],
    "broken headers": [
        *create("x.qcow", "qcow"),
        patch("x.qcow", 32, b"\x08"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 32, b"\x0c\x0e"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 33, b"\x09"),
        patch("x.qcow", 39, b"\x02"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 39, b"\0"),
        patch("x.qcow", 24, b"\x7f"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 24, b"\0"),
        patch("x.qcow", 15, b"\x30\0\0\x04\0"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 15, b"\0\0\0\0\0"),
        patch("x.qcow", 7, b"\x03"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 7, b"\x04"),
        opened("x.qcow", "qcow"),
        patch("x.qcow", 0, b"x"),
        opened("x.qcow", "qcow"),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_talk_is_that_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        (where / "base.raw").write_bytes(b"b" * MIB)

    assert_same(CONVERSATIONS[name], tmp_path, prepare=prepare, real=SYSTEM_EMULATOR, ignore=IGNORE)
