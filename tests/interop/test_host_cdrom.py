"""host_cdrom beside the real program, on devices that every machine has; none of them is a drive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.cases import NODES, add
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, assert_same

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

TALK: list[Step] = [
    add("host_cdrom", "n", filename="$DIR/regular"),
    add("host_cdrom", "n", filename="$DIR/missing"),
    add("host_cdrom", "n", filename=""),
    add("host_cdrom", "n"),
    add("host_cdrom", "n", filename="/dev/null", aio="native"),
    add("host_cdrom", "n", filename="/dev/null", nope=1),
    add("host_cdrom", "n", filename="/dev/null", read_only=True),
    NODES,
    Do("query-blockstats", {"query-nodes": True}),
    # QEMU asks the drive first; here it's the node that is asked first.
    Do(
        "block_resize",
        {"node-name": "n", "size": 512},
        {"error": {"class": "GenericError", "desc": "Image is read-only"}},
    ),
    Do("blockdev-create", {"job-id": "j", "options": {"driver": "host_cdrom"}}),
    Do("blockdev-del", {"node-name": "n"}),
]


def test_talk_is_that_of_the_emulator(tmp_path: Path) -> None:
    assert_same(TALK, tmp_path, prepare=lambda where: (where / "regular").write_bytes(b""), real=SYSTEM_EMULATOR)
