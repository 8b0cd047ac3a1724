"""Conversations as QEMU's own test-suite and libvirt hold them, with our machine and QEMU's PC; not about jobs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import FLAT, GRAPH, MIB, NODES, add, delete, file, io, reopen, wire_names
from tests.interop.differential import Call, Do, Step, WaitEvent
from tests.interop.pc import both, hmp
from tests.qemu import QemuImages

BLOCK = Do("query-block")
STATS = Do("query-blockstats")
GROWTH = {"actual-size", "wr_highest_offset"}
"""How files grow is each side's own business."""


def do(command: str, **arguments: Any) -> Do:
    return Do(command, wire_names(arguments))


def device(driver: str, **properties: Any) -> Do:
    return Do("device_add", {"driver": driver, **wire_names(properties)})


def qcow2(node_name: str, name: str | None = None, **options: Any) -> Do:
    return add("qcow2", node_name, file=file(f"{name or node_name}.qcow2"), **options)


def action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": wire_names(data)}


def prints(node: str, command: str, text: str = "") -> Do:
    """A qemu-io command that writes lines."""
    return io(node, command, text.replace("\n", "\r\n"))


def quiet(node: str, command: str) -> Do:
    verb, _, rest = command.partition(" ")
    return io(node, f"{verb} -q {rest}")


def created(number: int, **options: Any) -> list[Step]:
    """Make an image or a file by a job, look at how that ended, and forget it."""
    job = f"create{number}"
    return [
        do("blockdev-create", job_id=job, options=wire_names(options)),
        WaitEvent("JOB_STATUS_CHANGE", {"id": job, "status": "concluded"}),
        Do("query-jobs"),
        do("job-dismiss", id=job),
    ]


