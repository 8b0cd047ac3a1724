"""Mirrors of a quorum and mirrors that meet errors, beside the real QEMU."""

from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, Step, WaitEvent, assert_same
from tests.interop.mirroring import (
    CHAIN,
    COMPLETE,
    IDLE,
    IGNORED,
    LOOK,
    READY,
    SAME,
    Prepare,
    add,
    add_raw,
    cmp,
    image_maker,
    mirror,
    status,
    verb,
)
from tests.qemu import QemuImages

pytestmark = pytest.mark.usefixtures("qsd")


def quorum(*children: str) -> Do:
    """The first child is read, the others are only written to, so that they may differ."""
    options = {"node-name": "q", "vote-threshold": 2, "read-pattern": "fifo", "children": list(children)}
    return Do("blockdev-add", {"driver": "quorum"} | options)


QUORUM: dict[str, list[Step]] = {
    "quorum: replaces a child": [
        *(add(name, f"{name}.qcow2") for name in ("t", "u", "junk")),
        *CHAIN,
        quorum("top", "u", "junk"),
        mirror(device="q", replaces="junk"),
        *READY,
        *LOOK,
        *COMPLETE,
        SAME,
    ],
    "quorum: a child that others use": [
        *(add(name, f"{name}.qcow2") for name in ("t", "u", "junk")),
        *CHAIN,
        quorum("top", "u", "junk"),
        Do("blockdev-add", {"driver": "raw", "node-name": "other", "file": "u", "read-only": True}),
        mirror(device="q", replaces="u"),
        mirror(device="q", replaces="fu"),
        mirror(device="q", replaces="base"),
        mirror(device="q", replaces="junk"),
        *READY,
        *COMPLETE,
    ],
}


def faulty(name: str, image: str, *rules: dict[str, Any], driver: str = "qcow2") -> Do:
    """Open an image over a blkdebug node with these rules."""
    file = {
        "driver": "blkdebug",
        "node-name": f"d{name}",
        "image": {"driver": "file", "filename": f"$DIR/{image}"},
        "inject-error": [{"event": "none", "once": True} | rule for rule in rules],
    }
    return Do("blockdev-add", {"driver": driver, "node-name": name, "file": file})


ERROR = WaitEvent("BLOCK_JOB_ERROR")
WRITE = {"iotype": "write", "sector": 1024}
NO_SPACE = WRITE | {"errno": 28}
READ = {"iotype": "read", "sector": 2048}
FLUSH = {"iotype": "flush"}
SMALL = {"granularity": 65536, "buf_size": 65536}
"""One request at a time, so that it is the same that meets the error."""
SOURCE = add_raw("top", "full.raw")


def fails(policy: str, rule: dict[str, Any], *more: Step) -> list[Step]:
    """A mirror to a raw target whose writes or flushes meet *rule* once."""
    return [SOURCE, faulty("t", "t2.raw", rule, driver="raw"), mirror(on_target_error=policy, **SMALL), *more]


def unread(policy: str, *more: Step) -> list[Step]:
    return [
        faulty("top", "full.raw", READ, driver="raw"),
        add_raw("t", "t2.raw"),
        mirror(on_source_error=policy, on_target_error="report", **SMALL),
        *more,
    ]


STOPPED: list[Step] = [
    ERROR,
    status("paused"),
    IDLE,
    verb("job-cancel", "nope"),
    verb("block-job-cancel"),
    verb("job-resume"),
]
RAW_SAME = cmp("full.raw", "t2.raw", "raw", "raw")
FINISH: list[Step] = [*READY, verb("job-complete"), status("null"), RAW_SAME]

FAULTS: dict[str, list[Step]] = {
    "target: report": fails("report", WRITE, ERROR, status("null"), *LOOK),
    "target: report, kept": [
        SOURCE,
        faulty("t", "t2.raw", WRITE, driver="raw"),
        mirror(auto_dismiss=False, **SMALL),
        status("concluded"),
        Do("query-jobs"),
        IDLE,
        verb("job-dismiss"),
    ],
    "target: ignore": fails("ignore", WRITE, ERROR, *FINISH),
    "target: stop": fails("stop", WRITE, *STOPPED, *FINISH),
    "target: enospc, but it is another": fails("enospc", WRITE, ERROR, status("null")),
    "target: enospc": fails("enospc", NO_SPACE, *STOPPED, *FINISH),
    "target: auto": fails("auto", NO_SPACE, *STOPPED, *FINISH),
    "target: stop, cancelled": fails(
        "stop", WRITE, ERROR, status("paused"), IDLE, verb("block-job-cancel", force=True), status("null"), *LOOK
    ),
    "target: flush, report": fails("report", FLUSH, ERROR, status("null")),
    "target: flush, stop": fails("stop", FLUSH, *STOPPED, *FINISH),
    "target: flush, ignore": fails("ignore", FLUSH, ERROR, *FINISH),
    "source: report": unread("report", ERROR, status("null"), *LOOK),
    "source: ignore": unread("ignore", ERROR, *FINISH),
    "source: stop": unread("stop", *STOPPED, *FINISH),
    "source: enospc": unread("enospc", ERROR, status("null")),
}


@pytest.fixture(scope="module")
def prepare(images: QemuImages, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Puts the images into a side's folder."""
    return image_maker(images, tmp_path_factory)


@pytest.mark.parametrize("name", list(QUORUM | FAULTS))
def test_conversations(prepare: Prepare, tmp_path: Path, name: str) -> None:
    """The same commands get the same answers and cause the same events in the same order."""
    assert_same((QUORUM | FAULTS)[name], tmp_path, prepare=prepare, ignore=IGNORED)
