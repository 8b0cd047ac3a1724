"""What conversations about mirrors are made of: images, nodes, commands and what is looked at afterwards."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Step, Until, WaitEvent
from tests.qemu import QemuImages

Prepare = Callable[[Path], object]
MIB = 1 << 20
SIZE = 8 * MIB


def wire(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in arguments.items()}


def status(value: str, job: str = "j") -> WaitEvent:
    return WaitEvent("JOB_STATUS_CHANGE", {"id": job, "status": value})


def verb(name: str, job: str = "j", **arguments: Any) -> Do:
    key = "device" if name.startswith("block-job") and name not in ("block-job-finalize", "block-job-dismiss") else "id"
    return Do(name, {key: job} | wire(arguments))


def add(name: str, image: str, **options: Any) -> Do:
    """Open a qcow2 image as the node *name* over its file node, fNAME."""
    file = {"driver": "file", "filename": f"$DIR/{image}", "node-name": f"f{name}"}
    return Do("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file} | wire(options))


def add_raw(name: str, image: str, **options: Any) -> Do:
    file = {"driver": "file", "filename": f"$DIR/{image}", "node-name": f"f{name}"}
    return Do("blockdev-add", {"driver": "raw", "node-name": name, "file": file} | wire(options))


def mirror(**arguments: Any) -> Do:
    return Do("blockdev-mirror", {"job-id": "j", "device": "top", "target": "t", "sync": "full"} | wire(arguments))


def drive(**arguments: Any) -> Do:
    given = {"job-id": "j", "device": "top", "target": "$DIR/new.qcow2", "sync": "full"}
    return Do("drive-mirror", given | wire(arguments))


BASE = add("base", "base.qcow2", read_only=True)
TOP = add("top", "overlay1.qcow2", backing="base")
CHAIN: list[Step] = [BASE, TOP]
BY_HEADERS: list[Step] = [add("top", "overlay1.qcow2")]
TARGET = add("t", "t.qcow2")
RAW_TARGET = add_raw("t", "t.raw")
RAW2 = add_raw("r", "t.raw")
LOOK: list[Step] = [
    Do("query-jobs"),
    Do("query-block-jobs"),
    Do("query-named-block-nodes", {"flat": True}),
    Do("x-debug-query-block-graph"),
]


def at(offset: int) -> Until:
    return Until("query-block-jobs", lambda jobs: jobs[0]["offset"] == offset and not jobs[0]["busy"])


IDLE = Until("query-block-jobs", lambda jobs: not jobs[0]["busy"])
READY: list[Step] = [WaitEvent("JOB_STATUS_CHANGE", {"status": "ready"}), WaitEvent("BLOCK_JOB_READY"), IDLE]
COMPLETE: list[Step] = [verb("job-complete"), status("null"), *LOOK]


def in_use(name: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": f"Device '{name}' is in use"}}


def cmp(first: str, second: str, first_format: str = "qcow2", second_format: str = "qcow2") -> Call:
    """Whether two images are identical for a guest, and of the same size, as qemu-img says."""

    def compare(where: Path) -> bool:
        formats = ["-f", first_format, "-F", second_format]
        done = subprocess.run(
            ["qemu-img", "compare", "-s", "-U", *formats, str(where / first), str(where / second)],
            check=False,
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    return Call(compare)


def backing_of(image: str) -> Call:
    """The backing file name and format in the header of an image, its size and format."""

    def look(where: Path) -> list[str]:
        done = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", str(where / image)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        info = json.loads(done.stdout)
        found = [info.get(key) for key in ("backing-filename", "backing-filename-format", "virtual-size", "format")]
        return [str(item).replace(str(where), "$DIR") for item in found]

    return Call(look)


SAME = cmp("overlay1.qcow2", "t.qcow2")

IGNORED: Sequence[str] = ("actual-size", "virtual-size")
"""How long the file of an image is, and the space it takes, depend on the order of allocations and on where zeros in a
granule were found. Sizes for the guest are looked at by qemu-img."""


def image_maker(images: QemuImages, factory: pytest.TempPathFactory) -> Prepare:
    """Makes the images once; what is returned copies them into a folder."""
    made = factory.mktemp("images")
    make_images(images, made)
    return lambda where: shutil.copytree(made, where, dirs_exist_ok=True)


def make_images(images: QemuImages, where: Path) -> None:
    images.chain(where, 2, size=SIZE, seed=5)
    images.create(where / "t.qcow2", SIZE)
    images.create(where / "u.qcow2", SIZE)
    images.create(where / "t.raw", SIZE, fmt="raw")
    images.create(where / "t2.raw", SIZE // 4, fmt="raw")
    images.create(where / "t4k.qcow2", SIZE, cluster_size=4096)
    images.create(where / "t2m.qcow2", backing="base.qcow2", cluster_size=2 * MIB)
    images.create(where / "small.qcow2", SIZE // 2)
    images.create(where / "empty1.qcow2", 0)
    images.create(where / "empty2.qcow2", 0)
    images.create(where / "tb.qcow2", backing="base.qcow2")
    images.create(where / "junk.qcow2", SIZE)
    images.io(where / "junk.qcow2", f"write -P 77 0 {SIZE}")
    images.create(where / "full.raw", SIZE // 4, fmt="raw")
    images.io(where / "full.raw", f"write -P 77 0 {SIZE // 4}", fmt="raw")
    images.create(where / "gone.qcow2", SIZE)
    images.create(where / "orphan.qcow2", backing="gone.qcow2")
    (where / "gone.qcow2").unlink()