def tool(*arguments: str) -> Call:
    """What qemu-img says in JSON about an image nobody has open."""

    def run(where: Path) -> Any:
        words = [word.replace("$DIR", str(where)) for word in arguments]
        done = subprocess.run(
            ["qemu-img", words[0], "--output=json", *words[1:]], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, done.stderr
        return _without_sizes(json.loads(done.stdout))

    return Call(run)


def _without_sizes(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_sizes(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_sizes(item)
            for key, item in value.items()
            if key not in ("actual-size", "image-end-offset", "fragmented-clusters", "allocated-clusters", "offset")
        }
    return value


DRIVE = hmp("drive_add 0 if=none,id=d,file=$DIR/top.qcow2,format=qcow2,node-name=top")
ON_SCSI: list[Step] = [
    do("object-add", qom_type="iothread", id="i0"),
    do("object-add", qom_type="iothread", id="i1"),
    device("virtio-scsi", id="s0", iothread="i0"),
    device("virtio-scsi", id="s1", iothread="i1"),
    device("virtio-scsi", id="s"),
]


def in_iothread(node: str, iothread: str | None) -> Do:
    return do("x-blockdev-set-iothread", node_name=node, iothread=iothread, force=True)


FLEECING: list[Step] = [
    qcow2("top"),
    qcow2("tmp", "empty"),
    device("virtio-blk", drive="top", id="vd"),
    quiet("top", "read 0 64k"),
    do("block-dirty-bitmap-add", node="top", name="part"),
    hmp('qemu-io -d vd/virtio-backend "write -q -P 7 0 64k"'),
    add("copy-before-write", "cbw", file="top", target="tmp", bitmap={"node": "top", "name": "part"}),
    do("qom-set", path="/machine/peripheral/vd", property="drive", value="nope"),
    do("qom-set", path="/machine/peripheral/vd", property="drive", value=5),
    do("qom-set", path="/machine/peripheral/vd", property="drive", value="cbw"),
    do("qom-get", path="/machine/peripheral/vd", property="drive"),
    add("snapshot-access", "acc", file="cbw"),
    BLOCK,
    GRAPH,
    hmp('qemu-io -d vd/virtio-backend "write -q -P 8 0 64k"'),
    hmp('qemu-io -d vd/virtio-backend "write -q -P 9 1M 64k"'),
    quiet("acc", "read -P 7 0 64k"),
    prints("acc", "read 1M 64k", "read failed: Permission denied\n"),
    prints("acc", "write 0 512", "write failed: Operation not supported\n"),
    quiet("tmp", "read -P 7 0 64k"),
    delete("cbw"),
    delete("acc"),
    do("qom-set", path="/machine/peripheral/vd", property="drive", value="top"),
    delete("cbw"),
    delete("tmp"),
    BLOCK,
    quiet("top", "read -P 9 1M 64k"),
]

LIBVIRT: list[Step] = [
    *(
        step
        for number, name, writable in ((3, "base", False), (1, "top", True))
        for step in (
            add("file", f"storage-{number}", filename=f"$DIR/{name}.qcow2", auto_read_only=True, discard="unmap"),
            add(
                "qcow2",
                f"format-{number}",
                file=f"storage-{number}",
                backing=None if number == 3 else "format-3",
                read_only=not writable,
                discard="unmap",
            ),
        )
    ),
    device("virtio-blk-pci", bus="pci.0", addr="0x5", drive="format-1", id="disk0", bootindex=1, write_cache="on"),
    FLAT,
    do("block-dirty-bitmap-add", node="format-1", name="a", persistent=True),
    hmp('qemu-io -d disk0/virtio-backend "write -q -P 3 2M 64k"'),
    # A checkpoint with an external snapshot.
    *created(1, driver="file", filename="$DIR/snap.qcow2", size=0),
    add("file", "storage-4", filename="$DIR/snap.qcow2", auto_read_only=True, discard="unmap"),
    *created(2, driver="qcow2", file="storage-4", size=4 * MIB, backing_file="$DIR/top.qcow2", backing_fmt="qcow2"),
    add("qcow2", "format-4", file="storage-4", backing=None, read_only=False),
    do(
        "transaction",
        actions=[
            action("blockdev-snapshot", node="format-1", overlay="format-4"),
            action("block-dirty-bitmap-add", node="format-4", name="a", persistent=True, granularity=65536),
        ],
    ),
    FLAT,
    BLOCK,
    hmp('qemu-io -d disk0/virtio-backend "write -q -P 4 3M 64k"'),
    # A push backup of what changed since, by a bitmap merged from both layers.
    *created(3, driver="file", filename="$DIR/backup.qcow2", size=0),
    add("file", "storage-5", filename="$DIR/backup.qcow2"),
    *created(4, driver="qcow2", file="storage-5", size=4 * MIB),
    add("qcow2", "format-5", file="storage-5", backing=None),
    do(
        "transaction",
        actions=[
            action("block-dirty-bitmap-add", node="format-4", name="b", disabled=True),
            action(
                "block-dirty-bitmap-merge",
                node="format-4",
                target="b",
                bitmaps=[{"node": "format-4", "name": "a"}, {"node": "format-1", "name": "a"}],
            ),
            action(
                "blockdev-backup",
                job_id="backup",
                device="format-4",
                target="format-5",
                sync="incremental",
                bitmap="b",
                auto_dismiss=False,
            ),
        ],
    ),
    WaitEvent("JOB_STATUS_CHANGE", {"id": "backup", "status": "concluded"}),
    Do("query-jobs"),
    do("job-dismiss", id="backup"),
    do("transaction", actions=[action("block-dirty-bitmap-remove", node="format-4", name="b")]),
    delete("format-5"),
    delete("storage-5"),
    tool("map", "$DIR/backup.qcow2"),
    # A copy onto a new top over the same base, whose backing file is linked at the end.
    *created(5, driver="file", filename="$DIR/copy.qcow2", size=0),
    add("file", "storage-6", filename="$DIR/copy.qcow2", auto_read_only=True),
    *created(6, driver="qcow2", file="storage-6", size=4 * MIB, backing_file="$DIR/base.qcow2", backing_fmt="qcow2"),
    do(
        "block-commit",
        job_id="commit",
        device="format-4",
        top_node="format-1",
        base_node="format-3",
        backing_file="$DIR/base.qcow2",
        auto_dismiss=False,
    ),
    WaitEvent("JOB_STATUS_CHANGE", {"id": "commit", "status": "concluded"}),
    do("job-dismiss", id="commit"),
    delete("format-1"),
    delete("storage-1"),
    add("qcow2", "format-6", file="storage-6", backing=None),
    do("blockdev-mirror", job_id="copy", device="format-4", target="format-6", sync="top", auto_dismiss=False),
    WaitEvent("BLOCK_JOB_READY"),
    do("blockdev-snapshot", node="format-3", overlay="format-6"),
    do("job-complete", id="copy"),
    WaitEvent("JOB_STATUS_CHANGE", {"id": "copy", "status": "concluded"}),
    Do("query-jobs"),
    do("job-dismiss", id="copy"),
    delete("format-4"),
    delete("storage-4"),
    FLAT,
    BLOCK,
    GRAPH,
    do("qom-list", path="/machine/peripheral"),
    do("qom-get", path="/machine/peripheral/disk0", property="drive"),
    reopen(driver="qcow2", node_name="format-3", file="storage-3", backing=None, read_only=False),
    reopen(driver="qcow2", node_name="format-3", file="storage-3", backing=None, read_only=True),
]

TALKS: dict[str, Sequence[Step]] = {
    "a drive in use does not become read-only": [
        DRIVE,
        device("virtio-blk", drive="d", id="vd"),
        reopen(driver="qcow2", node_name="top", file=file("top.qcow2"), read_only=True, backing=file("base.qcow2")),
        reopen(driver="qcow2", node_name="top", file=file("top.qcow2"), read_only=True, backing=None),
        GRAPH,
        quiet("d", "write 0 64k"),
        NODES,
    ],
    "no writing to a read-only drive": [
        hmp("drive_add 0 if=none,id=d,file=$DIR/top.qcow2,format=qcow2,read-only=on"),
        device("virtio-blk", drive="d", id="vd"),
        prints("d", "write 0 64k", "Block node is read-only\n"),
        GRAPH,
    ],
    "who has the lock": [
        DRIVE,
        hmp("drive_add 0 if=none,file=$DIR/top.qcow2"),
        hmp("drive_add 0 if=none,file=$DIR/over.qcow2"),
    ],
    "copy-on-read of a drive is no node": [
        hmp("drive_add 0 if=none,id=d,file=$DIR/top.qcow2,format=qcow2,node-name=top,copy-on-read=on"),
        device("virtio-blk", drive="d", id="vd"),
        do("block-dirty-bitmap-add", node="d", name="x"),
        quiet("d", "read -P 1 0 64k"),
        NODES,
        GRAPH,
        BLOCK,
        do("block_resize", device="d", size=5 * MIB),
        do("blockdev-snapshot-sync", device="d", snapshot_file="$DIR/new.qcow2", snapshot_node_name="new"),
        BLOCK,
        tool("map", "-U", "$DIR/top.qcow2"),
        tool("info", "-U", "$DIR/new.qcow2"),
    ],
    "iothreads of disks": [
        *ON_SCSI,
        add("null-co", "n0"),
        add("null-co", "n1"),
        device("scsi-hd", id="a", drive="n0", bus="s0.0", share_rw=True),
        in_iothread("n0", "i1"),
        in_iothread("n0", "i0"),
        device("scsi-hd", id="b", drive="n0", bus="s1.0", share_rw=True),
        device("scsi-hd", id="b", drive="n0", bus="s.0", share_rw=True),
        device("virtio-blk", id="b", drive="n0", share_rw=True),
        device("scsi-hd", id="c", drive="n0", bus="s0.0", share_rw=True),
        device("scsi-hd", id="d", drive="n1", bus="s.0", share_rw=True),
        device("scsi-hd", id="e", drive="n1", bus="s0.0", share_rw=True),
        device("virtio-blk", id="f", drive="n1", share_rw=True),
    ],
    "iothreads of media": [
        *ON_SCSI,
        device("scsi-cd", id="cd", bus="s0.0"),
        device("scsi-cd", id="other", bus="s.0"),
        add("null-co", "n", read_only=True),
        *(
            step
            for drive in ("cd", "other")
            for step in (
                do("blockdev-open-tray", id=drive, force=True),
                do("blockdev-insert-medium", id=drive, node_name="n"),
                in_iothread("n", "i0"),
                in_iothread("n", None),
                do("blockdev-remove-medium", id=drive),
            )
        ),
    ],
    "a snapshot above a disk in an iothread": [
        *ON_SCSI,
        qcow2("top"),
        device("scsi-hd", id="a", drive="top", bus="s0.0"),
        qcow2("new", "empty", backing=None),
        do("blockdev-snapshot", node="top", overlay="new"),
        in_iothread("new", "i0"),
        in_iothread("top", None),
    ],
    "failed accesses count": [
        hmp("drive_add 0 if=none,id=d,driver=null-co,node-name=n,size=1M"),
        io("d", "aio_read 100G 4k"),
        io("d", "aio_write 100G 4k"),
        prints("d", "read 100G 4k", "read failed: Input/output error\n"),
        prints("d", "aio_flush", "readv failed: Input/output error\naio_write failed: Input/output error\n"),
        STATS,
    ],
    "reopen of qemu-io": [
        qcow2("top"),
        io("top", "reopen -r"),
        NODES,
        io("top", "reopen -w"),
        io("top", "reopen -c none"),
        NODES,
        prints("top", "reopen -c foo", "Invalid cache option: foo\n"),
        prints("top", "reopen -o foo=bar", "Cannot change the option 'foo'\n"),
        prints("top", "reopen -o driver=raw", "Cannot change the option 'driver'\n"),
        prints("top", "reopen -r -w", "Only one -r/-w option may be given\n"),
        prints("top", "reopen -o read-only=on -r", "Cannot set both -r/-w and 'read-only'\n"),
        prints("top", "reopen -c none -o cache.direct=on", "Cannot set both -c and the cache options\n"),
        io("top", "reopen -o lazy-refcounts=on,l2-cache-size=64k"),
        io("top", "reopen -c writeback -o backing.l2-cache-size=1M"),
        NODES,
        device("virtio-blk", drive="top", id="vd"),
        hmp("info block"),
    ],
    "members of json names": [
        add("null-co", "n", read_zeroes=True, size=MIB),
        add("raw", "r", offset=512, size=1024, file=file("a.raw")),
        add("blkdebug", "b", image="n", align=512, max_transfer=4096),
        hmp("info block -n"),
        hmp("info block -n -v r"),
    ],
    "devices as objects": [
        add("null-co", "n"),
        do("qom-list", path="/machine/peripheral/vd"),
        device("virtio-blk", drive="n", id="vd", share_rw=True, serial="x"),
        do("qom-list", path="/machine/peripheral"),
        *(
            do("qom-get", path="/machine/peripheral/vd", property=name)
            for name in ("type", "realized", "drive", "serial", "share-rw", "bootindex", "rerror", "iothread", "nope")
        ),
        do("qom-get", path="vd", property="logical_block_size"),
        do("qom-get", path="/machine/peripheral/vd/virtio-backend", property="drive"),
        do("qom-get", path="/machine/peripheral/x", property="drive"),
        do("qom-set", path="/machine/peripheral/vd", property="serial", value="y"),
        do("qom-set", path="/machine/peripheral/vd", property="nope", value="y"),
    ],
    "fleecing": FLEECING,
    "files by jobs": [
        *created(0, driver="file", filename="$DIR/f", size=MIB, nocow=True, extent_size_hint=4096),
        *created(1, driver="file", filename="$DIR/f", size=MIB, preallocation="metadata"),
        *created(2, driver="file", filename="$DIR/f", size=1 << 63),
        *created(3, driver="file", filename="$DIR/f", size=MIB, preallocation="falloc", extent_size_hint=5),
        add("file", "f", filename="$DIR/f"),
        *created(9, driver="file", filename="$DIR/g", size=MIB),
        tool("map", "-f", "raw", "$DIR/g"),
        *created(4, driver="qcow2", file="f", size=1 << 63),
        *created(5, driver="qcow2", file="f", size=(1 << 63) - 512),
        *created(6, driver="qcow2", file="f", size=1 << 60),
        *created(7, driver="qcow2", file="f", size=1234),
        *created(8, driver="qcow2", file="f", size=MIB),
        qcow2("q", "nope"),
        add("qcow2", "q", file="f"),
        NODES,
    ],
}


@pytest.fixture
def prepared(images: QemuImages) -> Any:
    def prepare(where: Path) -> None:
        (where / "a.raw").write_bytes(bytes(MIB))
        images.run("create", "-q", "-f", "qcow2", where / "base.qcow2", "4M")
        images.io(where / "base.qcow2", "write -q -P 1 0 1M")
        for name, backing in (("top", "base"), ("over", "top")):
            images.run(
                "create", "-q", "-f", "qcow2", "-b", f"{where}/{backing}.qcow2", "-F", "qcow2", where / f"{name}.qcow2"
            )
        images.run("create", "-q", "-f", "qcow2", where / "empty.qcow2", "4M")

    return prepare


@pytest.mark.parametrize("name", TALKS)
def test_same_answers(name: str, tmp_path: Path, prepared: Any) -> None:
    both(TALKS[name], tmp_path, prepare=prepared, events=False, ignore=GROWTH)


def test_a_disk_managed_as_libvirt_does(tmp_path: Path, prepared: Any, images: QemuImages) -> None:
    """Checkpoint, snapshot, push backup, commit and copy of one disk; every image is clean and holds the same."""
    both(LIBVIRT, tmp_path, prepare=prepared, events=False, ignore=GROWTH)
    for side in ("ours", "real"):
        for name in ("base", "top", "snap", "backup", "copy"):
            images.check(tmp_path / side / f"{name}.qcow2")
        held = images.io(tmp_path / side / "copy.qcow2", "read -P 1 0 64k", "read -P 3 2M 64k", "read -P 4 3M 64k")
        assert "Pattern" not in held, side


def test_an_image_is_not_its_own_data_file(tmp_path: Path, prepared: Any) -> None:
    """QEMU names the two users of the node by generated names."""
    refusal = {
        "id": "j",
        "type": "create",
        "status": "concluded",
        "current-progress": 1,
        "total-progress": 1,
        "error": "Permission conflict on node 'f': permissions 'resize' are both required by the new image "
        "(uses it as 'file' child) and unshared by the new image (uses it as 'data-file' child).",
    }
    talk = [
        add("file", "f", filename="$DIR/a.raw"),
        do("blockdev-create", job_id="j", options={"driver": "qcow2", "file": "f", "data-file": "f", "size": MIB}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": "j", "status": "concluded"}),
        Do("query-jobs", ours={"return": [refusal]}),
    ]
    both(talk, tmp_path, prepare=prepared)
