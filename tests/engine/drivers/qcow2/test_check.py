"""check: finds what qemu-img check finds, and what it repairs qemu-img finds whole."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2 import check, header
from engine.drivers.format.qcow2.findings import CheckResult
from engine.graph.driver import Status
from engine.qapi import to_wire
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, opened, qemu_check, qemu_read, run
from tests.graphs import Bench

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qemu_img", "qemu_io")]

EVERYTHING = frozenset({"leaks", "errors"})


class Damage:
    """An image with data, and the offsets of its parts, to break it at will."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        make(path, 4 << 20, **options)
        with opened(path) as image:
            image.write(0, b"A" * (1 << 20))
            image.write(2 << 20, b"B" * 300_000)
            image.write_zeroes(1 << 20, 1 << 17)
        self.data = bytearray(path.read_bytes())
        self.header = header.parse(FileChild(path))
        self.cluster = self.header.cluster_size

    def word(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "big")

    def put(self, offset: int, value: int, size: int = 8) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "big")

    @property
    def l2(self) -> int:
        return self.word(self.header.l1_offset) & 0x00FFFFFFFFFFFE00

    def entry(self, index: int) -> int:
        """Offset of L2 entry *index*."""
        return self.l2 + index * self.header.l2_entry_size

    def refcount(self, cluster: int) -> int:
        """Offset of a 16-bit refcount."""
        return self.word(self.header.reftable_offset) + cluster * 2

    def save(self) -> None:
        self.path.write_bytes(self.data)


