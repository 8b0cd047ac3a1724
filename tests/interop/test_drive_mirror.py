"""drive-mirror, the commands' mistakes, and mirrors below a guest, beside the real QEMU."""

from pathlib import Path

import pytest

from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, assert_same
from tests.interop.mirroring import (
    BASE,
    BY_HEADERS,
    CHAIN,
    COMPLETE,
    IGNORED,
    LOOK,
    MIB,
    READY,
    SIZE,
    TARGET,
    TOP,
    Prepare,
    add,
    at,
    backing_of,
    cmp,
    drive,
    image_maker,
    mirror,
    status,
    verb,
)
from tests.interop.pc import both, hmp
from tests.qemu import QemuImages

pytestmark = pytest.mark.usefixtures("qsd")

DRIVE: dict[str, list[Step]] = {
    "drive full": [*CHAIN, drive(), *READY, *LOOK, *COMPLETE, cmp("overlay1.qcow2", "new.qcow2")],
    "drive full, named, raw": [
        *CHAIN,
        drive(target="$DIR/new.raw", format="raw", node_name="copy"),
        *READY,
        *LOOK,
        *COMPLETE,
        cmp("overlay1.qcow2", "new.raw", "qcow2", "raw"),
    ],
    "drive top": [
        *BY_HEADERS,
        drive(sync="top", node_name="copy"),
        *READY,
        *LOOK,
        *COMPLETE,
        backing_of("new.qcow2"),
        cmp("overlay1.qcow2", "new.qcow2"),
    ],
    "drive top, not completed": [
        *BY_HEADERS,
        drive(sync="top", node_name="copy"),
        *READY,
        verb("block-job-cancel"),
        status("null"),
        *LOOK,
        backing_of("new.qcow2"),
        cmp("overlay1.qcow2", "new.qcow2"),
    ],
    "drive top, small granularity": [
        *BY_HEADERS,
        drive(sync="top", granularity=4096),
        *READY,
        *COMPLETE,
        cmp("overlay1.qcow2", "new.qcow2"),
    ],
    "drive none": [*BY_HEADERS, drive(sync="none", node_name="copy"), *READY, *COMPLETE, backing_of("new.qcow2")],
    "drive none, cancelled": [*BY_HEADERS, drive(sync="none"), *READY, verb("job-cancel"), status("null"), *LOOK],
    "drive existing full": [
        *BY_HEADERS,
        drive(target="$DIR/junk.qcow2", mode="existing"),
        *READY,
        *COMPLETE,
        cmp("overlay1.qcow2", "junk.qcow2"),
    ],
    "drive existing top with a backing image": [
        *BY_HEADERS,
        drive(target="$DIR/tb.qcow2", mode="existing", format="qcow2", sync="top", node_name="copy"),
        *READY,
        *LOOK,
        *COMPLETE,
        cmp("overlay1.qcow2", "tb.qcow2"),
    ],
    "drive existing top, the backing image is not there": [
        *BY_HEADERS,
        drive(target="$DIR/orphan.qcow2", mode="existing", format="qcow2", sync="top"),
        *READY,
        verb("job-complete"),
        status("null"),
        *LOOK,
    ],
    "drive existing raw, probed": [
        *BY_HEADERS,
        drive(target="$DIR/t.raw", mode="existing"),
        *READY,
        *COMPLETE,
    ],
    "drive existing of another size": [
        *CHAIN,
        drive(target="$DIR/small.qcow2", mode="existing"),
        status("null"),
        *LOOK,
    ],
    "drive without unmap": [*CHAIN, drive(unmap=False), *READY, *COMPLETE, cmp("overlay1.qcow2", "new.qcow2")],
    "drive write-blocking": [*CHAIN, drive(copy_mode="write-blocking", sync="top"), *READY, *LOOK, *COMPLETE],
    "drive from a filter": [
        *CHAIN,
        Do("blockdev-add", {"driver": "copy-on-read", "node-name": "c", "file": "top"}),
        drive(device="c"),
        drive(device="c", format="qcow2", sync="top"),
        *READY,
        *COMPLETE,
        backing_of("new.qcow2"),
    ],
    "drive from a file": [
        Do("blockdev-add", {"driver": "file", "node-name": "top", "filename": "$DIR/junk.qcow2"}),
        drive(sync="top", target="$DIR/new.raw"),
        *READY,
        *COMPLETE,
        cmp("junk.qcow2", "new.raw", "raw", "raw"),
    ],
    "drive replaces": [
        *CHAIN,
        drive(replaces="top"),
        drive(replaces="top", node_name="copy"),
        *READY,
        *COMPLETE,
    ],
}

