"""Jobs on drives of the command line, in the way QEMU's own tests of jobs start them, beside the real emulator.

Most of QEMU's tests make their disk by ``-drive`` with a format, a cache mode and an AIO engine, name the nodes below
by options, put faults under it by a ``blkdebug:`` file name, and then look at events, queries and error texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, OurPeer, Step, Until, WaitEvent
from tests.interop.pc import both
from tests.interop.test_drives import make
from tests.qemu import QemuImages

MIB = 1 << 20
COMMON = "if=virtio,id=drive0,format=qcow2,cache=writeback,aio=threads"
NAMED = ",backing.node-name=mid,backing.backing.node-name=base"
FAULT = """\
[inject-error]
state = "1"
event = "read_aio"
errno = "{errno}"
immediately = "off"
once = "on"
sector = "1024"

[set-state]
state = "1"
event = "read_aio"
new_state = "2"

[set-state]
state = "2"
event = "read_aio"
new_state = "1"
"""
"""Reading the second half MiB fails once."""


@dataclass(frozen=True)
class Case:
    """drive: what follows the common options; file: the image or file name; events: whether theirs are the same."""

    steps: Sequence[Step]
    file: str = "$DIR/test.qcow2"
    drive: str = NAMED
    common: str = COMMON
    events: bool = True


def job(command: str, **arguments: Any) -> Do:
    return Do(command, {"device": "drive0"} | {key.replace("_", "-"): value for key, value in arguments.items()})


def status(value: str, name: str = "drive0") -> WaitEvent:
    return WaitEvent("JOB_STATUS_CHANGE", {"id": name, "status": value})


LOOK: list[Step] = [Do("query-block-jobs"), Do("query-block"), Do("query-named-block-nodes", {"flat": True})]
STOPPED = Until("query-block-jobs", lambda jobs: bool(jobs) and jobs[0]["paused"] and not jobs[0]["busy"])
MISUSE: list[Step] = [
    job("block-commit", top="$DIR/mid.qcow2", base="$DIR/mid.qcow2"),
    job("block-commit", top="$DIR/base.raw", base="$DIR/mid.qcow2"),
    job("block-commit", top="$DIR/mid.qcow2", base="$DIR/test.qcow2"),
    job("block-commit", top="badfile"),
    job("block-commit", top_node="mid", base_node="badfile"),
    job("block-commit", top_node="mid", top="$DIR/mid.qcow2"),
    job("block-stream", base="badfile"),
    job("block-stream", base_node="base", bottom="mid"),
    job("block-stream", base_node="mid", job_id="1x"),
    job("drive-mirror", target="$DIR/none", sync="full", mode="existing"),
    job("drive-mirror", target="$DIR/none", sync="incremental"),
    job("drive-backup", target="$DIR/missing", sync="full", mode="existing"),
    *LOOK,
]

CASES = {
    "named nodes": Case(LOOK),
    "stream": Case([job("block-stream"), status("null"), *LOOK]),
    "stream to a base": Case([job("block-stream", base="$DIR/base.raw"), status("null"), *LOOK]),
    "stream in the middle": Case(
        [Do("block-stream", {"device": "mid", "job-id": "s"}), status("null", "s"), *LOOK],
    ),
    "commit": Case([job("block-commit", top_node="mid"), status("null"), *LOOK]),
    "active commit": Case(
        [job("block-commit"), status("ready"), job("block-job-complete"), status("null"), *LOOK],
    ),
    "misuse": Case(MISUSE),
    "names of the file nodes below": Case(
        [job("block-commit", top_node="midfile"), job("block-commit", top_node="mid"), status("null"), *LOOK],
        drive=NAMED + ",backing.file.node-name=midfile,file.node-name=topfile",
    ),
    "the backing file by an option": Case(LOOK, drive=",backing.file.filename=$DIR/mid.qcow2,backing.node-name=mid"),
    "faults by options": Case(
        [job("block-stream"), status("null"), *LOOK],
        drive=",file.driver=blkdebug,file.inject-error.0.event=l2_load,file.inject-error.0.once=on,"
        "file.inject-error.0.sector=9999999",
    ),
    "a job on the drive blocks by the drive's name": Case(
        [
            job("block-stream", base_node="base", speed=1),
            job("drive-backup", target="$DIR/new", sync="full", job_id="b"),
        ],
        # A command that drains wakes QEMU's jobs from the sleep that keeps them at their speed.
        events=False,
    ),
    "empty": Case(
        [
            job("block-commit"),
            job("block-stream"),
            job("drive-mirror", target="$DIR/none", sync="full"),
            job("drive-backup", target="$DIR/none", sync="full"),
        ],
        file="",
        drive="",
        common="if=ide,id=drive0,media=cdrom",
    ),
}


def fails(policy: str, *steps: Step, errno: int = 5) -> Case:
    """A stream whose second step can't read. What is told of the job then is where that step began."""
    return Case([job("block-stream", on_error=policy), *steps, Do("query-block-jobs")], f"$DIR/faulty{errno}.qcow2", "")


