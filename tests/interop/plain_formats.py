"""What comparisons of vdi, vpc and parallels share: making images, breaking headers, comparing content and status."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.graph.opening import open_node
from engine.graph.status import status_above
from tests.graphs import Bench
from tests.interop.cases import NODES, Case, add, file
from tests.interop.differential import Call, Do, Step, WaitEvent
from tests.qemu import QemuImages

Prepare = Callable[[Path], None]


def create(driver: str, options: Mapping[str, Any]) -> list[Step]:
    """blockdev-create in the node f, and what became of the job."""
    return [
        Do("blockdev-create", {"job-id": "j", "options": {"driver": driver, "file": "f", **options}}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": "j", "status": "concluded"}),
        Do("query-jobs"),
        Do("job-dismiss", {"id": "j"}),
    ]


def created(
    driver: str, prepare: Prepare, look: Callable[[Path], Any], options: Mapping[str, Mapping[str, Any]]
) -> list[Case]:
    """A case for each set of options: an image is made in the empty file new.img, and opened."""
    new = add("file", "f", filename="$DIR/new.img")
    return [
        Case(
            f"create-{name}",
            [new, *create(driver, given), Call(look), add(driver, "v", file="f"), NODES],
            prepare=prepare,
            # QEMU gives a file that grows from nothing one block at once, so that its alignment can be probed.
            ignore={"actual-size"},
        )
        for name, given in options.items()
    ]


def refused(driver: str, prepare: Prepare, options: Mapping[str, Mapping[str, Any]]) -> list[Case]:
    """A case for each set of options that blockdev-create does not even make a job of."""
    return [
        Case(
            f"create-{name}",
            [Do("blockdev-create", {"job-id": "j", "options": {"driver": driver, "file": "f", **given}})],
            prepare=prepare,
        )
        for name, given in options.items()
    ]


def broken(driver: str, name: str, prepare: Prepare, change: Callable[[bytearray], object], **options: Any) -> Case:
    """A case where the image *name* is opened after its bytes were changed."""

    def make(where: Path) -> None:
        prepare(where)
        content = bytearray((where / name).read_bytes())
        change(content)
        (where / name).write_bytes(content)

    return Case("", [add(driver, "v", file=file(name), **options), NODES], prepare=make)


def put(at: int, data: bytes) -> Callable[[bytearray], object]:
    """The change that puts *data* at the offset *at*."""

    def change(content: bytearray) -> None:
        content[at : at + len(data)] = data

    return change


def named(cases: Mapping[str, Case]) -> list[Case]:
    """The cases with the names they have in the mapping."""
    for name, case in cases.items():
        case.id = name
    return list(cases.values())


def _merged(extents: Sequence[tuple[int, int, bool, bool]]) -> list[tuple[int, int, bool, bool]]:
    found: list[tuple[int, int, bool, bool]] = []
    for start, length, zero, data in extents:
        if found and found[-1][2:] == (zero, data):
            found[-1] = (found[-1][0], found[-1][1] + length, zero, data)
        else:
            found.append((start, length, zero, data))
    return found


def assert_reads_the_same(bench: Bench, images: QemuImages, path: Path, driver: str, *, probed: bool = True) -> None:
    """Our content, length and status of an image are those that qemu-img has."""
    raw = bench.folder / "as.raw"
    images.run("convert", "-f", driver, "-O", "raw", path, raw)
    options = {"read-only": True} if probed else {"read-only": True, "driver": driver}
    node = open_node(bench.graph, options, filename=str(path))
    assert node.driver.name == driver
    content = bytearray(node.length)
    node.read(0, memoryview(content))
    assert content == raw.read_bytes()
    seen: list[tuple[int, int, bool, bool]] = []
    at = 0
    while at < node.length:
        extent, _ = status_above(node, None, at, node.length - at)
        seen.append((at, extent.length, bool(extent.flags & 2), bool(extent.flags & 1)))
        at += extent.length
    if probed:
        real = [(item["start"], item["length"], item["zero"], item["data"]) for item in images.map(path)]
        assert _merged(seen) == _merged(real)
    bench.graph.unpin(node)
