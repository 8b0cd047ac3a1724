"""bochs, cloop and dmg beside the real programs: opening, reading, refusing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.drivers.formats.test_read_only import BROKEN, IMAGES
from tests.interop.cases import add, file
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, assert_same
from tests.interop.format_talk import CLOSE, NODES, io

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

DRIVERS = {"bochs": "bochs-v2", "cloop": "cloop", "dmg": "dmg"}


def _talk(driver: str) -> list[Step]:
    image = file("image", "f", read_only=False, auto_read_only=True)
    return [
        add(driver, "n", file=image),
        add(driver, "n", file=image, read_only=False),
        add(driver, "n", file=image, read_only=True, nope=1),
        add(driver, "n", read_only=True),
        add(driver, "n", file=file("missing"), read_only=True),
        add(driver, "n", file=file("short"), read_only=True),
        add(driver, "n", file=image, read_only=False, auto_read_only=True),
        NODES,
        io("n", "read -q 0 35840"),
        io("n", "read -q 100 5000"),
        Do("block_resize", {"node-name": "n", "size": 512}),
        Do("blockdev-reopen", {"options": [{"driver": driver, "node-name": "n", "file": "f", "read-only": True}]}),
        CLOSE,
        Do("blockdev-create", {"job-id": "j", "options": {"driver": driver}}),
    ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_talk_is_that_of_the_emulator(driver: str, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        (where / "image").write_bytes(IMAGES[DRIVERS[driver]][1])
        (where / "short").write_bytes(b"x" * 100)

    assert_same(_talk(driver), tmp_path, prepare=prepare, real=SYSTEM_EMULATOR)


@pytest.mark.parametrize("driver", DRIVERS)
def test_broken_images_are_refused_in_the_same_words(driver: str, tmp_path: Path) -> None:
    cases = [name for name in BROKEN if BROKEN[name][0] == driver]

    def prepare(where: Path) -> None:
        for name in cases:
            (where / name).write_bytes(BROKEN[name][1])

    talk = [add(driver, "n", file=file(name), read_only=True) for name in cases]
    assert_same(talk, tmp_path, prepare=prepare)
