"""Internal snapshots by command beside the real qemu-storage-daemon, and the images judged by qemu-img."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Json, Step, WaitEvent, assert_same
from tests.interop.serving import BLOCKMON, Serve, human_monitor
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

WHEN = ("date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec")
"""Times differ from run to run, and so does the guest's clock, which is the host's where there is no guest."""


def add(name: str, file: str, **options: Any) -> Do:
    arguments = {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": f"$DIR/{file}"}}
    return Do("blockdev-add", arguments | {key.replace("_", "-"): value for key, value in options.items()})


def take(device: Any, name: Any) -> Do:
    return Do("blockdev-snapshot-internal-sync", {"device": device, "name": name})


def delete(device: str, **which: Any) -> Do:
    return Do("blockdev-snapshot-delete-internal-sync", {"device": device} | which)


def transact(*actions: tuple[str, dict[str, Any]], **properties: Any) -> Do:
    given: dict[str, Any] = {"actions": [{"type": kind, "data": data} for kind, data in actions]}
    if properties:
        given["properties"] = {key.replace("_", "-"): value for key, value in properties.items()}
    return Do("transaction", given)


def taking(device: str, name: str) -> tuple[str, dict[str, Any]]:
    return "blockdev-snapshot-internal-sync", {"device": device, "name": name}


ABORT: tuple[str, dict[str, Any]] = ("abort", {})


def image_told(file: str) -> Call:
    """What qemu-img says of an image that may still be open."""

    def tell(where: Path) -> Json:
        command = ["qemu-img", "snapshot", "-U", "-l", file]
        done = subprocess.run(command, cwd=where, capture_output=True, errors="replace", check=True)
        return re.sub(r"\d{4}-\d\d-\d\d .*", "", done.stdout)

    return Call(tell)


LOOK: list[Step] = [image_told("a.qcow2"), Do("query-named-block-nodes", {"flat": True})]
A = add("n", "a.qcow2")

CONVERSATIONS: dict[str, list[Step]] = {
    "one": [A, take("n", "first"), *LOOK],
    "several, some deleted": [
        A,
        *(take("n", name) for name in ("a", "b", "c", "d")),
        delete("n", name="b"),
        delete("n", id="3"),
        delete("n", id="1", name="a"),
        take("n", "e"),
        *LOOK,
    ],
    "names that are ids": [A, take("n", "2"), take("n", "1"), delete("n", name="1"), take("n", "3"), *LOOK],
    "names": [
        A,
        take("n", ""),
        take("n", "a"),
        take("n", "a"),
        take("n", "A"),
        take("n", "a b"),
        take("n", "\u00e9\u4e2d"),
        take("n", "x" * 255),
        take("n", "x" * 300),
        take("n", "y" * 300),
        take("n", "y" * 300),
        take("n", "\u00e9" * 127),
        *LOOK,
    ],
    "deleting what is not there": [
        A,
        take("n", "a"),
        delete("n"),
        delete("n", name="b"),
        delete("n", id="2"),
        delete("n", id="2", name="a"),
        delete("n", id="1", name="b"),
        delete("n", id=""),
        delete("n", name=""),
        delete("n", id="", name=""),
        delete("n", id="a"),
        *LOOK,
    ],
    "unknown nodes": [take("nope", "a"), take("", "a"), delete("nope", name="a"), delete("nope"), delete("")],
    "wrong arguments": [
        A,
        Do("blockdev-snapshot-internal-sync"),
        Do("blockdev-snapshot-internal-sync", {"device": "n"}),
        Do("blockdev-snapshot-internal-sync", {"name": "n"}),
        take("n", 1),
        take(1, "n"),
        Do("blockdev-snapshot-internal-sync", {"device": "n", "name": "a", "x": 1}),
        Do("blockdev-snapshot-delete-internal-sync"),
        delete("n", id=1),
        delete("n", x=1),
    ],
    # (QEMU 7.2 then forgets the snapshot that it could not delete, until the image is opened again.)
    "read-only": [
        add("n", "old.qcow2", read_only=True),
        take("n", "a"),
        take("n", ""),
        delete("n", name="nope"),
        delete("n", name="old"),
    ],
    "formats without": [
        Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": "$DIR/r.raw"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f"}),
        Do("blockdev-add", {"driver": "null-co", "node-name": "nul"}),
        take("f", "a"),
        take("r", "a"),
        take("r", ""),
        take("nul", "a"),
        delete("r", name="a"),
        delete("r"),
        delete("nul", name="a"),
    ],
    "an external data file": [
        add("n", "data.qcow2"),
        take("n", "a"),
        take("n", ""),
        delete("n", name="a"),
        delete("n"),
        Do("query-named-block-nodes", {"flat": True}),
    ],
    "below raw": [
        A,
        Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": "n"}),
        take("n", "a"),
        take("r", "a"),
        take("r", "a"),
        delete("n", name="a"),
        delete("r", name="b"),
        take("r", "b"),
        delete("r", name="a"),
        *LOOK,
    ],
    "below copy-on-read": [
        A,
        Do("blockdev-add", {"driver": "copy-on-read", "node-name": "cor", "file": "n"}),
        take("n", "a"),
        take("cor", "a"),
        delete("cor", id="1"),
        *LOOK,
    ],
    "an overlay and what it is of": [
        add("top", "overlay.qcow2", backing="n"),
        A,
        add("top", "overlay.qcow2", backing="n"),
        take("top", "a"),
        take("n", "a"),
        delete("n", name="a"),
        *LOOK,
    ],
    "made by qemu-img": [
        add("n", "old.qcow2"),
        take("n", "old"),
        take("n", "new"),
        delete("n", name="old"),
        Do("query-named-block-nodes", {"flat": True}),
    ],
    "counters too narrow": [
        add("n", "narrow.qcow2"),
        take("n", "a"),
        take("n", "a"),
        delete("n", name="a"),
    ],
    "version 2": [add("n", "v2.qcow2"), take("n", "a"), take("n", "b"), delete("n", name="a"), *LOOK],
    "in a transaction": [A, transact(taking("n", "a"), taking("n", "b")), *LOOK],
    "of two disks": [
        A,
        add("m", "old.qcow2"),
        transact(taking("n", "a"), taking("m", "a")),
        transact(taking("n", "b"), taking("m", "old")),
        *LOOK,
    ],
    "a transaction that fails": [
        A,
        take("n", "kept"),
        transact(taking("n", "a"), ABORT),
        transact(ABORT, taking("n", "a")),
        transact(taking("n", "a"), taking("n", "a")),
        transact(taking("n", "a"), taking("n", "b"), taking("n", "kept")),
        transact(taking("n", "a"), taking("nope", "a")),
        take("n", "a"),
        *LOOK,
    ],
    "beside an external one": [
        A,
        transact(
            taking("n", "a"),
            ("blockdev-snapshot-sync", {"node-name": "n", "snapshot-file": "$DIR/o.qcow2", "snapshot-node-name": "o"}),
        ),
        take("n", "b"),
        take("o", "b"),
        *LOOK,
    ],
    "grouped": [A, transact(taking("n", "a"), completion_mode="grouped"), *LOOK],
    "a resized disk": [
        A,
        take("n", "a"),
        Do("block_resize", {"node-name": "n", "size": 2 << 20}),
        take("n", "b"),
        Do("block_resize", {"node-name": "n", "size": 512 << 10}),
        take("n", "c"),
        delete("n", name="b"),
        *LOOK,
    ],
    "a job is running": [
        add("top", "overlay.qcow2", backing="n"),
        A,
        add("top", "overlay.qcow2", backing="n"),
        Do("block-stream", {"job-id": "j", "device": "top", "auto-finalize": False}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": "j", "status": "pending"}),
        take("top", "a"),
        delete("top", name="a"),
        take("n", "a"),
    ],
}


def prepare_images(images: QemuImages) -> Any:
    def prepare(where: Path) -> None:
        images.create(where / "a.qcow2", "1M", cluster_size=4096)
        images.io(where / "a.qcow2", "write -P 1 0 300k", "write -P 2 600k 10k")
        images.create(where / "old.qcow2", "1M")
        images.io(where / "old.qcow2", "write -P 1 0 300k")
        images.run("snapshot", "-c", "old", where / "old.qcow2")
        images.io(where / "old.qcow2", "write -P 2 100k 300k")
        images.create(where / "v2.qcow2", "1M", compat="0.10")
        images.create(where / "narrow.qcow2", "1M", refcount_bits=1)
        images.io(where / "narrow.qcow2", "write -P 1 0 300k")
        images.create(where / "overlay.qcow2", "1M")
        images.create(where / "data.qcow2", "1M", data_file=where / "data.raw")
        images.create(where / "r.raw", "1M", fmt="raw")

    return prepare


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_snapshots_are_those_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    # Where files end, how much the host has given them and where the next VM state would lie is each one's own affair.
    ignore = (*WHEN, "actual-size", "file-size")
    assert_same(CONVERSATIONS[name], tmp_path, prepare=prepare_images(images), ignore=ignore)
    used = str(CONVERSATIONS[name])
    for file in ("a.qcow2", "old.qcow2", "v2.qcow2", "narrow.qcow2", "overlay.qcow2"):
        if f"/{file}" not in used:
            continue
        ours, theirs = tmp_path / "ours" / file, tmp_path / "real" / file
        images.check(ours)
        images.assert_identical(ours, theirs)
        assert names(images, ours) == names(images, theirs)
        for snapshot in names(images, ours):
            compare_snapshot(images, ours, theirs, snapshot)


def names(images: QemuImages, path: Path) -> list[str]:
    return [entry["name"] for entry in images.info(path).get("snapshots", [])]


def compare_snapshot(images: QemuImages, ours: Path, theirs: Path, name: str) -> None:
    """Both show the same after going back to the snapshot *name*."""
    copies: Sequence[Path] = [path.with_name("copy.qcow2") for path in (ours, theirs)]
    for path, copy in zip((ours, theirs), copies, strict=True):
        shutil.copy(path, copy)
        images.run("snapshot", "-a", name, copy)
    images.check(copies[0])
    images.assert_identical(copies[0], copies[1])


# -- HMP ---------------------------------------------------------------------------------------------------------------

NODE = "qcow2,node-name={0},file.driver=file,file.filename={0}.qcow2"
LINES = """
info snapshots
savevm first
info snapshots
savevm first
savevm
info snapshots
savevm 1
savevm ""
savevm x y
loadvm first
loadvm nope
loadvm
loadvm a b
delvm nope
delvm first
delvm first
delvm
info snapshots
info snapshots x
snapshot_blkdev_internal
snapshot_blkdev_internal a
snapshot_blkdev_internal a s
snapshot_blkdev_internal a s
snapshot_blkdev_internal a 1
snapshot_blkdev_internal a b c
snapshot_blkdev_internal nope s
info snapshots
snapshot_delete_blkdev_internal a s 1
snapshot_delete_blkdev_internal a s
snapshot_delete_blkdev_internal a s
snapshot_delete_blkdev_internal a 1
snapshot_delete_blkdev_internal a
snapshot_delete_blkdev_internal nope x
info snapshots
help savevm
help loadvm
help delvm
help info snapshots
help snapshot_blkdev_internal
help snapshot_delete_blkdev_internal
""".strip().splitlines()
DISKS: dict[str, list[str]] = {
    "none": [],
    "one": [NODE.format("a")],
    "two": [NODE.format("a"), NODE.format("old")],
    "one of them read-only": [NODE.format("a"), NODE.format("old") + ",read-only=on"],
    "one of them raw": [NODE.format("a"), "raw,node-name=r,file.driver=file,file.filename=r.raw"],
    "only a read-only one": [NODE.format("old") + ",read-only=on"],
    "below raw": [NODE.format("a"), "raw,node-name=r,file=a"],
    "only raw": ["raw,node-name=r,file.driver=file,file.filename=r.raw"],
}
_ROW = re.compile(r"^(\S+) +(\S*) +(?:0 B|1\.01 KiB) \d{4}(?:-\d\d){2} \d\d:\d\d:\d\d *[\d:.]+", re.MULTILINE)


def without_states(text: str) -> str:
    """Only QEMU saves a VM state, of a machine that has next to nothing; times differ, and the
    guest's clock is the host's where there is no guest."""
    text = re.sub(r"vm-\d{14}", "vm-NOW", text)
    return _ROW.sub(r"\1 \2 SIZE TIME CLOCK", text)


@pytest.mark.parametrize("disks", DISKS)
def test_saving_disks_is_qemu_s(disks: str, qemu_system: str, images: QemuImages, tmp_path: Path) -> None:
    theirs_in, ours_in = tmp_path / "theirs", tmp_path / "ours"
    for where in (theirs_in, ours_in):
        where.mkdir()
        prepare_images(images)(where)
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-qmp", "stdio"]
    theirs = human_monitor(
        [*machine, *(word for node in DISKS[disks] for word in ("-blockdev", node))], LINES, theirs_in
    )
    options = [word for node in DISKS[disks] for word in ("--blockdev", node)]
    ours = human_monitor([*BLOCKMON, *options, "--qmp", "stdio"], LINES, ours_in)
    for line, their, our in zip(LINES, theirs, ours, strict=True):
        assert without_states(our) == without_states(their), line
    for file in ("a.qcow2", "old.qcow2"):
        images.check(ours_in / file)
        assert len(names(images, ours_in / file)) == len(names(images, theirs_in / file))


def test_loading_brings_all_disks_back_together(images: QemuImages, tmp_path: Path) -> None:
    prepare_images(images)(tmp_path)
    before = {file: tmp_path / f"before-{file}" for file in ("a.qcow2", "old.qcow2")}
    for file, copy in before.items():
        shutil.copy(tmp_path / file, copy)
    options = [word for node in DISKS["two"] for word in ("--blockdev", node)]
    answers = human_monitor(
        [*BLOCKMON, *options, "--qmp", "stdio"],
        [
            "savevm now",
            'qemu-io a "write -q -P 9 0 1M"',
            'qemu-io old "write -q -P 9 0 1M"',
            'qemu-io a "truncate 2M"',
            "snapshot_blkdev_internal a later",
            "loadvm later",
            "loadvm now",
            'qemu-io a "length"',
        ],
        tmp_path,
    )
    assert answers == [
        "",
        "",
        "",
        "",
        "",
        "Error: Snapshot 'later' does not exist in one or more devices\n",
        "",
        "1 MiB\n",
    ]
    for file, copy in before.items():
        images.check(tmp_path / file)
        images.assert_identical(tmp_path / file, copy)


def test_a_disk_with_dirty_bitmaps_does_not_go_back(images: QemuImages, tmp_path: Path) -> None:
    prepare_images(images)(tmp_path)
    serve = Serve("--blockdev", NODE.format("a"), cwd=tmp_path)
    try:
        human = "human-monitor-command"
        assert serve.ask(human, command_line="savevm s") == {"return": ""}
        assert serve.ask("block-dirty-bitmap-add", node="a", name="b") == {"return": {}}
        assert serve.ask(human, command_line="loadvm s") == {
            "return": "Error: Could not load snapshot 's' on 'a': Device has active dirty bitmaps\r\n"
        }
    finally:
        serve.close()