ERROR = WaitEvent("BLOCK_JOB_ERROR")
ONE_DRIVE = {
    "report": fails("report", ERROR, status("null")),
    "ignore": fails("ignore", ERROR, status("null")),
    "stop": fails("stop", ERROR, STOPPED, job("block-job-resume"), status("null")),
    "enospc": fails("enospc", ERROR, STOPPED, job("block-job-resume"), status("null"), errno=28),
    "enospc, but it is another": fails("enospc", ERROR, status("null")),
}
CASES |= {f"stream, on-error {name}": case for name, case in ONE_DRIVE.items()}


@pytest.fixture
def prepare(images: QemuImages) -> Callable[[Path], None]:
    def make_images(where: Path) -> None:
        images.create(where / "base.raw", 2 * MIB, fmt="raw")
        # No zeros: ours leaves out more of them than QEMU does, which shows in the sizes of files.
        images.io(where / "base.raw", "write -P 1 0 2M", fmt="raw")
        images.create(where / "mid.qcow2", backing=where / "base.raw", backing_format="raw")
        images.io(where / "mid.qcow2", "write -P 2 512k 256k")
        images.create(where / "test.qcow2", backing=where / "mid.qcow2")
        images.io(where / "test.qcow2", "write -P 3 1M 64k")
        images.create(where / "full.raw", MIB, fmt="raw")
        images.io(where / "full.raw", "write -P 5 0 1M", fmt="raw")
        for errno in (5, 28):
            rules = where / f"fault{errno}.conf"
            rules.write_text(FAULT.format(errno=errno))
            backing = f"blkdebug:{rules}:{where / 'full.raw'}"
            images.run(
                *("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw"),
                *(where / f"faulty{errno}.qcow2", str(MIB)),
            )

    return make_images


@pytest.mark.parametrize("name", CASES)
def test_job_on_a_drive(name: str, prepare: Callable[[Path], None], images: QemuImages, tmp_path: Path) -> None:
    """The same drive, commands, errors, events in the same order, and a sound image after it."""
    case = CASES[name]
    text = case.common + (f",file={case.file}" if case.file else "") + case.drive

    def drives(peer: OurPeer) -> None:
        make(peer.engine, text.replace("$DIR", str(peer.where)))

    both(
        case.steps,
        tmp_path,
        prepare=prepare,
        options=["-drive", text],
        drives=drives,
        ignore={"actual-size", "qdev"},
        events=case.events,
    )
    images.check(tmp_path / "ours/test.qcow2")


def test_newest_conflict_is_told(tmp_path: Path) -> None:
    """Of several users whose permissions conflict with a new one's the text names the one that came last."""
    users: list[Step] = [
        Do(
            "blockdev-add",
            {"driver": "blkdebug", "node-name": name, "image": "base", "take-child-perms": ["write"]},
        )
        for name in ("first", "second")
    ]
    base = {"driver": "null-co", "node-name": "base", "size": MIB}
    new = {"driver": "blkdebug", "node-name": "third", "image": "base", "unshare-child-perms": ["write"]}
    both([*users, Do("blockdev-add", new)], tmp_path, nodes=[base])
