"""blockdev-reopen, played to our engine and to qemu-storage-daemon 7.2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, Step, WaitEvent, assert_same
from tests.qemu import QemuImages

GRAPH = Do("x-debug-query-block-graph")
NODES = Do("query-named-block-nodes", {"flat": True})


def file(name: str, node_name: str | None = None, **more: Any) -> dict[str, Any]:
    named = {"node-name": node_name} if node_name is not None else {}
    return {"driver": "file", "filename": f"$DIR/{name}", **named, **more}


def add(driver: str, name: str, **more: Any) -> Do:
    return Do(
        "blockdev-add", {"driver": driver, "node-name": name, **{k.replace("_", "-"): v for k, v in more.items()}}
    )


def qcow2(name: str, **more: Any) -> Do:
    return add("qcow2", name, file=file(f"{name}.qcow2", f"{name}-f"), **more)


def node(driver: str, name: str | None, **more: Any) -> dict[str, Any]:
    named = {"node-name": name} if name is not None else {}
    return {"driver": driver, **named, **{k.replace("_", "-"): v for k, v in more.items()}}


def reopen(*options: dict[str, Any], ours: Any = None) -> Do:
    return Do("blockdev-reopen", {"options": list(options)}, ours)


def again(name: str, **more: Any) -> dict[str, Any]:
    return node("qcow2", name, file=f"{name}-f", **more)


CHAIN = [qcow2("base"), qcow2("mid", backing="base"), qcow2("top", backing="mid")]

TALKS: dict[str, list[Step]] = {
    "as it was": [qcow2("one"), reopen(again("one")), NODES, GRAPH],
    "what must be given": [
        qcow2("one"),
        reopen(node("qcow2", "one")),
        reopen(node("qcow2", None, file="one-f")),
        reopen(node("qcow2", "nope", file="one-f")),
        Do("blockdev-reopen", {}),
        Do("blockdev-reopen", {"options": {}}),
        Do("blockdev-reopen", {"options": [again("one")], "more": 1}),
    ],
    "what cannot change": [
        qcow2("one"),
        reopen(node("raw", "one", file="one-f")),
        reopen(again("one", force_share=True)),
        reopen(again("one", data_file="one-f")),
        reopen(node("qcow2", "one", file=file("two.qcow2"))),
        reopen(node("qcow2", "one", file=file("one.qcow2", locking="off"))),
        NODES,
    ],
    "read-only and back": [
        qcow2("one"),
        reopen(again("one", read_only=True)),
        NODES,
        GRAPH,
        reopen(again("one", read_only=False)),
        NODES,
        GRAPH,
    ],
    "the child keeps the read-only it inherited": [
        qcow2("one"),
        reopen(again("one", read_only=True)),
        reopen(again("one")),
        NODES,
    ],
    "read-only with a writer above": [
        qcow2("one"),
        add("copy-on-read", "above", file="one"),
        reopen(again("one", read_only=True)),
        GRAPH,
        NODES,
    ],
    "modes are reset": [
        qcow2("one", discard="unmap", detect_zeroes="unmap", cache={"no-flush": True}),
        NODES,
        reopen(again("one")),
        NODES,
        reopen(again("one", detect_zeroes="on", cache={"no-flush": True})),
        NODES,
        reopen(again("one", discard="ignore", detect_zeroes="unmap")),
        reopen(again("one", discard="nope")),
        NODES,
    ],
    "options of qcow2": [
        qcow2("one", lazy_refcounts=True),
        reopen(again("one", lazy_refcounts=True, l2_cache_size=1 << 20)),
        reopen(again("one", overlap_check="all")),
        reopen(again("one", overlap_check={"template": "none", "main-header": True})),
        reopen(again("one", l2_cache_entry_size=513)),
        reopen(again("one", cache_size=1 << 20, l2_cache_size=1 << 20, refcount_cache_size=1 << 20)),
        reopen(again("one", pass_discard_request=True, cache_clean_interval=10)),
        reopen(again("one")),
        NODES,
    ],
    "backing has to be said": [
        *CHAIN,
        reopen(again("top")),
        reopen(again("top", backing="mid")),
        reopen(again("top", backing=None)),
        GRAPH,
        reopen(again("top")),
        reopen(again("top", backing="base")),
        GRAPH,
        NODES,
    ],
    "backing by options": [
        *CHAIN,
        reopen(again("top", backing=node("qcow2", None, file="mid-f"))),
        reopen(again("top", backing="nope")),
        GRAPH,
    ],
    "no cycles": [
        *CHAIN,
        reopen(again("base", backing="top")),
        reopen(again("top", backing="top")),
        reopen(node("qcow2", "top", file="top", backing="mid")),
        GRAPH,
    ],
    "an inline backing node": [
        qcow2("base"),
        qcow2("one", backing=node("raw", "inline", file="base")),
        reopen(again("one", backing=node("raw", "inline", file="base"))),
        reopen(again("one", backing="inline")),
        reopen(again("one", backing=node("raw", "other", file="base"))),
        reopen(again("one")),
        reopen(again("one", backing=None)),
        GRAPH,
    ],
    "a filter slips in below": [
        *CHAIN,
        add("copy-on-read", "filter", file="mid"),
        reopen(again("top", backing="filter")),
        GRAPH,
        reopen(again("top", backing="mid")),
        GRAPH,
        Do("blockdev-del", {"node-name": "filter"}),
    ],
    "another file": [
        add("raw", "r", file=file("a.raw", "a")),
        add("file", "b", filename="$DIR/b.raw"),
        reopen(node("raw", "r", file="b")),
        GRAPH,
        NODES,
        reopen(node("raw", "r", file="nope")),
        reopen(node("raw", "r", file=file("a.raw"))),
    ],
    "the window of raw": [
        add("raw", "r", file=file("a.raw", "a"), offset=4096, size=8192),
        reopen(node("raw", "r", file="a", size=4096)),
        NODES,
        reopen(node("raw", "r", file="a")),
        NODES,
        reopen(node("raw", "r", file="a", offset=1 << 30)),
        reopen(node("raw", "r", file="a", offset=4096, size=1 << 20)),
        reopen(node("raw", "r", file="a", offset=4096, size=1000)),
        NODES,
    ],
    "options that have no default": [
        add("null-co", "z", size=1 << 20, read_zeroes=True),
        reopen(node("null-co", "z", size=1 << 20, read_zeroes=True)),
        reopen(node("null-co", "z", size=2 << 20, read_zeroes=True)),
        reopen(node("null-co", "z", size=1 << 20)),
        reopen(node("null-co", "z", read_zeroes=True)),
        reopen(node("null-co", "z", size=1 << 20, read_zeroes=True, read_only=True)),
        NODES,
    ],
    "a protocol node": [
        add("file", "f", filename="$DIR/a.raw", read_only=True),
        reopen(node("file", "f", filename="$DIR/a.raw", read_only=True)),
        reopen(node("file", "f", filename="$DIR/a.raw")),
        NODES,
        reopen(node("file", "f", filename="$DIR/b.raw")),
        reopen(node("file", "f", filename="$DIR/a.raw", aio="io_uring")),
        reopen(node("file", "f", filename="$DIR/a.raw", locking="off")),
        reopen(node("file", "f")),
    ],
    "a driver that cannot": [
        qcow2("one"),
        add("copy-on-read", "cor", file="one"),
        reopen(node("copy-on-read", "cor", file="one")),
        reopen(node("copy-on-read", "cor", file="one-f")),
    ],
    "all or nothing": [
        qcow2("one"),
        qcow2("base"),
        reopen(again("one", read_only=True), again("base", data_file="nope")),
        NODES,
        reopen(again("one", read_only=True), again("base", read_only=True)),
        NODES,
        reopen(again("one", read_only=False), again("base", read_only=False), again("one", read_only=True)),
        NODES,
    ],
    "a chain in one step": [
        *CHAIN,
        reopen(again("top", backing="base"), again("mid", backing=None)),
        GRAPH,
        reopen(again("base", backing="mid"), again("top", backing="base")),
        GRAPH,
    ],
    "a frozen link": [
        *CHAIN,
        Do("block-stream", {"job-id": "j", "device": "top", "speed": 1, "auto-dismiss": False}),
        Do("job-pause", {"id": "j"}),
        reopen(again("top", backing="base")),
        reopen(again("top", backing=None)),
        Do("job-cancel", {"id": "j"}),
        WaitEvent("JOB_STATUS_CHANGE", {"status": "concluded"}),
    ],
}


@pytest.fixture
def prepare(images: QemuImages) -> Callable[[Path], None]:
    def fill(where: Path) -> None:
        images.run("create", "-q", "-f", "qcow2", where / "one.qcow2", "1M")
        images.run("create", "-q", "-f", "qcow2", where / "base.qcow2", "1M")
        images.io(where / "base.qcow2", "write -P 1 0 1M")
        images.run("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", where / "mid.qcow2")
        images.run("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", where / "top.qcow2")
        for name in ("a.raw", "b.raw"):
            (where / name).write_bytes(bytes(1 << 20))

    return fill


@pytest.mark.parametrize("name", TALKS)
def test_same_answers(name: str, qsd: str, prepare: Callable[[Path], None], tmp_path: Path) -> None:
    # How far a stream gets before it is paused is chance.
    assert_same(TALKS[name], tmp_path, prepare=prepare, ignore={"offset"} if name == "a frozen link" else ())
