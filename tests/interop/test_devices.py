"""Guest devices, media and run state beside qemu-system-x86_64's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.graph.opening import open_node
from tests.interop.differential import Do, OurPeer, Step, WaitEvent
from tests.interop.pc import MIB, NULL, RUNNING, both, hmp, make_files

NODES: list[dict[str, Any]] = [
    {**NULL, "node-name": "n0"},
    {**NULL, "node-name": "n1"},
    {**NULL, "node-name": "n2"},
    {**NULL, "node-name": "ro", "read-only": True},
]
SCSI = {"driver": "virtio-scsi-pci", "id": "s0"}
CDS: list[dict[str, Any]] = [SCSI, {"driver": "ide-cd", "id": "icd"}, {"driver": "scsi-cd", "id": "scd"}]
LOOK: list[Step] = [Do("query-block"), Do("query-blockstats"), Do("x-debug-query-block-graph")]


def add(driver: str, **properties: Any) -> Do:
    return Do("device_add", {"driver": driver} | {name.replace("_", "-"): value for name, value in properties.items()})


def refused(driver: str, *cases: dict[str, Any]) -> list[Step]:
    """Properties that are wrong, each alone."""
    return [Do("device_add", {"driver": driver, "id": "x", "drive": "n0"} | case) for case in cases]


ADDING: dict[str, list[Step]] = {
    "nothing": [Do("device_add"), Do("device_add", {"id": "x"}), add("nope"), add("pc-machine"), add("piix3-ide")],
    "virtio-blk": [add("virtio-blk", id="v", drive="n0"), add("virtio-blk-pci", drive="n1"), *LOOK],
    "virtio-blk read-only": [add("virtio-blk", id="v", drive="ro"), add("virtio-blk", drive="ro"), *LOOK],
    "drive": [
        add("virtio-blk", id="v"),
        add("virtio-blk", id="v", drive=""),
        add("virtio-blk", id="v", drive="nope"),
        add("virtio-blk", id="v", drive=5),
        add("scsi-hd", id="v"),
        add("scsi-hd", id="v", drive="nope"),
        *LOOK,
    ],
    "ids": [
        add("virtio-blk", id="x y", drive="n0"),
        add("virtio-blk", id="", drive="n0"),
        add("virtio-blk", id="1", drive="n0"),
        add("virtio-blk", id="n1", drive="n0"),
        add("virtio-blk", id="n1", drive="n1"),
        add("virtio-blk", id="s0", drive="n1"),
        Do("blockdev-add", NULL | {"node-name": "s0"}),
        *LOOK,
    ],
    "a node twice": [
        add("virtio-blk", id="a", drive="n0"),
        add("virtio-blk", id="b", drive="n0"),
        add("scsi-hd", id="c", drive="n0"),
        add("virtio-blk", drive="n0"),
        add("scsi-cd", id="cd", drive="n0"),
        *LOOK,
    ],
    "share-rw": [
        add("virtio-blk", id="a", drive="n0", share_rw=True),
        add("virtio-blk", id="b", drive="n0"),
        add("virtio-blk", id="c", drive="n0", share_rw="on"),
        add("scsi-hd", id="d", drive="n0", share_rw="on"),
        *LOOK,
    ],
    "scsi-hd": [
        add("scsi-hd", id="a", drive="n0"),
        add("scsi-hd", id="b", drive="n1", removable=True),
        add("scsi-hd", drive="ro"),
        *LOOK,
    ],
    "scsi addresses": [
        add("scsi-hd", id="x", drive="n0", **{"scsi-id": 256}),
        add("scsi-hd", id="x", drive="n0", **{"scsi-id": 1, "lun": 16384}),
        add("scsi-hd", id="x", drive="n0", channel=1),
        add("scsi-hd", id="a", drive="n0", **{"scsi-id": 1, "lun": 0}),
        add("scsi-cd", id="b", **{"scsi-id": 1, "lun": 0}),
        add("scsi-cd", id="c", **{"scsi-id": 1}),
        add("scsi-cd", id="d", lun=5),
        add("scsi-cd", **{"scsi-id": 1, "lun": 1}),
    ],
    "buses": [
        add("scsi-hd", id="x", drive="n0", bus="nope"),
        add("scsi-hd", id="x", drive="n0", bus=""),
        add("scsi-hd", id="x", drive="n0", bus="s0"),
        add("scsi-hd", id="x", drive="n0", bus="/s0/s0.0"),
        add("scsi-hd", id="x", drive="n0", bus="pci.0"),
        add("scsi-hd", id="x", drive="n0", bus="pci.0/nope"),
        add("scsi-hd", id="x", drive="n0", bus="s0.0"),
        add("virtio-blk", id="y", drive="n1", bus="s0.0"),
        add("virtio-blk", id="y", drive="n1", bus="pci.0"),
        add("virtio-scsi", id="s1"),
        add("scsi-cd", bus="s1.0"),
        Do("query-block"),
    ],
    "PCI addresses": [
        add("virtio-blk", id="a", drive="n0", addr="5"),
        add("virtio-blk", id="b", drive="n1", addr="5"),
        add("virtio-blk", id="b", drive="n1", addr="0x5.1"),
        add("virtio-blk", id="b", drive="n1", addr="1"),
        add("virtio-blk", id="b", drive="n1", addr="zz"),
        add("virtio-blk", id="b", drive="n1", addr="20"),
        add("virtio-blk", id="b", drive="n1", addr="1f.8"),
        add("virtio-blk", id="b", drive="n1", addr="1f"),
    ],
    "boot order": [
        add("virtio-blk", id="a", drive="n0", bootindex=1),
        add("virtio-blk", id="b", drive="n1", bootindex=1),
        add("virtio-blk", id="b", drive="n1", bootindex=-2),
        add("virtio-blk", id="c", drive="n2", bootindex=1 << 33),
        add("virtio-blk", id="c", drive="n2", bootindex="first"),
    ],
    "wrong properties": refused(
        "virtio-blk",
        {"bogus": 1},
        {"removable": True},
        {"virtio-backend": "x"},
        {"share-rw": "maybe"},
        {"share-rw": 1},
        {"write-cache": "yes"},
        {"werror": "bad"},
        {"rerror": "bad"},
        {"logical_block_size": 100},
        {"logical_block_size": 768},
        {"logical_block_size": "big"},
        {"logical_block_size": -1},
        {"logical_block_size": 4096},
        {"logical_block_size": "4k", "physical_block_size": 512},
        {"physical_block_size": 4 * MIB},
        {"min_io_size": 100},
        {"min_io_size": 32 * MIB},
        {"opt_io_size": 1000},
        {"discard_granularity": 100},
        {"cyls": 10},
        {"cyls": 65536, "heads": 1, "secs": 1},
        {"cyls": 1, "heads": 1, "secs": 256},
        {"cyls": "-1"},
        {"cyls": "x"},
        {"num-queues": 0},
        {"queue-size": 1},
        {"queue-size": 3},
        {"queue-size": 2048},
        {"max-discard-sectors": 0},
        {"max-write-zeroes-sectors": 1 << 30},
        {"scsi": True},
        {"iothread": "nope"},
        {"disable-legacy": "on", "disable-modern": "on"},
    ),
    "wrong properties of scsi-hd": refused(
        "scsi-hd",
        {"bogus": 1},
        {"removable": "maybe"},
        {"rotation_rate": 70000},
        {"port_index": -1},
        {"max_io_size": "1k"},
        {"dpofua": 2},
        {"logical_block_size": "2M"},
        {"wwn": "x"},
        {"serial": None, "drive": None},
    ),
    "right properties": [
        add("virtio-blk", id="a", drive="n0", serial="abc", rerror="enospc", werror="stop", write_cache="off"),
        add("scsi-hd", id="b", drive="n1", rerror="ignore", werror="report", write_cache="on", serial=5),
        add("scsi-cd", id="c", drive="ro", werror="report"),
        add("scsi-hd", id="d", drive="n2", rerror="stop", werror="report", account_invalid="off", account_failed=False),
        *LOOK,
    ],
    "controllers": [
        add("virtio-scsi", num_queues=0),
        add("virtio-scsi", id="s1", bus="s0.0"),
        Do("device_add", {"driver": "virtio-scsi", "virtqueue_size": 2}),
        Do("device_add", {"driver": "virtio-scsi", "num_queues": 0}),
        add("virtio-scsi", drive="n0"),
        add("virtio-scsi"),
        add("scsi-cd", bus="scsi.0", id="c"),
    ],
    "scsi without a controller": [
        Do("stop"),
        Do("device_del", {"id": "s0"}),
        Do("system_reset"),
        WaitEvent("DEVICE_DELETED", {"device": "s0"}),
        add("scsi-cd"),
        *LOOK,
    ],
    "users of a node with a device": [
        add("virtio-blk", id="v", drive="n0"),
        Do("blockdev-del", {"node-name": "n0"}),
        Do("block_resize", {"device": "v", "size": 2 * MIB}),
        Do("block_resize", {"node-name": "n0", "size": MIB}),
        Do("blockdev-snapshot-sync", {"device": "v", "snapshot-file": "$DIR/x"}),
    ],
    "deleting": [
        add("virtio-blk", id="v", drive="n0"),
        add("scsi-hd", id="h", drive="n1"),
        add("scsi-hd", drive="n2"),
        Do("device_del", {"id": "nope"}),
        Do("device_del"),
        Do("device_del", {"id": "h"}),
        WaitEvent("DEVICE_DELETED"),
        Do("device_del", {"id": "h"}),
        Do("device_del", {"id": "/machine/peripheral-anon/device[0]"}),
        WaitEvent("DEVICE_DELETED"),
        Do("blockdev-del", {"node-name": "n1"}),
        *LOOK,
    ],
    "deleting a controller": [
        add("virtio-blk", id="v", drive="n0"),
        add("scsi-hd", id="h", drive="n1"),
        add("scsi-cd"),
        Do("stop"),
        Do("device_del", {"id": "v"}),
        Do("device_del", {"id": "s0"}),
        Do("query-block"),
        Do("system_reset"),
        WaitEvent("DEVICE_DELETED", {"device": "s0"}),
        WaitEvent("DEVICE_DELETED", {"device": "v"}),
        Do("query-block"),
    ],
    "nvme": [
        add("nvme", id="x"),
        add("nvme", id="x", drive="n0"),
        add("nvme", id="x", drive="n0", serial="s", subsys="nope"),
        add("nvme", id="x", drive="n0", serial="s"),
        add("nvme", id="y", drive="ro", serial="t"),
        add("nvme", id="x", serial="s"),
        add("nvme", id="z", serial="s"),
        *LOOK,
        Do("blockdev-open-tray", {"id": "x"}),
        Do("eject", {"id": "y"}),
    ],
    "usb-storage": [
        add("usb-storage", id="u", drive="n0"),
        add("qemu-xhci", id="usb"),
        add("usb-storage", id="u"),
        add("usb-storage", id="u", drive="nope"),
        add("usb-storage", id="u", drive="n0", removable=True, rerror="stop"),
        add("usb-storage", id="w", drive="ro", bus="usb.0"),
        add("usb-storage", id="z", drive="n1", bus="s0.0"),
        *LOOK,
        Do("eject", {"id": "u"}),
        Do("eject", {"id": "u/u.0/legacy[0]"}),
        Do("device_del", {"id": "u"}),
        WaitEvent("DEVICE_DELETED", {"device": "u"}),
        Do("query-block"),
    ],
    "help": [
        hmp("device_add virtio-blk,help"),
        hmp("device_add virtio-scsi,help"),
        hmp("device_add scsi-hd,help"),
        hmp("device_add scsi-cd,help"),
        hmp("device_add ide-hd,help"),
        hmp("device_add ide-cd,?"),
        hmp("device_add floppy,help"),
        hmp("device_add nvme,help"),
        hmp("device_add usb-storage,help"),
        hmp("device_add qemu-xhci,help"),
        *(hmp(f"help {name}") for name in ("device_add", "device_del", "eject", "change", "stop", "cont", "s", "c")),
        hmp("help system_reset"),
        hmp("help info status"),
    ],
}


@pytest.mark.parametrize("conversation", ADDING.values(), ids=ADDING)
def test_devices(conversation: list[Step], tmp_path: Path) -> None:
    both(conversation, tmp_path, devices=[SCSI], nodes=NODES)


HMP = [
    hmp("device_add"),
    hmp("device_add virtio-blk"),
    hmp("device_add virtio-blk,drive=nope,id=v"),
    hmp("device_add nope"),
    hmp("device_add scsi-cd,bogus=1"),
    hmp("device_add scsi-cd,id=c"),
    hmp("device_add driver=scsi-cd,id=d,serial=a,,b"),
    hmp("device_add virtio-blk,id=v,drive=f,logical_block_size=4k,physical_block_size=4k"),
    hmp("info block"),
    hmp("info block -v"),
    hmp("info block c"),
    hmp("info block f"),
    hmp("info blockstats"),
    hmp("device_del d"),
    WaitEvent("DEVICE_DELETED"),
    hmp("device_del d"),
    hmp("device_del"),
    hmp("eject c"),
    hmp("eject"),
    hmp("eject -x c"),
    hmp("change c a.raw"),
    hmp("change c"),
    hmp("change vnc x"),
    hmp("change c a.raw raw maybe"),
    hmp("qemu-io -d nope info"),
    hmp("qemu-io -d s0 info"),
    hmp("qemu-io -d v length"),
    # What qemu-io prints goes to the program's own output there, so only quiet commands are compared.
    hmp('qemu-io -d v/virtio-backend "read -q 0 4k"'),
    hmp('qemu-io -d v/virtio-backend "write -q 0 4k"'),
    hmp('qemu-io -d v/virtio-backend "writev -q 0 4k 4k"'),
    hmp('qemu-io -d v/virtio-backend "aio_read -q 0 4k"'),
    hmp('qemu-io -d v/virtio-backend "aio_write -q 0 12k"'),
    hmp('qemu-io -d v/virtio-backend "discard -q 0 4k"'),
    hmp("qemu-io -d v/virtio-backend flush"),
    hmp("qemu-io -d /machine/peripheral/v/virtio-backend aio_flush"),
    hmp("info status"),
    hmp("stop"),
    hmp("info status"),
    hmp("info block"),
    Do("query-blockstats"),
]


def test_hmp(tmp_path: Path) -> None:
    both(
        HMP,
        tmp_path,
        devices=[SCSI],
        nodes=[{"driver": "file", "filename": "$DIR/a.raw", "node-name": "f"}],
        prepare=make_files,
    )


def test_deleting_twice(tmp_path: Path) -> None:
    talk = [
        add("virtio-blk", id="v", drive="n0"),
        Do("device_del", {"id": "v"}),
        Do("device_del", {"id": "v"}),
        Do("query-block"),
        Do("system_reset"),
        WaitEvent("DEVICE_DELETED", {"device": "v"}),
        Do("device_del", {"id": "v"}),
        Do("query-block"),
        Do("blockdev-del", {"node-name": "n0"}),
    ]
    both(talk, tmp_path, nodes=NODES, paused=True)


def on(device: str, *steps: Do) -> list[Step]:
    """The same steps for a device, with a look at it after each."""
    found: list[Step] = []
    for step in steps:
        found += [Do(step.command, {"id": device} | dict(step.arguments)), Do("query-block")]
    return [*found, Do("x-debug-query-block-graph")]


def insert(node: str) -> Do:
    return Do("blockdev-insert-medium", {"node-name": node})


def change(filename: str, **arguments: Any) -> Do:
    return Do("blockdev-change-medium", {"filename": filename} | {k.replace("_", "-"): v for k, v in arguments.items()})


OPEN = Do("blockdev-open-tray")
CLOSE = Do("blockdev-close-tray")
REMOVE = Do("blockdev-remove-medium")
EJECT = Do("eject")
REMOVABLE: list[dict[str, Any]] = [
    *CDS,
    {"driver": "floppy", "id": "fl"},
    {"driver": "scsi-hd", "id": "hd", "drive": "n2", "removable": True},
]
MEDIA: dict[str, Sequence[Do]] = {
    "trays": (OPEN, OPEN, CLOSE, CLOSE, Do("blockdev-open-tray", {"force": True}), Do("eject", {"force": True}), CLOSE),
    "inserting": (OPEN, REMOVE, insert("n0"), insert("n1"), insert("nope"), CLOSE, insert("n1"), REMOVE, OPEN, REMOVE),
    "read-only media": (EJECT, insert("ro"), CLOSE, EJECT, insert("n0"), CLOSE, EJECT, insert("ro"), EJECT, CLOSE),
    "ejecting": (EJECT, EJECT, insert("n0"), EJECT, CLOSE, EJECT),
    "with files": (
        change("$DIR/a.raw", format="raw"),
        change("$DIR/nope"),
        change("$DIR/nope", format="raw"),
        change("$DIR/b.qcow2", format="qcow2", read_only_mode="read-only"),
        change("$DIR/b.qcow2", format="qcow2"),
        change("$DIR/a.raw", format="qcow2"),
        change("$DIR/a.raw", format="nope"),
        change("$DIR/b.qcow2", read_only_mode="read-write"),
        change("$DIR/b.qcow2", format="qcow2", read_only_mode="retain", force=True),
        change("$DIR/a.raw", format="raw", read_only_mode="maybe"),
        EJECT,
        CLOSE,
    ),
}


@pytest.mark.parametrize("device", ["icd", "scd", "fl", "hd"])
@pytest.mark.parametrize("steps", MEDIA.values(), ids=MEDIA)
def test_media(steps: Sequence[Do], device: str, tmp_path: Path) -> None:
    both(on(device, *steps), tmp_path, devices=REMOVABLE, nodes=NODES, prepare=make_files)


# -- named back ends, as -drive if=none makes them -------------------------------------------------------------------


def _drives(peer: OurPeer) -> None:
    """An empty drive and one with an image, as the options below make them."""
    engine = peer.engine

    def make() -> None:
        engine.machine.add_backend("empty")
        image = {"driver": "raw", "node-name": "img", "file": {"driver": "file", "filename": str(peer.where / "c.raw")}}
        node = open_node(engine.graph, image)
        engine.machine.add_backend("full", node)
        engine.graph.unpin(node)

    engine.control.call(make)


DRIVES = ("-drive", "if=none,id=empty", "-drive", "if=none,id=full,format=raw,node-name=img,file=$DIR/c.raw")
NAMED: dict[str, list[Step]] = {
    "no device": [
        Do("query-block"),
        Do("blockdev-open-tray", {"device": "empty"}),
        Do("blockdev-close-tray", {"device": "empty"}),
        Do("eject", {"device": "empty"}),
        Do("eject", {"device": "full"}),
        Do("eject", {"id": "full"}),
        Do("eject"),
        Do("eject", {"id": "scd", "device": "full"}),
        Do("eject", {"device": "nope"}),
        Do("eject", {"id": "s0"}),
        Do("blockdev-change-medium", {"device": "empty", "filename": "$DIR/a.raw", "format": "raw"}),
        Do("blockdev-change-medium", {"device": "full", "filename": "$DIR/a.raw", "format": "raw"}),
        Do("blockdev-change-medium", {"device": "empty", "filename": "$DIR/b.qcow2", "read-only-mode": "read-only"}),
        Do("blockdev-change-medium", {"filename": "$DIR/b.qcow2"}),
        Do("query-block"),
        hmp("eject full"),
        hmp("eject -f empty"),
        hmp("change empty a.raw raw read-only"),
        hmp("change empty $DIR/a.raw raw read-only"),
        hmp("change empty -f $DIR/b.qcow2 qcow2"),
        hmp("info block"),
        hmp("info block empty"),
    ],
    "devices": [
        add("virtio-blk", id="v", drive="empty"),
        add("scsi-hd", id="v", drive="empty"),
        add("scsi-hd", id="v", drive="empty", removable=True),
        add("scsi-cd", id="w", drive="empty"),
        add("scsi-cd", id="w", drive="full"),
        Do("query-block"),
        Do("query-blockstats"),
        Do("x-debug-query-block-graph"),
        hmp("info block"),
        hmp("eject full"),
        hmp("change full $DIR/b.qcow2 qcow2"),
        hmp("change empty $DIR/a.raw raw"),
        Do("query-block"),
        Do("device_del", {"id": "w"}),
        WaitEvent("DEVICE_DELETED"),
        Do("query-block"),
        Do("device_del", {"id": "v"}),
        WaitEvent("DEVICE_DELETED", {"device": "v"}),
        Do("query-block"),
    ],
    "errors": [
        add("scsi-hd", id="v", drive="full", werror="report", rerror="report"),
        Do("query-block"),
        Do("block-latency-histogram-set", {"id": "full", "boundaries": [10]}),
        Do("block-latency-histogram-set", {"id": "v", "boundaries": [10, 10]}),
        Do("block-latency-histogram-set", {"id": "v", "boundaries": [0, 10]}),
        Do("block-latency-histogram-set", {"id": "v", "boundaries-write": [9, 8]}),
        Do("block-latency-histogram-set", {"id": "v", "boundaries": [10, 100], "boundaries-flush": [7]}),
        Do("block-latency-histogram-set", {"id": "s0", "boundaries": [10]}),
        Do("block-latency-histogram-set", {"id": "nope"}),
        Do("query-blockstats"),
        Do("block-latency-histogram-set", {"id": "v"}),
        Do("block-latency-histogram-set", {"id": "v", "boundaries-write": []}),
        Do("query-blockstats"),
    ],
}


@pytest.mark.parametrize("conversation", NAMED.values(), ids=NAMED)
def test_named_back_ends(conversation: list[Step], tmp_path: Path) -> None:
    both(
        conversation,
        tmp_path,
        devices=[SCSI],
        prepare=make_files,
        options=DRIVES,
        drives=_drives,
    )


BUSY: dict[str, list[Step]] = {
    "of another device": [
        Do("eject", {"id": "icd"}),
        Do("blockdev-insert-medium", {"id": "icd", "node-name": "n2"}),
        Do("blockdev-insert-medium", {"id": "icd", "node-name": "n0"}),
        Do("blockdev-open-tray", {"id": "scd"}),
        Do("blockdev-insert-medium", {"id": "scd", "node-name": "n0"}),
        Do("query-block"),
    ],
    "of a job": [
        Do("eject", {"id": "fl"}),
        Do("blockdev-insert-medium", {"id": "fl", "node-name": "n0"}),
        Do("blockdev-mirror", {"job-id": "j", "device": "n0", "target": "n1", "sync": "full", "speed": 1}),
        Do("eject", {"id": "fl"}),
        Do("blockdev-change-medium", {"id": "fl", "filename": "$DIR/a.raw", "format": "raw"}),
        Do("query-block"),
        Do("block-job-cancel", {"device": "j", "force": True}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": "j", "status": "null"}),
        Do("eject", {"id": "fl"}),
        Do("query-block"),
    ],
    "under a snapshot": [
        Do("blockdev-snapshot-sync", {"node-name": "n2", "snapshot-file": "$DIR/s", "snapshot-node-name": "top"}),
        Do("query-block"),
        Do("eject", {"id": "hd"}),
        Do("query-block"),
        Do("blockdev-insert-medium", {"id": "hd", "node-name": "n2"}),
        Do("blockdev-insert-medium", {"id": "hd", "node-name": "top"}),
    ],
}


@pytest.mark.parametrize("conversation", BUSY.values(), ids=BUSY)
def test_media_in_use(conversation: list[Step], tmp_path: Path) -> None:
    # How far the mirror has got is a matter of time.
    ignore = ("count", "offset")
    both(conversation, tmp_path, devices=REMOVABLE, nodes=NODES, prepare=make_files, ignore=ignore)


STATE: dict[str, list[Step]] = {
    "stop and cont": [
        RUNNING,
        Do("cont"),
        Do("stop"),
        Do("stop"),
        RUNNING,
        Do("system_reset"),
        RUNNING,
        Do("cont"),
        RUNNING,
        hmp("stop"),
        hmp("info status"),
        hmp("c"),
        hmp("info status"),
    ],
    "trays at a reset": [
        Do("stop"),
        *(Do("blockdev-open-tray", {"id": device}) for device in ("icd", "scd", "hd", "fl")),
        Do("query-block"),
        Do("system_reset"),
        Do("query-block"),
    ],
}


@pytest.mark.parametrize("conversation", STATE.values(), ids=STATE)
def test_run_state(conversation: list[Step], tmp_path: Path) -> None:
    both(conversation, tmp_path, devices=REMOVABLE, nodes=NODES)
