"""Block commands, played to our engine and to qemu-storage-daemon 7.2: answers and errors must be the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Step, Until, assert_same
from tests.qemu import QemuImages

MIB = 1 << 20


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in given.items()}


def add(driver: str, node_name: str, **options: Any) -> Do:
    return Do("blockdev-add", {"driver": driver, "node-name": node_name, **_arguments(options)})


def file(name: str, node_name: str | None = None, **options: Any) -> dict[str, Any]:
    """Options of a file node; *name* is inside the side's folder."""
    named = {"node-name": node_name} if node_name is not None else {}
    return {"driver": "file", "filename": f"$DIR/{name}", **named, **_arguments(options)}


def add_qcow2(name: str, node_name: str, **options: Any) -> Do:
    return add("qcow2", node_name, file=file(name, f"{node_name}-f"), **options)


def delete(node_name: str) -> Do:
    return Do("blockdev-del", {"node-name": node_name})


def resize(size: Any = None, ours: Any = None, **arguments: Any) -> Do:
    size_given = {"size": size} if size is not None else {}
    return Do("block_resize", {**_arguments(arguments), **size_given}, ours)


def relabel(device: str, image: str, backing: str) -> Do:
    return Do("change-backing-file", {"device": device, "image-node-name": image, "backing-file": backing})


def snapshot(**arguments: Any) -> Do:
    return Do("blockdev-snapshot", arguments)


def snapshot_sync(**arguments: Any) -> Do:
    return Do("blockdev-snapshot-sync", _arguments(arguments))


NODES = Do("query-named-block-nodes")
FLAT = Do("query-named-block-nodes", {"flat": True})
STATS = Do("query-blockstats", {"query-nodes": True})
GRAPH = Do("x-debug-query-block-graph")
TOP = add("qcow2", "top", file=file("top.qcow2"))
EXPLICIT_CHAIN = [
    add("file", "base-f", filename="$DIR/base.raw", read_only=True),
    add("raw", "base", file="base-f", read_only=True),
    add_qcow2("mid.qcow2", "mid", backing="base", read_only=True),
    add_qcow2("top.qcow2", "top", backing="mid"),
]


def listing(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())


def info(name: str) -> Call:
    """What qemu-img reads in an image of the side's folder, apart from what can't be the same."""

    def run(where: Path) -> dict[str, Any]:
        text = QemuImages("qemu-img", "qemu-io").run("info", "-U", "--output=json", where / name)
        facts: dict[str, Any] = json.loads(text)
        return facts

    return Call(run)


@dataclass(frozen=True)
class Talk:
    """A conversation. ignore: members that may differ. events: whether events and their order count."""

    steps: Sequence[Step]
    ignore: frozenset[str] = field(default_factory=frozenset)
    events: bool = True


def beside_job(command: str, *wanted: str, **arguments: Any) -> Talk:
    """What may be done beside a job that stands still in one of the states *wanted*, and what the graph is then."""
    chain = [
        add_qcow2(f"full{n}.qcow2", f"b{n}", backing=f"b{n - 1}" if n else None, read_only=n < 2) for n in range(3)
    ]
    return Talk(
        [
            *chain,
            Do(command, {"job-id": "j", "device": "b2", **_arguments(arguments)}),
            *([Do("block-job-pause", {"device": "j"})] if "paused" in wanted else []),
            Until("query-block-jobs", lambda jobs: bool(jobs) and jobs[0]["status"] in wanted),
            GRAPH,
            NODES,
            STATS,
            *(delete(name) for name in ("b2", "b1", "b0", "b2-f", "f")),
            resize(MIB, node_name="b2", ours={"error": {"class": "GenericError", "desc": "Device 'b2' is in use"}}),
            relabel("b2", "b1", "x"),
            relabel("f", "b1", "x"),
            add_qcow2("plain.qcow2", "ov"),
            snapshot(node="b2", overlay="ov"),
            snapshot(node="f", overlay="ov"),
            snapshot(node="ov", overlay="b2"),
            GRAPH,
            Do("block-job-cancel", {"device": "j", "force": True}),
            Until("query-block-jobs", lambda jobs: not jobs),
            delete("f"),
            # QEMU 7.2 leaves the base of a cancelled active commit writable; ours makes it read-only again.
            *([GRAPH] if "paused" in wanted else []),
        ],
        # How far the job got by then, and what it allocated, is chance.
        frozenset({"busy", "offset", "len", "actual-size", "virtual-size", "wr_highest_offset", "count"}),
        events=False,
    )


