"""What is said to both sides about an image format: creating, opening, writing, resizing, and what they tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.interop.cases import NODES, add, delete, file, io, wire_names
from tests.interop.differential import Call, Do, Step, Until
from tests.qemu import QemuImages

MIB = 1 << 20
CLOSE = delete("n")


def create(name: str, driver: str, job: str = "j", **options: Any) -> list[Step]:
    """blockdev-create in the new file *name*; the job's end is looked at."""
    return [
        Call(lambda where: (where / name).write_bytes(b"")),
        Do("blockdev-add", {"driver": "file", "node-name": "new", "filename": f"$DIR/{name}"}),
        Do(
            "blockdev-create",
            {"job-id": job, "options": {"driver": driver, "file": "new", "size": MIB} | wire_names(options)},
        ),
        Until("query-jobs", lambda jobs: not jobs or jobs[0]["status"] == "concluded"),
        Do("job-dismiss", {"id": job}),
        delete("new"),
    ]


def opened(name: str, driver: str, **options: Any) -> Do:
    return add(driver, "n", file=file(name, "f"), **options)


def same_bytes(*names: str) -> Call:
    """The whole files, byte by byte."""
    return Call(lambda where: [(where / name).read_bytes().hex() for name in names])


def told(name: str) -> Call:
    """What the real qemu-img says of the image: its map."""

    def run(where: Path) -> Any:
        images = QemuImages("qemu-img", "qemu-io")
        return images.map(where / name)

    return Call(run)


def patch(name: str, offset: int, value: bytes) -> Call:
    """Overwrite bytes of a file."""

    def run(where: Path) -> None:
        with open(where / name, "r+b") as image:
            image.seek(offset)
            image.write(value)

    return Call(run)


__all__ = ["CLOSE", "MIB", "NODES", "create", "io", "opened", "patch", "same_bytes", "told"]
