"""x-blockdev-amend beside the real qemu-storage-daemon: on images without encryption."""

from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, Step, Until, WaitEvent, assert_same
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

LUKS = {"format": "luks", "state": "active", "new-secret": "sec0"}
OPEN: list[Step] = [
    Do(
        "blockdev-add",
        {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "$DIR/a.qcow2"}},
    ),
    Do(
        "blockdev-add",
        {
            "driver": "qcow2",
            "node-name": "ro",
            "read-only": True,
            "file": {"driver": "file", "filename": "$DIR/b.qcow2"},
        },
    ),
    Do(
        "blockdev-add",
        {"driver": "raw", "node-name": "r", "file": {"driver": "file", "filename": "$DIR/r.raw", "node-name": "f"}},
    ),
]


def amend(node: str, job: str = "j", *, force: bool | None = None, **options: Any) -> Do:
    given: dict[str, Any] = {"job-id": job, "node-name": node, "options": options}
    return Do("x-blockdev-amend", given if force is None else given | {"force": force})


def over(job: str = "j") -> list[Step]:
    """Wait until the job is concluded, look at it, and dismiss it."""
    return [
        WaitEvent("JOB_STATUS_CHANGE", {"id": job, "status": "concluded"}),
        Do("query-jobs"),
        Do("query-block-jobs"),
        Do("job-dismiss", {"id": job}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": job, "status": "null"}),
        Do("query-jobs"),
    ]


CONVERSATIONS: dict[str, list[Step]] = {
    "nothing to change": [amend("n", driver="qcow2"), *over()],
    "nothing to change, by force": [amend("n", force=True, driver="qcow2"), *over()],
    "nothing to change in a read-only image": [amend("ro", driver="qcow2"), *over()],
    "a key slot of an image without": [amend("n", driver="qcow2", encrypt=LUKS), *over()],
    "a key slot by force": [amend("n", force=True, driver="qcow2", encrypt=LUKS), *over()],
    "a key slot of a read-only image": [amend("ro", driver="qcow2", encrypt=LUKS), *over()],
    "the old encryption": [amend("n", driver="qcow2", encrypt={"format": "qcow"}), *over()],
    "all members": [
        amend(
            "n",
            driver="qcow2",
            encrypt=LUKS | {"old-secret": "x", "keyslot": 1, "iter-time": 10, "secret": "y", "state": "inactive"},
        ),
        *over(),
    ],
    "unknown nodes": [amend("nope", driver="qcow2"), amend("nope", driver="raw"), amend("", driver="raw")],
    "another driver": [amend("n", driver="raw"), amend("r", driver="qcow2"), amend("r", driver="file")],
    "drivers that can't": [amend("r", driver="raw"), amend("f", driver="file")],
    "drivers that are none": [amend("n", driver="nope"), amend("n"), amend("n", driver=1)],
    "wrong members": [
        amend("n", driver="qcow2", size=1),
        amend("n", driver="qcow2", encrypt={"format": "luks"}),
        amend("n", driver="qcow2", encrypt={"format": "aes"}),
        amend("n", driver="qcow2", encrypt={"format": "luks", "state": "off"}),
        amend("n", driver="qcow2", encrypt={}),
        amend("n", driver="qcow2", encrypt=LUKS | {"keyslot": "a"}),
        amend("n", driver="qcow2", encrypt={"format": "qcow", "state": "active"}),
    ],
    "wrong arguments": [
        Do("x-blockdev-amend", {"job-id": "j"}),
        Do("x-blockdev-amend", {"job-id": "j", "node-name": "n"}),
        Do("x-blockdev-amend", {"node-name": "n", "options": {"driver": "qcow2"}}),
        Do("x-blockdev-amend", {"job-id": "j", "node-name": "n", "options": {"driver": "qcow2"}, "force": 1}),
        Do("x-blockdev-amend", {"job-id": "j", "node-name": "n", "options": {"driver": "qcow2"}, "x": 1}),
    ],
    "job ids": [
        amend("n", "1 a", driver="qcow2"),
        amend("n", "", driver="qcow2"),
        amend("n", driver="qcow2"),
        Until("query-jobs", lambda jobs: jobs[0]["status"] == "concluded"),
        amend("n", driver="qcow2"),
        Do("job-cancel", {"id": "j"}),
        Do("job-complete", {"id": "j"}),
        Do("job-pause", {"id": "j"}),
        Do("block-job-cancel", {"device": "j"}),
        *over(),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_amending_is_that_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        images.create(where / "a.qcow2", "1M")
        images.create(where / "b.qcow2", "1M")
        images.create(where / "r.raw", "1M", fmt="raw")

    assert_same(OPEN + CONVERSATIONS[name], tmp_path, prepare=prepare)
