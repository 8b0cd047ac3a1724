"""VHDX beside the real programs: the same answers, and images that both read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.cases import add, file
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, assert_same
from tests.interop.format_talk import CLOSE, MIB, NODES, create, io, opened, patch, told
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

# Identifiers are random, and files of other lengths follow: only what is told of the disk can be compared.
IGNORE = {"actual-size"}


def read_by_qemu(name: str, *commands: str) -> Call:
    """What is in the image the real qemu-img and qemu-io must agree with."""

    def run(where: Path) -> None:
        images = QemuImages("qemu-img", "qemu-io")
        images.check(where / name, fmt="vhdx")
        images.io(where / name, *commands, fmt="vhdx")

    return Call(run)


CONVERSATIONS: dict[str, list[Step]] = {
    "create": [*create("x.vhdx", "vhdx"), opened("x.vhdx", "vhdx"), NODES, CLOSE, told("x.vhdx")],
    "create with options": [
        *create("x.vhdx", "vhdx", block_size=MIB, log_size=2 * MIB, block_state_zero=False, subformat="dynamic"),
        opened("x.vhdx", "vhdx"),
        NODES,
    ],
    "create fixed": [
        *create("x.vhdx", "vhdx", subformat="fixed", size=20 * MIB),
        Call(lambda where: (where / "x.vhdx").stat().st_size),
        opened("x.vhdx", "vhdx"),
        NODES,
    ],
    "create with sizes by default": [
        *[
            step
            for size in (1 << 30, (1 << 30) + 512, (100 << 30) + 512, (1 << 40))
            for step in [*create("x.vhdx", "vhdx", size=size), opened("x.vhdx", "vhdx"), NODES, CLOSE]
        ],
    ],
    "create odd sizes": [*create("x.vhdx", "vhdx", size=1000), opened("x.vhdx", "vhdx"), NODES],
    "create with wrong options": [
        *create("x.vhdx", "vhdx", log_size=1000),
        *create("x.vhdx", "vhdx", log_size=1500000),
        *create("x.vhdx", "vhdx", log_size=1 << 32),
        *create("x.vhdx", "vhdx", log_size=0),
        *create("x.vhdx", "vhdx", block_size=1000),
        *create("x.vhdx", "vhdx", block_size=3 * MIB),
        *create("x.vhdx", "vhdx", block_size=512 * MIB),
        *create("x.vhdx", "vhdx", size=65 << 40),
        *create("x.vhdx", "vhdx", subformat="x"),
        *create("x.vhdx", "vhdx", backing_file="x"),
    ],
    "write": [
        *create("x.vhdx", "vhdx", size=8 * MIB, block_size=MIB),
        opened("x.vhdx", "vhdx"),
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -P 2 6M 1M"),
        io("n", "write -q -P 3 1040000 100000"),
        io("n", "write -q -z 6500k 64k"),
        io("n", "discard -q 0 1M"),
        io("n", "flush"),
        io("n", "read -q -P 3 1040000 100000"),
        NODES,
        CLOSE,
        read_by_qemu("x.vhdx", "read -q -P 1 4096 10000", "read -q -P 2 6M 300k", "read -q -P 3 1040000 100000"),
    ],
    "no resizing": [
        *create("x.vhdx", "vhdx"),
        opened("x.vhdx", "vhdx"),
        Do("block_resize", {"node-name": "n", "size": 3 * MIB}),
    ],
    "options": [
        *create("x.vhdx", "vhdx"),
        add("vhdx", "n"),
        add("vhdx", "n", file=file("x.vhdx"), nope=1),
        add("vhdx", "n", file=file("x.vhdx"), backing=None),
    ],
    "reopen": [
        *create("x.vhdx", "vhdx"),
        opened("x.vhdx", "vhdx"),
        Do("blockdev-reopen", {"options": [{"driver": "vhdx", "node-name": "n", "file": "f", "read-only": True}]}),
        Do("blockdev-reopen", {"options": [{"driver": "vhdx", "node-name": "n", "file": "f", "read-only": False}]}),
        io("n", "write -q -P 2 64k 64k"),
        NODES,
    ],
    "broken headers": [
        *create("x.vhdx", "vhdx"),
        patch("x.vhdx", 100 + (64 << 10), b"x"),
        opened("x.vhdx", "vhdx"),
        CLOSE,
        patch("x.vhdx", 100 + (128 << 10), b"x"),
        opened("x.vhdx", "vhdx"),
        patch("x.vhdx", 0, b"x"),
        opened("x.vhdx", "vhdx"),
        Call(lambda where: (where / "empty").write_bytes(b"")),
        add("vhdx", "n", file=file("empty")),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_talk_is_that_of_the_emulator(name: str, images: QemuImages, tmp_path: Path) -> None:
    assert_same(CONVERSATIONS[name], tmp_path, real=SYSTEM_EMULATOR, ignore=IGNORE)


def test_an_image_of_the_real_one_is_read_and_written(images: QemuImages, tmp_path: Path) -> None:
    talk: list[Step] = [
        opened("x.vhdx", "vhdx"),
        NODES,
        io("n", "read -q -P 5 1M 3M"),
        io("n", "read -q -P 0 20M 3M"),
        io("n", "write -q -P 6 22M 2M"),
        CLOSE,
        read_by_qemu("x.vhdx", "read -q -P 5 1M 3M", "read -q -P 6 22M 2M"),
    ]

    def prepare(where: Path) -> None:
        images.create(where / "x.vhdx", "30M", fmt="vhdx", block_size="2M")
        images.io(where / "x.vhdx", "write -q -P 5 1M 3M", fmt="vhdx")

    assert_same(talk, tmp_path, prepare=prepare, real=SYSTEM_EMULATOR, ignore=IGNORE)