def leaked(d: Damage) -> None:
    d.put(d.refcount(d.word(d.entry(3)) // d.cluster & 0xFFFF), 5, 2)


def freed(d: Damage) -> None:
    d.put(d.refcount((d.word(d.entry(3)) & 0xFFFFFFFFFFFFFF) // d.cluster), 0, 2)


def unlinked(d: Damage) -> None:
    d.put(d.entry(2), 0)


def not_copied(d: Damage) -> None:
    d.put(d.entry(1), d.word(d.entry(1)) & ~(1 << 63))
    d.put(d.header.l1_offset, d.word(d.header.l1_offset) & ~(1 << 63))


def shared_twice(d: Damage) -> None:
    d.put(d.entry(5), d.word(d.entry(4)))


def misaligned_zero(d: Damage) -> None:
    d.put(d.entry(60), (d.word(d.entry(3)) | 0x200) | 1)


def reserved_bits(d: Damage) -> None:
    d.put(d.entry(2), d.word(d.entry(2)) | 1 << 57)


def compressed_copied(d: Damage) -> None:
    at = d.word(d.entry(0)) & 0xFFFFFFFFFFFFFF
    d.put(d.entry(0), 1 << 63 | 1 << 62 | at)


def beyond_the_file(d: Damage) -> None:
    d.put(d.entry(2), 1 << 63 | 1 << 40)


def block_missing(d: Damage) -> None:
    d.put(d.header.reftable_offset, 0)


def block_misaligned(d: Damage) -> None:
    d.put(d.header.reftable_offset, d.word(d.header.reftable_offset) + 512)


def block_outside(d: Damage) -> None:
    d.put(d.header.reftable_offset, 1 << 40)


def table_is_gone(d: Damage) -> None:
    start = d.header.reftable_offset
    d.data[start : start + d.cluster] = bytes(d.cluster)


DAMAGES: list[tuple[Callable[[Damage], None], bool]] = [
    (leaked, True),
    (freed, True),
    (unlinked, True),
    (not_copied, True),
    (shared_twice, True),
    (misaligned_zero, True),
    (reserved_bits, False),
    (compressed_copied, True),
    (beyond_the_file, False),
    (block_missing, True),
    (block_misaligned, True),
    (block_outside, True),
    (table_is_gone, True),
]


def checked(path: Path, fix: frozenset[str] = frozenset()) -> CheckResult:
    child = FileChild(path)
    try:
        image = Opened(child, writable=bool(fix))
        result = check.check(image.image, fix)
        image.close()
        return result
    finally:
        child.close()


@pytest.mark.parametrize(("damage", "mendable"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_finds_what_qemu_finds_and_repairs_it(damage: Callable[[Damage], None], mendable: bool, tmp_path: Path) -> None:
    broken = Damage(tmp_path / "image.qcow2")
    damage(broken)
    broken.save()
    result = checked(broken.path)
    done = subprocess.run(["qemu-img", "check", "--output=json", broken.path], capture_output=True, text=True)
    theirs = json.loads(done.stdout)
    assert (result.corruptions > 0) == (theirs.get("corruptions", 0) > 0)
    assert (result.leaks > 0) == (theirs.get("leaks", 0) > 0)
    if damage not in (block_missing, block_misaligned, block_outside, table_is_gone):
        # There QEMU also counts what follows from the missing block.
        assert (result.corruptions, result.leaks) == (theirs.get("corruptions", 0), theirs.get("leaks", 0))
    assert broken.path.read_bytes() == broken.data, "a check without repair must not write"

    fixed = checked(broken.path, EVERYTHING)
    assert fixed.corruptions_fixed + fixed.leaks_fixed > 0 or not mendable
    assert (fixed.corruptions == 0) is mendable
    if mendable:
        assert (fixed.leaks, fixed.check_errors) == (0, 0)
        qemu_check(broken.path)
        again = checked(broken.path)
        assert (again.corruptions, again.leaks) == (0, 0)
        if damage is not misaligned_zero and damage not in (unlinked, shared_twice, compressed_copied):
            guest = qemu_read(broken.path)
            assert guest[: 1 << 20] == b"A" * (1 << 20)
            assert guest[2 << 20 : (2 << 20) + 300_000] == b"B" * 300_000


def test_leaks_alone(tmp_path: Path) -> None:
    broken = Damage(tmp_path / "image.qcow2")
    leaked(broken)
    freed(broken)
    broken.put(broken.refcount(200), 0, 2)
    broken.put(broken.refcount(4), 9, 2)
    broken.save()
    result = checked(broken.path, frozenset({"leaks"}))
    assert (result.leaks, result.leaks_fixed) == (0, 1)
    # The lost refcount, and the COPIED flag that goes with it.
    assert (result.corruptions, result.corruptions_fixed) == (2, 0)


@pytest.mark.parametrize(
    "options", [{"refcount_bits": 1}, {"refcount_bits": 64, "cluster_size": 512}, {"version": "v2"}]
)
def test_rebuilds_refcounts_of_every_width(options: dict[str, Any], tmp_path: Path) -> None:
    broken = Damage(tmp_path / "image.qcow2", **options)
    table_is_gone(broken)
    broken.save()
    result = checked(broken.path, EVERYTHING)
    assert (result.corruptions, result.leaks) == (0, 0)
    qemu_check(broken.path)
    assert qemu_read(broken.path)[: 1 << 20] == b"A" * (1 << 20)
    with opened(broken.path) as image:
        image.write(3 << 20, b"C" * 100_000)
    qemu_check(broken.path)


@pytest.mark.parametrize(
    "options",
    [(), ("cluster_size=512",), ("extended_l2=on",), ("compat=0.10",), ("refcount_bits=64", "cluster_size=4k")],
    ids=str,
)
def test_counters_agree_with_qemu_img(options: tuple[str, ...], tmp_path: Path, bench: Bench) -> None:
    path, raw = tmp_path / "image.qcow2", tmp_path / "plain.raw"
    raw.write_bytes(b"".join(b"%06d" % i for i in range(200_000)) + bytes(512 * 1000 - 1_200_000 % 512))
    run("qemu-img", "convert", "-c", "-O", "qcow2", *(["-o", ",".join(options)] if options else []), raw, path)
    run("qemu-img", "resize", path, "4M")
    run("qemu-io", "-c", "write -P 1 100k 300k", "-c", "write -P 2 3M 100", "-c", "write -z 2M 512k", path)
    if "compat=0.10" not in options:
        run("qemu-img", "bitmap", "--add", path, "b0")
    run("qemu-img", "snapshot", "-c", "s1", path)
    run("qemu-io", "-c", "write -P 1 200k 400k", path)
    node = bench.add(driver="qcow2", read_only=True, file={"driver": "file", "filename": str(path)})
    ours = to_wire(vars(node.driver.check()))  # type: ignore[attr-defined]
    theirs = qemu_check(path)
    assert ours.pop("messages") == []
    assert {key.replace("_", "-"): value for key, value in ours.items() if value} == {
        key: value for key, value in theirs.items() if value and key not in ("filename", "format")
    }


def test_repair_of_a_read_only_image_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "image.qcow2", 1 << 20)
    child = FileChild(tmp_path / "image.qcow2")
    image = Opened(child, writable=False)
    with pytest.raises(OSError) as caught:
        check.check(image.image, EVERYTHING)
    assert caught.value.errno == errno.EPERM
    child.close()


def test_dirty_images_are_repaired_at_a_read_write_open(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "4M")
    # An abort leaves the dirty bit, and refcounts that were never written.
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", "-c", "flush", "-c", "abort", path], capture_output=True)
    assert path.read_bytes()[79] & 1
    before = Bench(tmp_path)
    node = before.add(driver="qcow2", read_only=True, file={"driver": "file", "filename": str(path)})
    info = node.driver.info()
    assert info is not None
    assert info.is_dirty
    before.graph.close()
    assert path.read_bytes()[79] & 1
    after = Bench(tmp_path)
    node = after.add(driver="qcow2", file={"driver": "file", "filename": str(path)})
    assert not path.read_bytes()[79] & 1
    node.write(2 << 20, memoryview(b"x" * 100_000))
    node.flush()
    assert path.read_bytes()[79] & 1, "lazy refcounts are in use again"
    after.graph.close()
    assert not path.read_bytes()[79] & 1
    qemu_check(path)
    assert qemu_read(path)[: 1 << 20] == b"\7" * (1 << 20)


def test_a_repaired_image_may_be_written_again(tmp_path: Path) -> None:
    broken = Damage(tmp_path / "image.qcow2")
    broken.put(72, 2)
    freed(broken)
    broken.save()
    child = FileChild(broken.path)
    head = header.parse(child, writable=True, check=True)
    assert head.incompatible == header.Incompatible.CORRUPT
    from engine.drivers.format.qcow2.image import Image
    from engine.drivers.format.qcow2.settings import from_options

    image = Image(child, head, from_options(None, head, False), writable=True)
    result = check.check(image, EVERYTHING)
    image.close()
    child.close()
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    with opened(broken.path) as again:
        again.write(0, b"fine")
    qemu_check(broken.path)


def test_a_check_of_an_image_in_use_sees_what_is_not_flushed(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 4 << 20)
    node = bench.add(driver="qcow2", discard="unmap", file={"driver": "file", "filename": str(path)})
    node.write(0, memoryview(b"x" * (1 << 20)))
    node.discard(0, 1 << 19)
    result = node.driver.check()  # type: ignore[attr-defined]
    assert (result.corruptions, result.leaks, result.allocated_clusters) == (0, 0, 8)
    assert node.block_status(0, 1 << 19).flags & Status.ZERO
