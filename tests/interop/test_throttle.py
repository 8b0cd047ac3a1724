"""Throttling, beside qemu-storage-daemon, qemu-io and QEMU's PC 7.2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, OurPeer, Step, assert_same
from tests.interop.pc import both

NONE = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
MIB = 1 << 20

FLAT = Do("query-named-block-nodes", {"flat": True})
NODES = Do("query-named-block-nodes")


def group(id: str, **limits: int) -> Do:
    wire = {key.replace("_", "-"): value for key, value in limits.items()}
    return Do("object-add", {"qom-type": "throttle-group", "id": id, "limits": wire})


def add(driver: str, node_name: str, **options: Any) -> Do:
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    return Do("blockdev-add", {"driver": driver, "node-name": node_name, **wire})


def throttle(node_name: str, group: str, file: Any = "f", **options: Any) -> Do:
    return add("throttle", node_name, throttle_group=group, file=file, **options)


def reopen(**options: Any) -> Do:
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    return Do("blockdev-reopen", {"options": [{"driver": "throttle", "node-name": "t", **wire}]})


def delete(node_name: str) -> Do:
    return Do("blockdev-del", {"node-name": node_name})


def drop(id: str) -> Do:
    return Do("object-del", {"id": id})


def move(node_name: Any, iothread: Any, **more: Any) -> Do:
    return Do("x-blockdev-set-iothread", {"node-name": node_name, "iothread": iothread, **more})


FILE = add("file", "f", filename="$DIR/a.raw")
IOTHREADS = [Do("object-add", {"qom-type": "iothread", "id": id}) for id in ("i", "j")]

TALKS: dict[str, Sequence[Step]] = {
    "a node and its group": [
        FILE,
        throttle("t", "g"),
        Do("object-add", {"qom-type": "iothread", "id": "g"}),
        throttle("t", "g"),
        drop("g"),
        group("g", iops_total=1000),
        throttle("t", "g"),
        NODES,
        Do("query-blockstats", {"query-nodes": True}),
        Do("x-debug-query-block-graph"),
        drop("g"),
        delete("f"),
        delete("t"),
        drop("g"),
        delete("f"),
    ],
    "options": [
        FILE,
        group("g"),
        add("throttle", "t", throttle_group="g"),
        add("throttle", "t", file="f"),
        throttle("t", "g", file="nope"),
        throttle("t", "g", file=None),
        throttle("t", "g", limits={}),
        throttle("t", "g", read_only=True),
        throttle("u", "g", file={"driver": "null-co", "size": MIB}, detect_zeroes="on", discard="unmap"),
        FLAT,
    ],
    "names of files": [
        group("g"),
        throttle("t", "g", file={"driver": "file", "filename": "$DIR/a.raw"}),
        add("raw", "r", file="t"),
        throttle("u", "g", file="r"),
        FLAT,
    ],
    "a group of two": [
        group("g", bps_total=10**9),
        throttle("t", "g", file={"driver": "null-co"}),
        throttle("u", "g", file={"driver": "null-co"}),
        delete("t"),
        drop("g"),
        delete("u"),
        drop("g"),
    ],
    "a throttle node over a throttle node": [
        FILE,
        group("g", iops_total=1000),
        group("h", bps_total=10**9),
        throttle("t", "g"),
        throttle("u", "h", file="t"),
        throttle("v", "g", file="u"),
        FLAT,
        drop("h"),
        delete("v"),
        delete("u"),
        drop("h"),
        drop("g"),
    ],
    "reopening": [
        FILE,
        group("g", iops_total=1000),
        group("h", bps_total=10**9),
        throttle("t", "g"),
        reopen(file="f"),
        reopen(throttle_group="h"),
        reopen(throttle_group="nope", file="f"),
        reopen(throttle_group="h", file="f", read_only=True),
        drop("g"),
        drop("h"),
        FLAT,
        reopen(throttle_group="h", file="f"),
        FLAT,
        delete("t"),
        drop("h"),
    ],
    "a reopen that fails leaves the group": [
        FILE,
        group("g"),
        group("h"),
        throttle("t", "g"),
        Do(
            "blockdev-reopen",
            {
                "options": [
                    {"driver": "throttle", "node-name": "t", "throttle-group": "h", "file": "f"},
                    {"driver": "file", "node-name": "f", "filename": "$DIR/b.raw"},
                ]
            },
        ),
        drop("g"),
        drop("h"),
    ],
    "a throttle node comes between and goes": [
        FILE,
        group("g"),
        add("raw", "r", file="f"),
        throttle("t", "g"),
        Do("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "r", "file": "t"}]}),
        Do("x-debug-query-block-graph"),
        delete("t"),
        Do("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "r", "file": "f"}]}),
        delete("t"),
        drop("g"),
    ],
    "resizing through it": [
        FILE,
        group("g", bps_total=10**9),
        throttle("t", "g"),
        Do("block_resize", {"node-name": "t", "size": 2 * MIB}),
        FLAT,
        Do("block_resize", {"node-name": "t", "size": -1}),
    ],
    "iothreads: arguments": [
        FILE,
        *IOTHREADS,
        group("g"),
        *(move(name, "i") for name in ("nope", None, 3)),
        *(move("f", name) for name in ("nope", "g", "", 3)),
        Do("x-blockdev-set-iothread", {"node-name": "f"}),
        move("f", None),
        move("f", None, force=True),
        move("f", "i", force="yes"),
    ],
    "iothreads: a chain goes as one": [
        FILE,
        *IOTHREADS,
        group("g"),
        throttle("t", "g"),
        add("raw", "r", file="t"),
        move("r", "i"),
        move("f", "i"),
        move("t", "j"),
        FLAT,
        move("f", None),
        delete("r"),
        delete("t"),
        drop("i"),
        drop("j"),
    ],
    "iothreads: unlinked nodes each go alone": [
        *IOTHREADS,
        add("null-co", "n", size=MIB),
        add("null-co", "o", size=MIB),
        *(move("n", place) for place in ("i", None)),
        *(move("o", place) for place in ("i", "j")),
        drop("i"),
    ],
}


def images(where: Path) -> None:
    for name in ("a.raw", "b.raw"):
        with (where / name).open("wb") as file:
            file.truncate(MIB)


@pytest.mark.parametrize("name", TALKS)
def test_same_answers(name: str, qsd: str, tmp_path: Path) -> None:
    assert_same(TALKS[name], tmp_path, prepare=images)


# -- devices ---------------------------------------------------------------------------------------------------------


def drives(peer: OurPeer) -> None:
    for text in ("if=none,id=d0,driver=null-co,node-name=n0", "if=none,id=d1,driver=null-co", "if=none,id=empty"):
        answer = peer.ask("human-monitor-command", {"command-line": f"drive_add 0 {text}"})
        assert answer["return"] in ("", "OK\r\n"), answer


OPTIONS = (
    *("-drive", "if=none,id=d0,driver=null-co,node-name=n0", "-drive", "if=none,id=d1,driver=null-co"),
    *("-drive", "if=none,id=empty"),
)


def limit(device: str | None, **limits: Any) -> Do:
    named = {} if device is None else {"device": device}
    return Do("block_set_io_throttle", {**named, **NONE, **limits})


def monitor(*lines: str) -> list[Step]:
    return [Do("human-monitor-command", {"command-line": line}) for line in lines]


BLOCK = Do("query-block")
DEVICE_TALKS: dict[str, Sequence[Step]] = {
    "iothreads of drives": [
        *IOTHREADS,
        move("n0", "i"),
        move("n0", "i", force=False),
        move("n0", "i", force=True),
        move("n0", None, force=True),
    ],
    "limits of a device": [
        BLOCK,
        limit("d0", iops=100),
        BLOCK,
        *monitor("info block d0", "info block -v d0"),
        limit("d0", iops_rd=5, iops_wr=7, iops_rd_max=50, iops_rd_max_length=3, iops_size=4096),
        BLOCK,
        limit("d0", bps=10**6, bps_max=10**7, iops_rd=3),
        BLOCK,
        *monitor("info block d0"),
        limit("d0"),
        BLOCK,
        limit("d0"),
    ],
    "groups of devices": [
        limit("d0", iops=50, group="g"),
        limit("d1", bps=60, group="g"),
        BLOCK,
        limit("d0", iops=5),
        BLOCK,
        limit("d1", bps=7, group="h"),
        BLOCK,
        *monitor("info block"),
        Do("object-add", {"qom-type": "throttle-group", "id": "h"}),
        group("x", bps_total=1000),
        limit("d1", iops_rd=5, group="x"),
        Do("qom-get", {"path": "x", "property": "limits"}),
        drop("x"),
        Do("qom-set", {"path": "x", "property": "limits", "value": {"bps-write": 9}}),
        BLOCK,
        limit("d1"),
        drop("x"),
        Do("object-add", {"qom-type": "throttle-group", "id": "h"}),
        Do("object-add", {"qom-type": "throttle-group", "id": "g"}),
        limit("d0"),
        Do("object-add", {"qom-type": "throttle-group", "id": "g"}),
    ],
    "which device": [
        limit("nope"),
        limit(None, id="nope"),
        limit(None, id="d0"),
        limit(None),
        limit("d0", id="d0"),
        limit("empty", bps=1),
        Do("block_set_io_throttle", {"device": "d0", "bps": 1}),
        limit("d0", bps="1"),
        limit("d0", foo=1),
    ],
    "limits that make no sense": [
        limit("d0", bps=-1),
        limit("d0", bps=1, bps_rd=1),
        limit("d0", iops=10, iops_max=4),
        limit("d0", iops_max=4),
        limit("d0", iops=10, iops_max=40, iops_max_length=0),
        limit("d0", iops=10, iops_max=40, iops_max_length=-1),
        limit("d0", iops=10, iops_max_length=2),
        limit("d0", bps=10, iops_size=512),
        limit("d0", bps=10**15 + 1),
        limit("d0", bps=10, bps_max=40, bps_max_length=(1 << 32) + 1),
        BLOCK,
    ],
    "the monitor": monitor(
        "help block_set_io_throttle",
        *(
            f"block_set_io_throttle {rest}"
            for rest in ("d0 0 0 0 10 0 0", "d0 1 1 0 0 0 0", "nope 0 0 0 0 0 0", "d0 1 2 3", "d0 0 0 0 0 0 x", "")
        ),
        "info block d0",
        "block_set_io_throttle d0 0 0 0 0 0 0",
        "info block d0",
    ),
}


@pytest.mark.parametrize("name", DEVICE_TALKS)
def test_devices(name: str, qemu_system: str, tmp_path: Path) -> None:
    both(DEVICE_TALKS[name], tmp_path, options=OPTIONS, drives=drives, paused=True)


def test_a_device_by_its_id(qemu_system: str, tmp_path: Path) -> None:
    talk = [
        limit(None, id="v", iops=100),
        limit(None, id="/machine/peripheral/v/virtio-backend", iops=100),
        BLOCK,
        *monitor("info block", "block_set_io_throttle v 0 0 0 0 0 7", "info block"),
        limit("v", iops=1),
        limit(None, id="v"),
        BLOCK,
        move("n", "i"),
        Do("object-add", {"qom-type": "iothread", "id": "i"}),
        move("n", "i"),
        move("n", "nope", force=True),
        move("n", "i", force=True),
        move("n", None, force=True),
    ]
    nodes = [{"driver": "null-co", "node-name": "n"}]
    devices = [{"driver": "virtio-blk-pci", "id": "v", "drive": "n"}]
    both(talk, tmp_path, nodes=nodes, devices=devices, paused=True)
