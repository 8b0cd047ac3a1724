"""quorum and x-blockdev-change, played to our engine and to QEMU 7.2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import (
    FLAT,
    GRAPH,
    NODES,
    SIZE,
    Case,
    add,
    assert_case,
    contents,
    delete,
    fails,
    file,
    files,
    io,
    prepare,
    reopen,
    wire_names,
)
from tests.interop.differential import SYSTEM_EMULATOR, Do, WaitEvent
from tests.qemu import QemuImages


def quorum(*children: Any, vote_threshold: Any = 2, node_name: str = "q", **options: Any) -> Do:
    return add("quorum", node_name, children=list(children), vote_threshold=vote_threshold, **options)


def change(parent: str, **what: str) -> Do:
    return Do("x-blockdev-change", {"parent": parent, **what})


def mirror(replaces: str) -> Do:
    """Copy the quorum to d and put that in the place of a node, at once when it is done."""
    return Do(
        "blockdev-mirror",
        {
            "job-id": "j",
            "device": "q",
            "target": "d",
            "sync": "full",
            "replaces": replaces,
        },
    )


def bad(node: str, **data: Any) -> WaitEvent:
    return WaitEvent("QUORUM_REPORT_BAD", {"node-name": node, **wire_names(data)})


def overlays(where: Path) -> None:
    """Images whose backing files are quorums by json: names: a good one, and some that can't be opened."""
    prepare(where)
    b, c = ({"driver": "file", "filename": str(where / f"{name}.raw")} for name in "bc")
    names: list[dict[str, Any]] = [
        {"vote-threshold": "2", "children.0.driver": "file", "children.0.filename": b["filename"], "children.1": c},
        {"vote-threshold": "1", "children": b},
        {"vote-threshold": "1"},
        {"vote-threshold": "1", "no-such": 1, "children": [b]},
        {"vote-threshold": "1", "children": ["nope"]},
    ]
    for name, options in zip(("over", "json0", "json1", "json2", "json3"), names, strict=True):
        backing = "json:" + json.dumps({"driver": "quorum", **options})
        create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "quorum", "-b", backing]
        subprocess.run([*create, str(where / f"{name}.qcow2"), str(SIZE)], check=True, timeout=20)


def overlay(where: Path) -> None:
    """As prepare(), and p.qcow2 is of the length of the raw images and empty."""
    prepare(where)
    QemuImages("qemu-img", "qemu-io").run("create", "-q", "-f", "qcow2", where / "p.qcow2", str(SIZE))


def broken(name: str, iotype: str, code: int = 5, node_name: str | None = None) -> dict[str, Any]:
    """Options of a child whose requests of a kind fail."""
    rule = {"event": "none", "iotype": iotype, "errno": code}
    return {
        "driver": "blkdebug",
        "node-name": node_name or f"broken-{name}",
        "image": file(f"{name}.raw"),
        "inject-error": [rule],
    }


