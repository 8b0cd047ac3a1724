"""compress, preallocate and the write threshold, played to our engine and to QEMU 7.2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import (
    FLAT,
    GRAPH,
    MIB,
    NODES,
    SIZE,
    Case,
    add,
    assert_case,
    delete,
    fails,
    file,
    files,
    io,
    lengths,
    reopen,
)
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, WaitEvent
from tests.qemu import QemuImages

CONFLICT = (
    "Permission conflict on node 'f': permissions 'write' are both required by node 'other' "
    "(uses node 'f' as 'file' child) and unshared by node 'p' (uses node 'f' as 'file' child).\r\n"
)


def threshold(node_name: str, limit: Any) -> Do:
    return Do("block-set-write-threshold", {"node-name": node_name, "write-threshold": limit})


CASES = [
    # -- compress
    Case(
        "compress over what can't be compressed",
        [
            *files("b"),
            add("compress", "k", file="b"),
            add("compress", "k", file={"driver": "raw", "file": "b"}),
            add("compress", "k", file={"driver": "null-co", "node-name": "n"}),
            add("compress", "k", file="nope"),
            Do("blockdev-add", {"driver": "compress", "node-name": "k"}),
            add("compress", "k", file={"driver": "compress", "file": {"driver": "qcow2", "file": file("q.qcow2")}}),
            FLAT,
        ],
    ),
    Case(
        "compress",
        [
            add("qcow2", "q2", file=file("q.qcow2", "f")),
            add("compress", "k", file="q2"),
            NODES,
            GRAPH,
            reopen(driver="compress", node_name="k", file="q2"),
            reopen(driver="compress", node_name="k", file="q2", read_only=True),
            delete("q2"),
            delete("k"),
        ],
    ),
    Case(
        "compress over copy-on-read",
        [
            add("qcow2", "q2", file=file("q.qcow2", "f")),
            add("copy-on-read", "cor", file="q2"),
            add("compress", "k", file="cor"),
            FLAT,
        ],
    ),
    Case(
        "compressed writes",
        [
            add("qcow2", "q2", file=file("q.qcow2", "f")),
            add("compress", "k", file="q2"),
            io("k", "write -q -P 5 0 128k"),
            io("k", "write -q -P 6 200k 1k"),
            fails("k", "write -q -P 7 64k 64k"),
            fails("k", "write -q -P 7 201k 1k"),
            io("k", "write -q -z 0 64k"),
            io("k", "read -q -P 6 200k 1k"),
            io("k", "read -q -P 0 192k 8k"),
            io("k", "flush"),
            delete("k"),
            delete("q2"),
            Call(lambda where: QemuImages("qemu-img", "qemu-io").run("check", where / "q.qcow2")),
            Call(lambda where: QemuImages("qemu-img", "qemu-io").run("map", "--output=json", where / "q.qcow2")),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "compress of an odd length",
        [
            add("qcow2", "q2", file=file("odd.qcow2", "f")),
            add("compress", "k", file="q2"),
            FLAT,
            add("raw", "r", file="k"),
            io("k", "read -q -P 0 0 64k"),
        ],
        SYSTEM_EMULATOR,
    ),
    # -- preallocate
    Case(
        "preallocate: options",
        [
            *files("b"),
            *(
                add("preallocate", "p", file="b", prealloc_align=align)
                for align in (511, -512, 1, "1M", (1 << 63) - 1, 1 << 64)
            ),
            *(add("preallocate", "p", file="b", prealloc_size=size) for size in (-1, "1M", 1 << 63)),
            Do("blockdev-add", {"driver": "preallocate", "node-name": "p"}),
            add("preallocate", "p", file="b", prealloc_align=4096, prealloc_size=0),
            NODES,
            GRAPH,
            reopen(driver="preallocate", node_name="p", file="b"),
            reopen(driver="preallocate", node_name="p", file="b", prealloc_align=513, prealloc_size=0),
            reopen(driver="preallocate", node_name="p", file="b", prealloc_align=8192, prealloc_size=-5),
            reopen(driver="preallocate", node_name="p", file="b", prealloc_align=8192, prealloc_size=99),
            reopen(
                driver="preallocate", node_name="p", file="b", prealloc_align=8192, prealloc_size=99, read_only=True
            ),
        ],
    ),
    Case(
        "preallocate: an alignment of 0",
        [
            *files("b"),
            # The real one divides by it at the first write, and dies.
            Do(
                "blockdev-add",
                {"driver": "preallocate", "node-name": "p", "file": "b", "prealloc-align": 0},
                {
                    "error": {
                        "class": "GenericError",
                        "desc": "prealloc-align parameter of preallocate filter is not aligned to 512",
                    }
                },
            ),
        ],
    ),
    Case(
        "preallocate below qcow2",
        [
            add("preallocate", "p", file=file("p.qcow2", "f"), prealloc_align=64 << 10, prealloc_size=MIB),
            add("qcow2", "q2", file="p"),
            GRAPH,
            lengths("p.qcow2"),
            io("q2", "write -q -P 5 64k 64k"),
            lengths("p.qcow2"),
            io("q2", "write -q -P 6 512k 256k"),
            lengths("p.qcow2"),
            io("q2", "write -q -z 128k 128k"),
            io("q2", "flush"),
            lengths("p.qcow2"),
            NODES,
            add("raw", "other", file="f"),
            io("other", "write -q 0 512", CONFLICT),
            io("q2", "read -q -P 5 64k 64k"),
            delete("q2"),
            lengths("p.qcow2"),
            GRAPH,
            FLAT,
            delete("p"),
            Call(lambda where: QemuImages("qemu-img", "qemu-io").run("check", where / "p.qcow2")),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "preallocate goes with its file",
        [
            add(
                "qcow2",
                "q2",
                file={
                    "driver": "preallocate",
                    "file": file("p.qcow2"),
                    "prealloc-align": 4096,
                    "prealloc-size": 100000,
                },
            ),
            io("q2", "write -q -P 5 64k 64k"),
            lengths("p.qcow2"),
            Do("block_resize", {"node-name": "q2", "size": 4 * MIB}),
            io("q2", "write -q -P 5 3M 64k"),
            lengths("p.qcow2"),
            reopen(
                driver="qcow2",
                node_name="q2",
                file={
                    "driver": "preallocate",
                    "file": file("p.qcow2"),
                    "prealloc-align": 4096,
                    "prealloc-size": 100000,
                },
                read_only=True,
            ),
            lengths("p.qcow2"),
            FLAT,
            delete("q2"),
            lengths("p.qcow2"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "preallocate by steps that don't fit the file",
        [
            add(
                "preallocate",
                "p",
                file=file("p.qcow2", "f"),
                prealloc_align=MIB,
                prealloc_size=512 << 10,
            ),
            add("qcow2", "q2", file="p"),
            io("q2", "write -q -P 5 64k 64k"),
            lengths("p.qcow2"),
            io("q2", "write -q -P 5 128k 700k"),
            lengths("p.qcow2"),
            io("q2", "write -q -P 5 0 1M"),
            lengths("p.qcow2"),
            delete("q2"),
            lengths("p.qcow2"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "preallocate is resized",
        [
            *files("b"),
            add("preallocate", "p", file="b", prealloc_align=4096, prealloc_size=100000),
            Do("block_resize", {"node-name": "p", "size": 3 * SIZE}),
            lengths("b.raw"),
            NODES,
            Do("block_resize", {"node-name": "p", "size": SIZE // 2}),
            lengths("b.raw"),
            Do("block_resize", {"node-name": "b", "size": SIZE}),
            Do("block_resize", {"node-name": "p", "size": -1}),
            FLAT,
        ],
    ),
    # -- the write threshold
    Case(
        "write threshold: arguments",
        [
            *files("b"),
            threshold("nope", 5),
            threshold("b", "5"),
            threshold("b", 1 << 64),
            threshold("b", 1.5),
            Do("block-set-write-threshold", {"node-name": "b"}),
            Do("block-set-write-threshold", {"write-threshold": 1}),
            threshold("b", 4096),
            NODES,
            threshold("b", 0),
            NODES,
            threshold("b", -1),
            NODES,
            threshold("b", (1 << 63) - 1),
            FLAT,
        ],
    ),
    Case(
        "write threshold: passed",
        [
            *files("b"),
            threshold("b", 8192),
            io("b", "write -q 4k 4k"),
            io("b", "read -q 0 64k"),
            FLAT,
            io("b", "write -q 8000 200"),
            WaitEvent("BLOCK_WRITE_THRESHOLD", {"amount-exceeded": 8}),
            FLAT,
            io("b", "write -q 16k 4k"),
            threshold("b", 1),
            io("b", "write -q -z 0 4k"),
            WaitEvent("BLOCK_WRITE_THRESHOLD", {"amount-exceeded": 4095}),
            threshold("b", 4096),
            threshold("b", 0),
            io("b", "write -q 0 64k"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "write threshold: an image grows",
        [
            add("qcow2", "q2", file=file("q.qcow2", "f")),
            threshold("f", 400000),
            io("q2", "write -q 0 64k"),
            FLAT,
            io("q2", "write -q 64k 64k"),
            WaitEvent("BLOCK_WRITE_THRESHOLD"),
            FLAT,
        ],
        SYSTEM_EMULATOR,
        # QEMU writes the new table of level 2 at once.
        ignore={"actual-size"},
    ),
    Case(
        "write threshold: of a node that is gone",
        [*files("b"), threshold("b", 100), delete("b"), threshold("b", 100), *files("b"), FLAT],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same(case: Case, tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    assert_case(case, tmp_path)