MISTAKES: list[Step] = [
    *CHAIN,
    TARGET,
    add("small", "small.qcow2"),
    Do("blockdev-mirror", {"device": "top", "target": "t", "sync": "full"}),
    Do("blockdev-mirror", {"job-id": "j", "device": "top", "target": "t"}),
    mirror(job_id="1x"),
    mirror(device="nope"),
    mirror(device="base"),
    mirror(device="ftop"),
    mirror(target="nope"),
    mirror(target="ft"),
    mirror(target="top"),
    mirror(target="base"),
    mirror(target="$DIR/t.qcow2"),
    mirror(sync="incremental"),
    mirror(sync="bitmap"),
    mirror(sync="nope"),
    mirror(granularity=511),
    mirror(granularity=256),
    mirror(granularity=513),
    mirror(granularity=128 * MIB),
    mirror(granularity=1 << 32),
    mirror(granularity=-1),
    mirror(granularity=3 * MIB),
    mirror(buf_size=-1),
    mirror(buf_size=-1, target="top"),
    mirror(speed=-1),
    mirror(on_source_error="nope"),
    mirror(on_target_error="auto", speed=-1),
    mirror(copy_mode="nope"),
    mirror(unmap=True),
    mirror(replaces="nope"),
    mirror(replaces="base"),
    mirror(replaces="t"),
    mirror(replaces="small"),
    mirror(replaces="small", sync="incremental"),
    mirror(filter_node_name="t"),
    mirror(filter_node_name="1"),
    mirror(filter_node_name="x" * 32),
    mirror(filter_node_name="x", job_id="1"),
    drive(device="nope"),
    drive(device="base"),
    drive(format="nope"),
    drive(format="null-co"),
    drive(format="raw", sync="top"),
    drive(target="/nope/x.qcow2"),
    drive(target="$DIR/nope.qcow2", mode="existing"),
    drive(target="$DIR/t.raw", mode="existing", format="qcow2"),
    drive(target="$DIR/overlay1.qcow2", mode="existing"),
    drive(target="$DIR/new.qcow2", sync="incremental"),
    drive(target="$DIR/new.qcow2", granularity=5),
    drive(target="$DIR/new.qcow2", node_name="t"),
    drive(target="$DIR/new.qcow2", node_name="1"),
    drive(target="$DIR/new.qcow2", replaces="top"),
    drive(target="$DIR/new.qcow2", replaces="nope", node_name="copy"),
    drive(target="$DIR/new.qcow2", replaces="base", node_name="copy"),
    drive(target="", mode="existing"),
    drive(target="nope:x"),
    drive(target="json:{}", mode="existing"),
    *LOOK,
]


def guest(where: str = "top") -> list[Step]:
    """Writes of somebody above the filter, to places that were copied; they count anew."""
    return [
        hmp(f'qemu-io {where} "write -q -P 1 0 64k"'),
        at(SIZE + 65536),
        hmp(f'qemu-io {where} "write -q -P 2 1M 192k"'),
        at(SIZE + 4 * 65536),
        hmp(f'qemu-io {where} "write -q -z 2M 64k"'),
        at(SIZE + 5 * 65536),
    ]