CASES = [
    # -- quorum: opening
    Case("no children", [quorum(), *files("a"), quorum("a"), quorum("a", vote_threshold=1), NODES]),
    Case(
        "threshold",
        [
            *files("b", "c"),
            *(quorum("b", "c", vote_threshold=limit) for limit in (0, -1, 3, "2", 1.5)),
            Do("blockdev-add", {"driver": "quorum", "node-name": "q", "children": ["b", "c"]}),
            quorum("b", "c"),
            NODES,
            GRAPH,
        ],
    ),
    Case(
        "threshold of more than 32 bits",
        [
            *files("b", "c"),
            # The real one takes the lower 32 bits for the threshold.
            Do(
                "blockdev-add",
                {"driver": "quorum", "node-name": "q", "children": ["b", "c"], "vote-threshold": (1 << 32) + 1},
                {"error": {"class": "GenericError", "desc": "threshold may not exceed children count"}},
            ),
        ],
    ),
    Case(
        "children of a wrong kind",
        [
            *files("b", "c"),
            quorum("b", "nope"),
            quorum("b", 5),
            quorum("b", None),
            quorum("b", {}),
            quorum("b", {"driver": "nope"}),
            quorum("b", file("nope.raw")),
            Do("blockdev-add", {"driver": "quorum", "node-name": "q", "children": "b", "vote-threshold": 1}),
            Do("blockdev-add", {"driver": "quorum", "node-name": "q", "vote-threshold": 1}),
            quorum("b", "c", read_pattern="nope"),
            quorum("b", "c", blkverify="on"),
            quorum("b", "c", no_such=1),
            FLAT,
        ],
    ),
    Case(
        "blkverify and rewriting",
        [
            *files("b", "c", "same"),
            quorum("b", "c", "same", blkverify=True),
            quorum("b", "c", blkverify=True, vote_threshold=1),
            quorum("b", "c", blkverify=True, rewrite_corrupted=True),
            quorum("b", "c", blkverify=True, rewrite_corrupted=True, vote_threshold=1, read_pattern="fifo"),
            NODES,
            GRAPH,
            delete("q"),
            quorum("b", "c", blkverify=True, rewrite_corrupted=False, read_pattern="quorum"),
            NODES,
            change("q", node="same"),
            change("q", child="children.0"),
        ],
    ),
    Case("different lengths", [*files("a", "long"), quorum("a", "long"), quorum("long", "a"), FLAT]),
    Case("odd length", [*files("odd"), quorum("odd", vote_threshold=1), FLAT]),
    Case(
        "children given inline",
        [
            quorum(file("b.raw", "b"), file("c.raw"), {"driver": "qcow2", "file": file("q.qcow2")}, vote_threshold=1),
            quorum(file("b.raw", "b"), {"driver": "raw", "file": file("c.raw")}, read_only=True),
            NODES,
            GRAPH,
            change("q", child="children.0"),
            delete("b"),
            delete("q"),
            FLAT,
        ],
    ),
    Case(
        "a child is probed",
        [
            quorum({"driver": "raw", "file": file("b.raw")}, {"file": file("c.raw")}),
            quorum(file("b.raw"), file("b.raw")),
        ],
    ),
    Case("the same child twice", [*files("b"), quorum("b", "b"), NODES, GRAPH, delete("b"), delete("q"), delete("b")]),
    Case(
        "permissions",
        [
            *files("b", "c"),
            quorum("b", "c"),
            Do("block_resize", {"node-name": "q", "size": 2 * SIZE}),
            Do("block_resize", {"node-name": "b", "size": 2 * SIZE}),
            add("qcow2", "over", file="b"),
            quorum("b", "c", node_name="q2", rewrite_corrupted=True),
            delete("q"),
            quorum("b", "c", node_name="q2", rewrite_corrupted=True),
            GRAPH,
            quorum("b", "c"),
        ],
    ),
    Case(
        "read-only",
        [
            add("file", "b", filename="$DIR/b.raw", read_only=True),
            *files("c"),
            quorum("b", "c", rewrite_corrupted=True),
            quorum("b", "c", rewrite_corrupted=True, read_only=True),
            quorum("b", "c"),
            GRAPH,
            FLAT,
        ],
    ),
    Case(
        "a quorum as backing file",
        [
            *files("b", "c"),
            quorum("b", "c", read_pattern="fifo"),
            add("raw", "hold", file="q"),
            Do(
                "blockdev-snapshot-sync",
                {"node-name": "q", "snapshot-file": "$DIR/over.qcow2", "snapshot-node-name": "o"},
            ),
            FLAT,
            delete("hold"),
            delete("q"),
            delete("b"),
            delete("c"),
            add("qcow2", "again", file=file("over.qcow2", "f"), read_only=True),
            NODES,
            GRAPH,
        ],
    ),
    Case(
        "children in a json: name",
        [
            add("qcow2", "over", file=file("over.qcow2", "f"), read_only=True),
            NODES,
            GRAPH,
            *(add("qcow2", f"o{number}", file=file(f"json{number}.qcow2"), read_only=True) for number in range(4)),
        ],
        prepare=lambda where: overlays(where),
    ),
    Case(
        "reopening",
        [
            *files("b", "c", "a"),
            quorum("b", "c"),
            reopen(driver="quorum", node_name="q", children=["b", "c"], vote_threshold=2),
            reopen(driver="quorum", node_name="q", children=["b", "a"], vote_threshold=2),
            reopen(driver="quorum", node_name="q", children=["b", "c"], vote_threshold=2, read_only=True),
            reopen(driver="quorum", node_name="q", children=["b"], vote_threshold=0),
            reopen(driver="file", node_name="b", filename="$DIR/b.raw", read_only=True),
            FLAT,
        ],
    ),
    # -- x-blockdev-change
    Case(
        "children come and go",
        [
            *files("a", "b", "c", "d"),
            quorum("b", "c"),
            change("q", child="children.0"),
            change("q", node="a"),
            GRAPH,
            change("q", child="children.0"),
            NODES,
            change("q", node="d"),
            change("q", child="children.3"),
            change("q", node="b"),
            GRAPH,
            change("q", child="children.1"),
            change("q", child="children.2"),
            change("q", child="children.3"),
            NODES,
            delete("b"),
            delete("q"),
            delete("b"),
            FLAT,
        ],
    ),
    Case(
        "refused changes",
        [
            *files("a", "b", "c", "d", "long"),
            quorum("b", "c"),
            add("raw", "r", file="d"),
            change("q"),
            change("q", child="children.0", node="a"),
            change("nope", child="children.0", node="a"),
            change("nope", child="children.0"),
            change("q", child="b"),
            change("q", child=""),
            change("q", node="nope"),
            change("q", node=""),
            change("q", node="q"),
            change("q", node="d"),
            change("q", node="b"),
            change("r", node="a"),
            change("r", child="file"),
            change("r", child="children.0"),
            change("r", node="d"),
            change("b", node="a"),
            Do("x-blockdev-change", {"node": "a"}),
            Do("x-blockdev-change", {"parent": "q", "node": 1}),
            change("q", node="long"),
            GRAPH,
            FLAT,
        ],
    ),
    Case(
        "a cycle",
        [
            *files("b", "c"),
            quorum("b", "c"),
            add("raw", "r", file="q"),
            change("q", node="r"),
            add("raw", "r2", file="r"),
            change("q", node="r2"),
            GRAPH,
        ],
    ),
    Case(
        "permissions of a new child",
        [
            *files("b", "c"),
            add("file", "ro", filename="$DIR/same.raw", read_only=True),
            quorum("b", "c", rewrite_corrupted=True),
            change("q", node="ro"),
            GRAPH,
            change("q", child="children.2"),
        ],
    ),
    Case(
        "a changed quorum is read and written",
        [
            *files("b", "c", "a"),
            quorum("b", "c"),
            change("q", node="a"),
            io("q", "read -q -P 98 0 4k"),
            bad("a"),
            io("q", "write -q -P 1 512 512"),
            change("q", child="children.0"),
            io("q", "write -q -P 2 1024 512"),
            contents("a.raw", "b.raw", "c.raw"),
        ],
        SYSTEM_EMULATOR,
    ),
    # -- quorum: requests
    Case(
        "a minority is outvoted",
        [
            *files("a", "b", "c"),
            quorum("a", "b", "c"),
            io("q", "read -q -P 98 1000 5000"),
            bad("a"),
            contents("a.raw", "b.raw", "c.raw"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "corrupted data are rewritten",
        [
            *files("b", "a", "c"),
            quorum("b", "a", "c", rewrite_corrupted=True),
            io("q", "read -q -P 98 4k 8k"),
            bad("a"),
            io("q", "read -q -P 98 4k 8k"),
            contents("a.raw", "b.raw", "c.raw"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "no majority",
        [
            *files("a", "b", "d"),
            quorum("a", "b", "d"),
            fails("q", "read -q 0 4k"),
            WaitEvent("QUORUM_FAILURE"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a tie",
        [
            *files("a", "d", "b", "c"),
            quorum("b", "a", "c", "d", vote_threshold=1),
            io("q", "read -q -P 98 0 4k"),
            bad("d"),
            bad("a"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "each says something else, and one is enough",
        [
            *files("a", "b", "d"),
            quorum("a", "b", "d", vote_threshold=1),
            io("q", "read -q -P 100 0 4k"),
            bad("b"),
            bad("a"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "fifo",
        [*files("a", "b", "c"), quorum("a", "b", "c", read_pattern="fifo"), io("q", "read -q -P 97 0 4k")],
        SYSTEM_EMULATOR,
    ),
    Case(
        "writes, zeros, discards and flushes",
        [
            *files("b", "c", "same"),
            quorum("b", "c", "same", discard="unmap"),
            io("q", "write -q -P 7 4k 4k"),
            io("q", "write -q -z 8k 4k"),
            io("q", "write -q -z -u 16k 4k"),
            io("q", "write -q -f -P 9 20k 4k"),
            io("q", "discard -q 32k 4k"),
            io("q", "flush"),
            contents("b.raw", "c.raw", "same.raw"),
            io("q", "write -q -c 0 4k", "write failed: Operation not supported\r\n"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a child that can't be read",
        [
            *files("b"),
            quorum(broken("c", "read"), "b", broken("same", "write")),
            io("q", "read -q -P 98 0 4k"),
            bad("broken-c", error="Input/output error"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "too many children can't be read",
        [
            *files("b"),
            quorum(broken("c", "read"), "b", broken("same", "read", 28)),
            fails("q", "read -q 0 4k", "No space left on device"),
            bad("broken-c", error="Input/output error"),
            bad("broken-same", error="No space left on device"),
            WaitEvent("QUORUM_FAILURE"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "fifo goes on to the next child",
        [
            *files("b"),
            quorum(broken("c", "read"), broken("same", "read"), "b", read_pattern="fifo"),
            io("q", "read -q -P 98 0 4k"),
            bad("broken-c"),
            bad("broken-same"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a child that can't be written",
        [
            *files("b", "same"),
            quorum(broken("c", "write"), "b", "same"),
            io("q", "write -q -P 5 1000 100"),
            bad("broken-c", type="write"),
            contents("b.raw", "c.raw", "same.raw"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "too many children can't be written",
        [
            *files("b"),
            quorum(broken("c", "write", 28), broken("same", "write"), "b"),
            fails("q", "write -q -P 5 1024 1024"),
            bad("broken-c", type="write"),
            bad("broken-same", type="write"),
            WaitEvent("QUORUM_FAILURE"),
            contents("b.raw", "c.raw", "same.raw"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a child that can't be flushed",
        [
            *files("b", "same"),
            quorum(broken("c", "flush"), "b", "same"),
            io("q", "write -q -P 5 1024 1024"),
            io("q", "flush"),
            bad("broken-c", type="flush"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "too many children can't be flushed",
        [
            *files("b"),
            quorum(broken("c", "flush", 28), broken("same", "flush", 28), "b"),
            io("q", "write -q -P 5 1024 1024"),
            fails("q", "flush", "No space left on device"),
            bad("broken-c", type="flush"),
            bad("broken-same", type="flush"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a stream from a quorum",
        [
            *files("b", "c", "a"),
            quorum("a", "b", "c", read_only=True),
            add("qcow2", "top", file=file("q.qcow2"), backing="q"),
            Do("block-stream", {"job-id": "j", "device": "top"}),
            WaitEvent("BLOCK_JOB_COMPLETED"),
            io("top", "read -q -P 98 0 64k"),
        ],
        SYSTEM_EMULATOR,
    ),
    Case(
        "a mirror replaces a child",
        [
            *files("b", "a", "c", "d"),
            add("raw", "other", file="b"),
            quorum("b", "a", "c"),
            mirror(replaces="d"),
            mirror(replaces="other"),
            mirror(replaces="a"),
            WaitEvent("BLOCK_JOB_READY"),
            Do("job-complete", {"id": "j"}),
            WaitEvent("JOB_STATUS_CHANGE", {"status": "null"}),
            GRAPH,
            FLAT,
            contents("d.raw"),
        ],
        events=False,
    ),
    Case(
        "a commit into a quorum",
        [
            *files("b", "c"),
            quorum("b", "c"),
            add("qcow2", "top", file=file("p.qcow2"), backing="q"),
            io("top", "write -q -P 9 4k 4k"),
            Do("block-commit", {"job-id": "j", "device": "top"}),
            WaitEvent("BLOCK_JOB_READY"),
            Do("job-complete", {"id": "j"}),
            WaitEvent("JOB_STATUS_CHANGE", {"status": "null"}),
            contents("b.raw", "c.raw"),
            GRAPH,
        ],
        SYSTEM_EMULATOR,
        prepare=lambda where: overlay(where),
        events=False,
    ),
    Case(
        "a commit into a read-only quorum",
        [
            add("file", "b", filename="$DIR/b.raw", auto_read_only=True),
            add("file", "c", filename="$DIR/c.raw"),
            quorum("b", "c", read_only=True),
            add("qcow2", "top", file=file("p.qcow2"), backing="q"),
            Do("block-commit", {"job-id": "j", "device": "top"}),
            Do("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "top"}]}),
            FLAT,
            GRAPH,
        ],
        prepare=lambda where: overlay(where),
        events=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same(case: Case, tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    assert_case(case, tmp_path)