TALKS: dict[str, Talk | Sequence[Step]] = {
    # -- blockdev-add ------------------------------------------------------------------------------------------------
    "add: node names": [
        add("null-co", "1x"),
        add("null-co", ""),
        add("null-co", "é"),
        add("null-co", "a b"),
        add("null-co", "#block1"),
        add("null-co", "x" * 32),
        add("null-co", "x" * 31),
        add("null-co", "A-b.c_9"),
        add("null-co", "A-b.c_9"),
        Do("blockdev-add", {"driver": "null-co"}),
        Do("blockdev-add", {"driver": "qcow2", "file": file("top.qcow2")}),
        add("raw", "r", file={"driver": "null-co", "node-name": "r"}),
        add("raw", "r", file={"driver": "null-co", "node-name": "inner"}),
        add("raw", "s", file={"driver": "null-co", "node-name": "inner"}),
        FLAT,
    ],
    "add: what the schema refuses": [
        Do("blockdev-add"),
        Do("blockdev-add", {"node-name": "n"}),
        add("nope", "n"),
        Do("blockdev-add", {"driver": 1, "node-name": "n"}),
        add("null-co", "n", foo=1),
        add("null-co", "n", size="a"),
        add("null-co", "n", size=1.5),
        add("null-co", "n", read_only="on"),
        add("null-co", "n", cache=True),
        add("null-co", "n", cache={"foo": True}),
        add("null-co", "n", cache={"direct": 1}),
        add("null-co", "n", detect_zeroes="nope"),
        add("null-co", "n", discard="on"),
        add("null-co", "n", latency_ns=-1),
        add("raw", "n"),
        add("raw", "n", file=5),
        add("raw", "n", file=None),
        add("raw", "n", file={}),
        add("raw", "n", file={"driver": "file"}),
        add("raw", "n", file={**file("base.raw"), "bar": 1}),
        add("raw", "n", file={"driver": "raw", "file": {"driver": "raw", "file": {"driver": "nope"}}}),
        add("raw", "n", file="nope", backing=None),
        add("qcow2", "n", file=file("top.qcow2"), backing=7),
        add("qcow2", "n", file=file("top.qcow2"), overlap_check="nope"),
        add("qcow2", "n", file=file("top.qcow2"), overlap_check={"template": "nope"}),
        add("qcow2", "n", file=file("top.qcow2"), cache_size="1M"),
        add("file", "n", filename=5),
        add("file", "n", filename="$DIR/base.raw", locking="maybe"),
        add("file", "n", filename="$DIR/base.raw", aio="nope"),
    ],
    "add: options that don't fit together": [
        add("null-co", "n"),
        add("raw", "a", file="n", force_share=True),
        add("raw", "a", file="n", read_only=True, force_share=True),
        add("raw", "b", file="n", detect_zeroes="unmap"),
        add("raw", "b", file="n", detect_zeroes="unmap", discard="unmap"),
        add("raw", "c", file="n", detect_zeroes="on", cache={"direct": True, "no-flush": True}),
        add("raw", "d", file="n", auto_read_only=True, read_only=True),
        FLAT,
    ],
    "add: a window of raw": [
        add("null-co", "n", size=4096),
        add("raw", "r", file="n", offset=-1),
        add("raw", "r", file="n", size=-1),
        add("raw", "r", file="n", offset=1, size=100),
        add("raw", "r", file="n", offset=8192),
        add("raw", "r", file="n", size=8192),
        add("raw", "r", file="n", offset=4096, size=512),
        add("raw", "r1", file="n", offset=512),
        add("raw", "r2", file="n", size=512),
        add("raw", "r3", file="n", offset=1000),
        add("raw", "r4", file="n", offset=0),
        NODES,
        STATS,
        GRAPH,
    ],
    "add: null drivers": [
        add("null-co", "a"),
        add("null-aio", "b"),
        add("null-co", "c", size=1000),
        add("null-aio", "d", size=0, read_zeroes=True, latency_ns=1),
        add("null-co", "e", read_zeroes=False),
        NODES,
        STATS,
        GRAPH,
    ],
    "add: files": [
        add("file", "f", filename=""),
        add("file", "f", filename="$DIR/none"),
        add("file", "f", filename="$DIR"),
        add("file", "f", filename="$DIR/base.raw/x"),
        add("file", "f", filename="/dev/null"),
        add("file", "f", filename="file:$DIR/base.raw"),
        add("file", "f", filename="json:{}"),
        add("host_device", "f", filename="$DIR/base.raw"),
        add("host_device", "f", filename="$DIR/none"),
        add("file", "f", filename="$DIR/base.raw", aio="native"),
        add("file", "g", filename="$DIR/base.raw", aio="native", cache={"direct": True}),
        add("file", "h", filename="$DIR/base.raw", auto_read_only=True, discard="unmap", detect_zeroes="unmap"),
        add("file", "i", filename="$DIR/base.raw", drop_cache=False, locking="off", aio_max_batch=4),
        add("file", "j", filename="$DIR/odd.raw", read_only=True),
        NODES,
        STATS,
    ],
    "add: images that can't be opened": [
        add("raw", "r", file=file("none")),
        add("qcow2", "q", file=file("none")),
        add("qcow2", "q", file=file("base.raw")),
        add("qcow2", "q", file=file("empty.raw")),
        add("qcow2", "q", file="nope"),
        add("qcow2", "q", file=file("gone.qcow2")),
        add("qcow2", "q", file=file("gone.qcow2"), backing=None),
        add("qcow2", "q2", file=file("mislabelled.qcow2")),
        add("qcow2", "q2", file=file("mid.qcow2"), backing="q2"),
        add("qcow2", "q2", file=file("mid.qcow2"), backing="nope"),
        add("qcow2", "q2", file=file("mid.qcow2"), backing={"driver": "raw", "file": file("none")}),
        add("qcow2", "q2", file=file("mid.qcow2"), backing={"driver": "qcow2", "file": file("base.raw")}),
        FLAT,
        GRAPH,
    ],
    "add: backing in every form": [
        add("qcow2", "null", file=file("top.qcow2"), backing=None),
        delete("null"),
        add("raw", "base", file=file("base.raw")),
        add("qcow2", "by-name", file=file("top.qcow2"), backing="base"),
        add("qcow2", "inline", file=file("mid.qcow2"), backing={"driver": "raw", "file": file("odd.raw")}),
        NODES,
        STATS,
        GRAPH,
    ],
    "add: backing names relative, absolute and json": [
        add("qcow2", "absolute", file=file("absolute.qcow2")),
        add("qcow2", "json", file=file("json.qcow2")),
        NODES,
    ],
    "add: locks between nodes of one process": [
        add("qcow2", "a", file=file("top.qcow2"), backing=None),
        add("qcow2", "b", file=file("top.qcow2"), backing=None),
        add("qcow2", "c", file=file("top.qcow2"), backing=None, read_only=True),
        add("qcow2", "d", file=file("top.qcow2"), backing=None, read_only=True, force_share=True),
        delete("a"),
        add("qcow2", "e", file=file("top.qcow2"), backing=None, read_only=True),
        add("qcow2", "f", file=file("top.qcow2"), backing=None, read_only=True),
        add("qcow2", "g", file=file("top.qcow2"), backing=None),
        FLAT,
    ],
    "add: a second writer on one child": [
        add("file", "f", filename="$DIR/top.qcow2"),
        add("qcow2", "a", file="f", backing=None),
        add("qcow2", "b", file="f", backing=None),
        add("qcow2", "b", file="f", backing=None, read_only=True),
        add("raw", "c", file="f"),
        GRAPH,
        delete("f"),
        delete("a"),
        add("qcow2", "b", file="f", backing=None),
        GRAPH,
    ],
    "add: writers above read-only nodes": [
        add("file", "f", filename="$DIR/plain.qcow2", read_only=True),
        add("qcow2", "q", file="f"),
        add("qcow2", "q", file="f", read_only=True),
        add("raw", "r", file="f"),
        FLAT,
        GRAPH,
    ],
    "add: copy-on-read above a chain": [
        *EXPLICIT_CHAIN,
        add("copy-on-read", "cor", file="top"),
        add("raw", "raw", file="cor"),
        NODES,
        STATS,
        GRAPH,
        delete("cor"),
        delete("raw"),
        delete("cor"),
        GRAPH,
    ],
    "add: the form of old QEMUs": [
        Do("blockdev-add", {"options": {"driver": "null-co", "node-name": "x"}}, ours={"return": {}}),
        Do("blockdev-add", {"driver": "null-co", "node-name": "y", "options": {}}),
    ],
    # -- blockdev-del ------------------------------------------------------------------------------------------------
    "del: refusals and their order": [
        Do("blockdev-del"),
        Do("blockdev-del", {"node-name": 1}),
        Do("blockdev-del", {"id": "top"}),
        delete("nope"),
        *EXPLICIT_CHAIN,
        delete("base-f"),
        delete("base"),
        delete("mid"),
        delete("mid-f"),
        delete("top-f"),
        delete("top"),
        delete("top"),
        delete("top-f"),
        delete("base"),
        delete("mid"),
        delete("base-f"),
        delete("base"),
        delete("base-f"),
        NODES,
    ],
    "del: inline children go with their parent": [
        add("raw", "a", file={"driver": "raw", "node-name": "b", "file": {"driver": "null-co", "node-name": "c"}}),
        add("raw", "d", file="c"),
        delete("b"),
        delete("c"),
        delete("a"),
        NODES,
        delete("c"),
        delete("d"),
        NODES,
    ],
    "del: a base that two chains share": [
        add("raw", "base", file=file("base.raw"), read_only=True),
        add("qcow2", "one", file=file("mid.qcow2"), backing="base"),
        add("qcow2", "two", file=file("plain.qcow2"), backing="base"),
        GRAPH,
        delete("base"),
        delete("one"),
        delete("base"),
        delete("two"),
        delete("base"),
        GRAPH,
    ],
    # -- block_resize ------------------------------------------------------------------------------------------------
    "resize: arguments": [
        add("null-co", "n", size=1024),
        resize(),
        resize("1", node_name="n"),
        resize(5),
        resize(1, device="x"),
        resize(1, node_name="x"),
        resize(1, device="x", node_name="y"),
        resize(1, device="n"),
        resize(1, device="x", node_name="n"),
        resize(-1, node_name="n"),
        resize(1 << 64, node_name="n"),
    ],
    "resize: drivers that can't": [
        add("null-co", "n", size=1024),
        resize(2048, node_name="n"),
        resize(512, node_name="n"),
        resize(1024, node_name="n"),
        add("raw", "r", file="n", size=512),
        resize(1024, node_name="r"),
        add("raw", "s", file="n"),
        resize(4096, node_name="s"),
    ],
    "resize: files": [
        add("file", "f", filename="$DIR/odd.raw"),
        resize(4000, node_name="f"),
        NODES,
        resize(4096, node_name="f"),
        resize(1 << 62, node_name="f"),
        resize((1 << 63) - 1, node_name="f"),
        add("raw", "r", file="f", offset=512),
        resize(8192, node_name="r"),
        resize(8192, node_name="f"),
        resize(100, node_name="r"),
        resize((1 << 63) - 1, node_name="r"),
        NODES,
        delete("r"),
        add("raw", "r", file="f"),
        resize(1, node_name="r"),
        resize(0, node_name="r"),
        NODES,
    ],
    "resize: read-only nodes": [
        add("file", "f", filename="$DIR/base.raw", read_only=True),
        add("raw", "r", file="f", read_only=True),
        add("qcow2", "q", file=file("plain.qcow2"), read_only=True),
        resize(2 * MIB, node_name="f"),
        resize(2 * MIB, node_name="r"),
        resize(MIB, node_name="r"),
        resize(2 * MIB, node_name="q"),
    ],
    "resize: qcow2": Talk(
        [
            add_qcow2("plain.qcow2", "q"),
            resize(1000, node_name="q"),
            resize(2 * MIB, node_name="q"),
            NODES,
            resize(MIB, node_name="q"),
            resize(512, node_name="q"),
            resize(3 * MIB, node_name="q"),
            resize(1 << 62, node_name="q"),
            resize(4096, node_name="q-f"),
            GRAPH,
            delete("q"),
            info("plain.qcow2"),
        ],
        frozenset({"actual-size"}),
    ),
    "resize: an overlay shorter than its backing file": Talk(
        [
            add("qcow2", "q", file=file("short.qcow2")),
            NODES,
            resize(MIB, node_name="q"),
            resize(2 * MIB, node_name="q"),
            delete("q"),
            Call(lambda where: QemuImages("qemu-img", "qemu-io").run("map", "--output=json", where / "short.qcow2")),
        ],
        frozenset({"actual-size"}),
    ),
    "resize: a backing node is busy": [
        *EXPLICIT_CHAIN,
        # QEMU prints a null pointer here, "Device '(null)' is in use".
        resize(2 * MIB, node_name="mid", ours={"error": {"class": "GenericError", "desc": "Device 'mid' is in use"}}),
        resize(2 * MIB, node_name="base-f"),
        resize(2 * MIB, node_name="top-f"),
    ],
    # -- change-backing-file -----------------------------------------------------------------------------------------
    "relabel: refusals": [
        *EXPLICIT_CHAIN,
        add("qcow2", "other", file=file("plain.qcow2")),
        Do("change-backing-file", {"device": "top"}),
        relabel("nope", "top", "x"),
        relabel("top", "nope", "x"),
        relabel("top", "base", "x"),
        relabel("top", "top-f", "x"),
        relabel("mid", "mid", "x"),
        relabel("top-f", "top", "x"),
        relabel("other", "top", "x"),
        relabel("other", "other", "x"),
    ],
    "relabel: the string in the image": [
        *EXPLICIT_CHAIN,
        relabel("top", "top", "$DIR/mid.qcow2"),
        NODES,
        relabel("top", "top", "elsewhere.qcow2"),
        NODES,
        info("top.qcow2"),
        relabel("top", "top", ""),
        NODES,
        info("top.qcow2"),
        relabel("top", "top", "x" * 1023),
        info("top.qcow2"),
        relabel("top", "top", "x" * 1024),
        relabel("top", "top", "y" * 3000),
        info("top.qcow2"),
    ],
    "relabel: an image in the middle is made writable for it": Talk(
        [
            TOP,
            Do("query-block"),
            *EXPLICIT_CHAIN[:2],
            add_qcow2("other-mid.qcow2", "mid", backing="base", read_only=True),
            add_qcow2("plain.qcow2", "over", backing="mid"),
            relabel("over", "mid", "x.raw"),
            NODES,
            GRAPH,
            info("other-mid.qcow2"),
        ],
        # QEMU 7.2 labels the raw base as qcow2, the format of the overlay.
        frozenset({"backing-filename-format"}),
    ),
    # -- blockdev-snapshot -------------------------------------------------------------------------------------------
    "snapshot: refusals": [
        TOP,
        add("qcow2", "ov", file=file("plain.qcow2"), backing=None),
        add("null-co", "null"),
        add("raw", "raw", file="null"),
        add("copy-on-read", "cor", file="null"),
        add("qcow2", "backed", file=file("other-mid.qcow2"), backing="raw"),
        snapshot(),
        snapshot(node="top"),
        snapshot(node="top", overlay="ov", extra=1),
        snapshot(node="x", overlay="ov"),
        snapshot(node="top", overlay="x"),
        snapshot(node="top", overlay="top"),
        snapshot(node="top", overlay="null"),
        snapshot(node="top", overlay="raw"),
        snapshot(node="top", overlay="cor"),
        snapshot(node="top", overlay="backed"),
        snapshot(node="raw", overlay="ov"),
        snapshot(node="ov", overlay="ov"),
        GRAPH,
    ],
    "snapshot: an overlay that others read": [
        TOP,
        add("qcow2", "ov", file=file("plain.qcow2"), backing=None),
        add("qcow2", "user", file=file("other-mid.qcow2"), backing="ov"),
        snapshot(node="top", overlay="ov"),
        add("qcow2", "inside", file="ov"),
        GRAPH,
    ],
    "snapshot: unlabelled overlay": [
        *EXPLICIT_CHAIN,
        add_qcow2("plain.qcow2", "ov"),
        snapshot(node="top", overlay="ov"),
        NODES,
        STATS,
        GRAPH,
        snapshot(node="top", overlay="ov"),
        snapshot(node="ov", overlay="top"),
        delete("top"),
        delete("ov"),
        NODES,
        GRAPH,
        delete("top"),
    ],
    "snapshot: overlay labelled beforehand": [
        TOP,
        add_qcow2("labelled.qcow2", "ov", backing=None),
        FLAT,
        snapshot(node="top", overlay="ov"),
        NODES,
        GRAPH,
    ],
    "snapshot: the parents move": [
        TOP,
        add("raw", "user", file="top"),
        add("raw", "reader", file="top", read_only=True),
        add_qcow2("plain.qcow2", "ov"),
        snapshot(node="top", overlay="ov"),
        NODES,
        STATS,
        GRAPH,
        delete("ov"),
        delete("user"),
        delete("reader"),
        delete("ov"),
        GRAPH,
    ],
    "snapshot: a read-only overlay below a writer": [
        TOP,
        add("copy-on-read", "user", file="top"),
        add("qcow2", "inside", file="user"),
        add("file", "f", filename="$DIR/base.raw"),
        add("raw", "r", file="f"),
        add("qcow2", "ov", file=file("plain.qcow2"), read_only=True),
        snapshot(node="top", overlay="ov"),
        snapshot(node="r", overlay="ov"),
        GRAPH,
    ],
    "snapshot: twice": [
        TOP,
        add_qcow2("plain.qcow2", "ov1"),
        add_qcow2("labelled.qcow2", "ov2", backing=None),
        snapshot(node="top", overlay="ov1"),
        snapshot(node="ov1", overlay="ov2"),
        NODES,
        GRAPH,
        delete("top"),
        delete("ov1"),
        delete("ov2"),
        delete("ov1"),
        delete("top"),
        NODES,
    ],
    "snapshot: of a raw node": [
        add("raw", "base", file=file("base.raw", "base-f")),
        add_qcow2("plain.qcow2", "ov"),
        snapshot(node="base", overlay="ov"),
        NODES,
        GRAPH,
        delete("ov"),
        FLAT,
        GRAPH,
    ],
    "snapshot: of a backing node": [
        *EXPLICIT_CHAIN,
        add_qcow2("plain.qcow2", "ov"),
        snapshot(node="mid", overlay="ov"),
        snapshot(node="mid-f", overlay="ov"),
        GRAPH,
    ],
    # -- blockdev-snapshot-sync --------------------------------------------------------------------------------------
    "sync: refusals": [
        TOP,
        snapshot_sync(),
        snapshot_sync(snapshot_file="$DIR/s"),
        snapshot_sync(device="top", snapshot_file="$DIR/s"),
        snapshot_sync(node_name="nope", snapshot_file="$DIR/s"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="top"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", mode="nope"),
        Call(listing),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", format="nope"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", format="raw"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", format="file"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", format="null-co"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s", format="copy-on-read"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/none/s", snapshot_node_name="s"),
        snapshot_sync(node_name="top", snapshot_file="foo:s", snapshot_node_name="s"),
        snapshot_sync(node_name="top", snapshot_file="", snapshot_node_name="s"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/top.qcow2", snapshot_node_name="s"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/none", snapshot_node_name="s", mode="existing"),
        Call(listing),
        NODES,
        GRAPH,
    ],
    "sync: a bad node name is found after the image is made": [
        TOP,
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="1x"),
        Call(listing),
        GRAPH,
    ],
    "sync: without parents the overlay goes at once": [
        TOP,
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s"),
        FLAT,
        GRAPH,
        info("s"),
    ],
    "sync: the parents move to the new image": [
        TOP,
        add("raw", "user", file="top"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s"),
        NODES,
        STATS,
        GRAPH,
        snapshot_sync(node_name="s", snapshot_file="$DIR/t", snapshot_node_name="t"),
        snapshot_sync(node_name="s", snapshot_file="$DIR/u", snapshot_node_name="u"),
        NODES,
        GRAPH,
        info("s"),
        info("t"),
        delete("user"),
        FLAT,
    ],
    "sync: of a node whose name is json": [
        *EXPLICIT_CHAIN,
        add("raw", "user", file="top"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s"),
        NODES,
        delete("user"),
    ],
    "sync: an existing image": [
        TOP,
        add("raw", "user", file="top"),
        snapshot_sync(
            node_name="top", snapshot_file="$DIR/labelled.qcow2", snapshot_node_name="s", mode="existing", format="raw"
        ),
        snapshot_sync(node_name="top", snapshot_file="$DIR/base.raw", snapshot_node_name="s", mode="existing"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/mid.qcow2", snapshot_node_name="s", mode="existing"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/labelled.qcow2", snapshot_node_name="s", mode="existing"),
        NODES,
        GRAPH,
    ],
    "sync: modes come from the old node": [
        add("qcow2", "top", file=file("plain.qcow2"), cache={"direct": True, "no-flush": True}, discard="unmap"),
        add("raw", "user", file="top"),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s"),
        NODES,
        GRAPH,
    ],
    "sync: of a read-only node": [
        add("qcow2", "top", file=file("plain.qcow2"), read_only=True),
        add("raw", "user", file="top", read_only=True),
        snapshot_sync(node_name="top", snapshot_file="$DIR/s", snapshot_node_name="s"),
        NODES,
        GRAPH,
    ],
    "sync: of a backing node": [
        *EXPLICIT_CHAIN,
        snapshot_sync(node_name="mid", snapshot_file="$DIR/s", snapshot_node_name="s"),
        Call(listing),
        GRAPH,
    ],
    # -- queries -----------------------------------------------------------------------------------------------------
    "query: an empty engine": [
        NODES,
        FLAT,
        STATS,
        GRAPH,
        Do("query-block"),
        Do("query-blockstats"),
    ],
    "query: misuse": [
        Do("query-named-block-nodes", {"flat": 1}),
        Do("query-named-block-nodes", {"flat": None}),
        Do("query-named-block-nodes", {"deep": True}),
        Do("query-blockstats", {"query-nodes": "yes"}),
        Do("query-block", {"device": "x"}),
        Do("x-debug-query-block-graph", {"x": 1}),
        Do("query-version", {"x": 1}),
        Do("query-commands", {"x": 1}),
        Do("query-qmp-schema", {"x": 1}),
        Do("nope"),
        Do("nope", {"x": 1}),
    ],
    "query: a chain node by node": [*EXPLICIT_CHAIN, NODES, FLAT, STATS, GRAPH],
    "query: a chain opened by its top": [TOP, NODES, FLAT, STATS, GRAPH, Do("query-blockstats")],
    "query: what formats tell": Talk(
        [
            add("qcow2", "v2", file=file("v2.qcow2")),
            add("qcow2", "lazy", file=file("lazy.qcow2")),
            add("qcow2", "extended", file=file("extended.qcow2")),
            add("qcow2", "bits", file=file("bits.qcow2")),
            add("qcow2", "zstd", file=file("zstd.qcow2")),
            add("qcow2", "data", file=file("data.qcow2")),
            add("qcow2", "snapshots", file=file("snapshots.qcow2"), read_only=True),
            NODES,
            STATS,
            GRAPH,
        ],
        frozenset({"dirty-bitmaps"}),
    ),
    "query: weak options keep the plain name": [
        add("qcow2", "q", file=file("plain.qcow2"), lazy_refcounts=True, l2_cache_size=MIB, discard="unmap"),
        add("qcow2", "r", file=file("lazy.qcow2", locking="off", aio="threads"), overlap_check="none"),
        FLAT,
    ],
    "query: version": Talk([Do("query-version")], frozenset({"package"})),
    # -- beside jobs -------------------------------------------------------------------------------------------------
    "job: stream": beside_job("block-stream", "paused", speed=1, filter_node_name="f"),
    "job: stream to a base": beside_job("block-stream", "paused", speed=1, base_node="b0"),
    "job: commit": beside_job("block-commit", "paused", speed=1, top_node="b1", base_node="b0", filter_node_name="f"),
    "job: active commit": beside_job("block-commit", "ready", filter_node_name="f"),
    "job: active commit with an implicit filter": beside_job("block-commit", "ready"),
}


@pytest.fixture(scope="session")
def templates(images: QemuImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that every conversation begins with."""
    where = tmp_path_factory.mktemp("templates")
    images.create(where / "base.raw", MIB, fmt="raw")
    (where / "odd.raw").write_bytes(bytes(1_000_000))
    (where / "empty.raw").touch()
    images.create(where / "mid.qcow2", backing="base.raw", backing_format="raw")
    images.create(where / "top.qcow2", backing="mid.qcow2")
    images.create(where / "plain.qcow2", MIB)
    images.create(where / "other-mid.qcow2", backing="base.raw", backing_format="raw")
    images.run("create", "-q", "-u", "-f", "qcow2", "-b", "none.qcow2", "-F", "qcow2", where / "gone.qcow2", "1M")
    images.run("create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "qcow2", where / "mislabelled.qcow2", "1M")
    images.create(where / "short.qcow2", MIB // 2, backing="base.raw", backing_format="raw")
    images.io(where / "base.raw", f"write -P 7 {MIB // 2} 128k", fmt="raw")
    images.create(where / "v2.qcow2", 2 * MIB, compat="0.10", cluster_size=4096)
    images.create(where / "lazy.qcow2", MIB, lazy_refcounts="on")
    images.create(where / "extended.qcow2", MIB, extended_l2="on", cluster_size=131072)
    images.create(where / "bits.qcow2", MIB, refcount_bits=1, cluster_size=512)
    images.create(where / "zstd.qcow2", MIB, compression_type="zstd")
    for n in range(3):
        below = {"backing": f"full{n - 1}.qcow2"} if n else {"size": 4 * MIB}
        images.io(images.create(where / f"full{n}.qcow2", **below), f"write -P {n + 1} {n * 512}k 2M")  # type: ignore[arg-type]
    images.create(where / "snapshots.qcow2", MIB)
    for name in ("first", "second"):
        images.run("snapshot", "-c", name, where / "snapshots.qcow2")
    images.run("bitmap", "--add", where / "snapshots.qcow2", "bitmap0")
    images.run("bitmap", "--add", "--disable", "-g", "4096", where / "snapshots.qcow2", "bitmap1")
    return where


@pytest.fixture
def prepare(templates: Path, images: QemuImages) -> Callable[[Path], None]:
    """Fills a side's folder."""

    def fill(where: Path) -> None:
        shutil.copytree(templates, where, dirs_exist_ok=True)
        absolute = ("-u", "-f", "qcow2", "-b", where / "base.raw", "-F", "raw")
        images.run("create", "-q", *absolute, where / "absolute.qcow2", "1M")
        labelled = ("-u", "-f", "qcow2", "-b", where / "top.qcow2", "-F", "qcow2")
        images.run("create", "-q", *labelled, where / "labelled.qcow2", "1M")
        name = f'json:{{"driver":"raw","size":"512","file":{{"driver":"file","filename":"{where}/base.raw"}}}}'
        images.run("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", where / "json.qcow2", "1M")
        images.run("create", "-q", "-f", "qcow2", "-o", f"data_file={where}/data.raw", where / "data.qcow2", "1M")

    return fill


@pytest.mark.parametrize("name", TALKS)
def test_same_answers(name: str, qsd: str, prepare: Callable[[Path], None], tmp_path: Path) -> None:
    talk = TALKS[name]
    if not isinstance(talk, Talk):
        talk = Talk(talk)
    assert_same(talk.steps, tmp_path, prepare=prepare, ignore=talk.ignore, events=talk.events)