MACHINE: dict[str, list[Step]] = {
    "guest, background": [
        *CHAIN,
        TARGET,
        mirror(filter_node_name="mt"),
        *READY,
        *guest("mt"),
        hmp('qemu-io mt "write -q -P 3 3145729 1"'),
        at(SIZE + 6 * 65536),
        hmp('qemu-io mt "discard -q 0 64k"'),
        hmp("info block-jobs"),
        *COMPLETE,
    ],
    "guest, write-blocking": [
        *CHAIN,
        TARGET,
        mirror(filter_node_name="mt", copy_mode="write-blocking"),
        *READY,
        *guest("mt"),
        hmp('qemu-io mt "write -q -P 3 3145728 1k"'),
        at(SIZE + 5 * 65536 + 1024),
        hmp('qemu-io mt "discard -q 0 64k"'),
        hmp("info block-jobs"),
        *COMPLETE,
    ],
    "guest, none": [
        *CHAIN,
        add("t", "tb.qcow2", backing="base"),
        mirror(filter_node_name="mt", sync="none", granularity=65536),
        *READY,
        hmp('qemu-io mt "write -q -P 1 0 64k"'),
        at(65536),
        hmp('qemu-io mt "write -q -P 1 100k 1k"'),
        at(2 * 65536),
        *COMPLETE,
    ],
    "a drive": [
        hmp("drive_add 0 if=none,id=d0,file=$DIR/overlay1.qcow2,format=qcow2"),
        hmp("drive_mirror d0 $DIR/new.qcow2"),
        *READY,
        Do("query-block"),
        hmp("info block-jobs"),
        verb("block-job-complete", "d0"),
        status("null", "d0"),
        Do("query-block"),
        *LOOK,
        backing_of("new.qcow2"),
        cmp("overlay1.qcow2", "new.qcow2"),
        hmp("drive_mirror -f d0 $DIR/new.raw raw"),
        *READY,
        hmp("block_job_complete d0"),
        status("null", "d0"),
        Do("query-block"),
        hmp("drive_mirror -n -f d0 $DIR/t.qcow2 qcow2"),
        *READY,
        hmp("block_job_cancel d0"),
        status("null", "d0"),
        cmp("overlay1.qcow2", "t.qcow2"),
        Do("query-block"),
        *LOOK,
    ],
    "hmp": [
        *CHAIN,
        hmp("drive_mirror"),
        hmp("drive_mirror top"),
        hmp("drive_mirror -x top $DIR/new.qcow2"),
        hmp("drive_mirror nope $DIR/new.qcow2"),
        hmp("drive_mirror -n top $DIR/nope.qcow2"),
        hmp("drive_mirror -n -f top $DIR/t.qcow2 raw"),
        hmp("drive_mirror -f top $DIR/new.qcow2 nope"),
        hmp("drive_mirror -f top $DIR/new.raw raw"),
        hmp("drive_mirror top $DIR/new.qcow2"),
        hmp("drive_mirror base $DIR/new.qcow2 qcow2"),
        hmp("drive_mirror -n base $DIR/small.qcow2"),
        hmp("help drive_mirror"),
        *LOOK,
    ],
}


@pytest.fixture(scope="module")
def prepare(images: QemuImages, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Puts the images into a side's folder."""
    return image_maker(images, tmp_path_factory)


@pytest.mark.parametrize("name", list(DRIVE))
def test_conversations(prepare: Prepare, tmp_path: Path, name: str) -> None:
    """The same commands get the same answers and cause the same events in the same order."""
    assert_same(DRIVE[name], tmp_path, prepare=prepare, ignore=IGNORED)


@pytest.mark.parametrize("name", list(MACHINE))
def test_in_a_machine(qemu_system: str, prepare: Prepare, tmp_path: Path, name: str) -> None:
    """What needs a human monitor: qemu-io as the guest.

    Each time somebody begins or ceases to use a node QEMU drains it, and tells that the job stands by and is ready
    again; ours does not have to. So events are not compared.
    """
    assert_same(
        MACHINE[name],
        tmp_path,
        prepare=prepare,
        ignore=IGNORED,
        real=SYSTEM_EMULATOR,
        events=False,
    )


def test_the_disk_of_a_guest(prepare: Prepare, tmp_path: Path) -> None:
    """A guest device moves to the target; job ids are not made from names that it has not."""
    talk: list[Step] = [
        TARGET,
        Do("query-block"),
        Do("blockdev-mirror", {"device": "top", "target": "t", "sync": "full"}),
        mirror(filter_node_name="mt"),
        *READY,
        Do("query-block"),
        Do("device_del", {"id": "nope"}),
        verb("job-complete"),
        status("null"),
        Do("query-block"),
        *LOOK,
    ]
    both(
        talk,
        tmp_path,
        nodes=[BASE.arguments, TOP.arguments],
        devices=[{"driver": "virtio-blk-pci", "drive": "top", "id": "disk"}],
        prepare=prepare,
        ignore=IGNORED,
        events=False,
        paused=True,
    )


def test_mistakes(prepare: Prepare, tmp_path: Path) -> None:
    assert_same(MISTAKES, tmp_path, prepare=prepare, ignore=IGNORED)
