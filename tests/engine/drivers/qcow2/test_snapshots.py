"""Internal snapshots: what was there when one was taken stays there, whatever happens to the disk, until it is deleted.

The image is compared with byte arrays, and checked: every refcount and every COPIED flag must be right.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.drivers.format.qcow2 import check, header, snapshots, snapshotting
from engine.errors import GenericError
from engine.graph.driver import WriteFlag
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, opened, qemu_check, qemu_read, run

COMPRESSED, MAY_UNMAP = int(WriteFlag.COMPRESSED), int(WriteFlag.MAY_UNMAP)

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "512": ({"cluster_size": 512}, 80 << 10),
    "512-v2": ({"cluster_size": 512, "version": "v2"}, 80 << 10),
    "4k-rc64": ({"cluster_size": 4096, "refcount_bits": 64}, 300 << 10),
    "4k-rc4": ({"cluster_size": 4096, "refcount_bits": 4}, 300 << 10),
    "4k-lazy": ({"cluster_size": 4096, "lazy_refcounts": True}, 300 << 10),
    "16k-extended": ({"cluster_size": 16384, "extended_l2": True}, 400 << 10),
    "4k-zstd": ({"cluster_size": 4096, "compression_type": "zstd"}, 300 << 10),
}


class Model:
    """An open image beside byte arrays of its disk and of each snapshot."""

    def __init__(self, path: Path, options: dict[str, Any], size: int) -> None:
        make(path, size, **options)
        self.path = path
        self.version = 2 if options.get("version") == "v2" else 3
        self.narrow = options.get("refcount_bits", 16) < 16
        self.cluster: int = options["cluster_size"]
        self.disk = bytearray(size)
        self.saved: dict[str, bytes] = {}
        self.count = 0
        self._open()

    def _open(self) -> None:
        self.child = FileChild(self.path)
        self.image = Opened(self.child)

    def close(self) -> None:
        self.image.close()
        self.child.close()

    def _where(self, offset: int, length: int) -> tuple[int, int]:
        offset = offset % len(self.disk) // 512 * 512
        return offset, min(length * 512, len(self.disk) - offset)

    def write(self, offset: int, length: int, seed: int) -> None:
        offset, length = self._where(offset, length)
        data = random.Random(seed).randbytes(length)
        self.image.write(offset, data)
        self.disk[offset : offset + length] = data

    def compress(self, offset: int, length: int, seed: int) -> None:
        offset = offset % len(self.disk) // self.cluster * self.cluster
        data = bytes([seed & 0xFF]) * min(self.cluster, len(self.disk) - offset)
        try:
            self.image.write(offset, data, COMPRESSED)
        except OSError as exc:
            # EIO: the cluster has data already.
            if exc.errno != errno.EIO:
                raise
            return
        self.disk[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, seed: int) -> None:
        offset, length = self._where(offset, length)
        self.image.write_zeroes(offset, length, seed & MAY_UNMAP)
        self.disk[offset : offset + length] = bytes(length)

    def discard(self, offset: int, length: int, seed: int) -> None:
        offset, length = self._where(offset, length)
        self.image.discard(offset, length)
        first = -(-offset // self.cluster) * self.cluster
        end = offset + length
        last = end if end == len(self.disk) else end // self.cluster * self.cluster
        if first < last:
            self.disk[first:last] = bytes(last - first)

    def resize(self, offset: int, length: int, seed: int) -> None:
        size = max((offset + length * 512) % (400 << 10) // 512 * 512, 512)
        if self.version == 2 and self.saved:
            with pytest.raises(GenericError, match="Can't resize a v2 image which has snapshots"):
                self.image.truncate(size)
            return
        self.image.truncate(size)
        del self.disk[size:]
        self.disk.extend(bytes(size - len(self.disk)))

    def snapshot(self, offset: int, length: int, seed: int) -> None:
        if len(self.saved) > 6:
            return
        self.count += 1
        if self._fits(lambda: self.image.snapshot(f"s{self.count}")):
            self.saved[f"s{self.count}"] = bytes(self.disk)

    def _fits(self, change: Callable[[], object]) -> bool:
        """Do *change*; False when narrow refcounts forbid it: compressed data has many references to a cluster."""
        try:
            change()
        except OSError as exc:
            if exc.errno != errno.EINVAL or not self.narrow:
                raise
            return False
        return True

    def _pick(self, seed: int) -> str | None:
        return sorted(self.saved)[seed % len(self.saved)] if self.saved else None

    def delete(self, offset: int, length: int, seed: int) -> None:
        name = self._pick(seed)
        if name is not None:
            self.image.delete(name)
            del self.saved[name]

    def goto(self, offset: int, length: int, seed: int) -> None:
        name = self._pick(seed)
        if name is not None:
            self.go_back_to(name)

    def go_back_to(self, name: str) -> None:
        if self._fits(lambda: self.image.goto(name)):
            self.disk = bytearray(self.saved[name])

    def reopen(self, offset: int, length: int, seed: int) -> None:
        self.close()
        self._open()

    def verify(self) -> None:
        assert self.image.length == len(self.disk)
        assert self.image.get(0, len(self.disk)) == self.disk
        assert [item.name for item in self.image.image.snapshots] == sorted(self.saved, key=lambda n: int(n[1:]))
        found = check.check(self.image.image, frozenset())
        assert not found.corruptions, found.messages
        assert not found.leaks, found.messages


OPERATIONS = ("write", "write", "write", "compress", "zero", "discard", "resize", "snapshot", "snapshot", "delete") + (
    "goto",
    "goto",
    "reopen",
)
STEP = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 400 << 10), st.integers(1, 60), st.integers(0, 1 << 16))


@pytest.mark.parametrize("shape", SHAPES)
@settings(
    max_examples=18, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(STEP, min_size=8, max_size=40))
def test_snapshots_keep_what_they_were_taken_of(
    shape: str, steps: list[tuple[str, int, int, int]], tmp_path: Path
) -> None:
    options, size = SHAPES[shape]
    model = Model(tmp_path / "image.qcow2", options, size)
    try:
        for operation, offset, length, seed in steps:
            getattr(model, operation)(offset, length, seed)
        model.verify()
        # Each snapshot is still what it was, also after going to the others.
        for name in model.saved:
            model.go_back_to(name)
            model.verify()
    finally:
        model.close()


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_qemu_sees_the_same_snapshots(shape: str, tmp_path: Path, qemu_img: str) -> None:
    options, size = SHAPES[shape]
    model = Model(tmp_path / "image.qcow2", options, size)
    pick = random.Random(len(shape))
    for _ in range(120):
        operation = pick.choice(OPERATIONS)
        getattr(model, operation)(pick.randrange(400 << 10), pick.randrange(1, 60), pick.randrange(1 << 16))
    if not model.saved:
        model.snapshot(0, 0, 0)
    model.verify()
    model.close()
    qemu_check(model.path)
    assert qemu_read(model.path) == model.disk
    listed = run(qemu_img, "snapshot", "-l", model.path)
    assert [line.split()[1] for line in listed.splitlines()[2:]] == list(model.saved)
    for name, contents in model.saved.items():
        copy = tmp_path / "copy.qcow2"
        shutil.copy(model.path, copy)
        run(qemu_img, "snapshot", "-a", name, copy)
        assert qemu_read(copy) == contents
        qemu_check(copy)
        run(qemu_img, "snapshot", "-d", name, copy)
        qemu_check(copy)


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_snapshots_of_qemu_are_gone_back_to_and_deleted(shape: str, tmp_path: Path, qemu_img: str) -> None:
    options, size = SHAPES[shape]
    path = tmp_path / "image.qcow2"
    make(path, size, **options)
    before = random.Random(3).randbytes(size)
    with opened(path) as image:
        image.write(0, before)
    run(qemu_img, "snapshot", "-c", "one", path)
    with opened(path) as image:
        image.write(0, b"changed" * 300)
        image.goto("one")
        assert image.get(0, size) == before
        image.write(512, b"x" * 512)
        image.delete("one")
        assert image.image.snapshots == []
        assert image.get(0, size) == before[:512] + b"x" * 512 + before[1024:]
    qemu_check(path)


def test_ids_count_on_from_the_highest(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    with opened(path) as image:
        assert [image.snapshot(name).id for name in ("a", "b", "c")] == ["1", "2", "3"]
        image.delete("b")
        image.delete("a")
        assert image.snapshot("d").id == "4"
    with opened(path) as image:
        assert [(item.id, item.name) for item in image.image.snapshots] == [("3", "c"), ("4", "d")]
        assert image.image.snapshots[1].date_sec == 1_700_000_000
        assert image.image.snapshots[1].disk_size == 1 << 20
        found = snapshotting.find_any(image.image, "4")
        assert found is not None
        assert found.name == "d"


def test_one_reference_a_cluster_is_too_few_for_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096, refcount_bits=1)
    with opened(path) as image:
        image.write(0, b"data" * 4096)
        with pytest.raises(OSError) as caught:
            image.snapshot("s")
        assert caught.value.errno == errno.EINVAL
        assert image.image.snapshots == []
        found = check.check(image.image, frozenset())
        assert not found.corruptions + found.leaks, found.messages
        image.write(512, b"more" * 128)
        assert image.get(0, 1024) == b"data" * 128 + b"more" * 128


def test_a_snapshot_that_fails_half_way_leaves_no_references(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096, refcount_bits=2)
    with opened(path) as image:
        image.write(65536, b"data" * 4096)
        image.snapshot("a")
        image.snapshot("b")
        # What comes first on the disk has one reference, what follows has all it can have.
        image.write(0, b"more" * 4096)
        with pytest.raises(OSError) as caught:
            image.snapshot("c")
        assert caught.value.errno == errno.EINVAL
        found = check.check(image.image, frozenset())
        assert not found.corruptions + found.leaks, found.messages
        image.delete("a")
        image.snapshot("c")


def test_a_version_2_image_can_t_go_back_to_another_size(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096, version="v2")
    with opened(path) as image:
        item = image.snapshot("s")
        smaller = snapshots.Snapshot(**{**_fields(item), "disk_size": 4096})
        with pytest.raises(OSError) as caught:
            snapshotting.go_back(image.image, smaller)
        assert caught.value.errno == errno.ENOTSUP


def _fields(item: snapshots.Snapshot) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def test_the_table_is_full_at_65536(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    monkeypatch.setattr(header, "MAX_SNAPSHOTS", 2)
    with opened(path) as image:
        image.snapshot("a")
        image.snapshot("b")
        with pytest.raises(OSError) as caught:
            image.snapshot("c")
        assert caught.value.errno == errno.EFBIG


def test_unknown_extra_data_of_other_snapshots_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    with opened(path) as image:
        item = image.snapshot("a")
        strange = snapshots.Snapshot(**{**_fields(item), "unknown_extra": b"future!!"})
        image.image.snapshots = [strange]
        image.snapshot("b")
    with opened(path) as image:
        assert image.image.snapshots[0].unknown_extra == b"future!!"
        image.delete("b")
    with opened(path) as image:
        assert image.image.snapshots[0].unknown_extra == b"future!!"


class FailingChild(FileChild):
    """Refuses writes and flushes after a number of them: one of them, or all that follow."""

    left = 1 << 30
    once = False

    def _count(self) -> None:
        self.left -= 1
        if self.left == -1 or (self.left < 0 and not self.once):
            raise OSError(errno.EIO, "broken")

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._count()
        super().write(offset, data, flags)

    def flush(self) -> None:
        self._count()
        super().flush()


@pytest.mark.interop
@pytest.mark.parametrize("what", ["snapshot", "delete", "goto"])
@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
def test_a_failing_storage_loses_nothing(what: str, version: str, once: bool, tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 64 << 10, cluster_size=512, version=version)
    with opened(path) as image:
        image.write(0, b"one" * 10_000)
        image.snapshot("old")
        image.write(3000, b"two" * 2_000)
        image.snapshot("older")
        image.write(20_000, b"three" * 1_000)
        now, then = image.get(0, 64 << 10), None
    original = path.read_bytes()
    succeeded = False
    for writes in range(0, 400, 1 if once else 3):
        path.write_bytes(original)
        child = FailingChild(path)
        image = Opened(child)
        if then is None:
            with_goto = tmp_path / "goto.qcow2"
            with_goto.write_bytes(original)
            run(qemu_img, "snapshot", "-a", "old", with_goto)
            then = qemu_read(with_goto)
        child.left, child.once = writes, once
        try:
            getattr(image, what)("new" if what == "snapshot" else "old")
            succeeded = child.left >= 0
        except (OSError, GenericError):
            succeeded = False
        child.left = 1 << 30
        names = [item.name for item in image.image.snapshots]
        if not image.image.dead:
            # The storage is well again: what was left half done is repaired with the next write.
            image.write(50_000, b"z")
            found = check.check(image.image, frozenset())
            if version == "v3":
                assert not found.corruptions + found.leaks, found.messages
            image.close()
        child.close()
        data = qemu_read(path)
        shown = data[:50_000] + data[50_001:]
        states = [now, then] if what == "goto" else [now]
        assert any(shown == state[:50_000] + state[50_001:] for state in states), f"after {writes} writes"
        if what != "delete":
            assert names[:2] == ["old", "older"]
            copy = tmp_path / "copy.qcow2"
            shutil.copy(path, copy)
            run(qemu_img, "check", "-q", "-r", "all", copy) if version == "v2" else None
            run(qemu_img, "snapshot", "-a", "old", copy)
            assert qemu_read(copy) == then
        if succeeded:
            break
    assert succeeded


@pytest.mark.interop
def test_a_vm_state_never_shows_on_the_disk(tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 64 << 10, cluster_size=512)
    run(qemu_io, "-c", "write -P 5 0 64k", "-c", "write -b -P 7 0 100k", path)
    with opened(path) as image:
        image.snapshot("s")
        image.truncate(512 << 10)
        assert image.get(64 << 10, 448 << 10) == bytes(448 << 10)
        image.goto("s")
        assert image.get(0, 64 << 10) == b"\5" * (64 << 10)
        image.truncate(512 << 10)
        assert image.get(64 << 10, 448 << 10) == bytes(448 << 10)
    qemu_check(path)


@pytest.mark.interop
def test_the_vm_state_of_a_snapshot_outlives_our_work(tmp_path: Path, qemu_img: str, qemu_system: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096)
    machine = ["timeout", "60", qemu_system, "-M", "none", "-display", "none", "-S", "-monitor", "stdio"]
    machine += ["-blockdev", f"qcow2,node-name=n,file.driver=file,file.filename={path}"]

    def monitor(*lines: str) -> str:
        done = subprocess.run(
            machine, input="\n".join([*lines, "quit", ""]), capture_output=True, text=True, check=True
        )
        return done.stdout

    monitor('qemu-io n "write -P 1 0 64k"', "savevm one", 'qemu-io n "write -P 2 0 64k"', "savevm two")
    with opened(path) as image:
        assert all(item.vm_state_size for item in image.image.snapshots)
        image.write(0, b"3" * 4096)
        image.snapshot("three")
        image.goto("one")
        assert image.get(0, 64 << 10) == b"\1" * (64 << 10)
        image.delete("two")
        image.snapshot("four")
    qemu_check(path)
    assert "Error" not in monitor("loadvm one")
    assert "disk-only snapshot" in monitor("loadvm four")
    assert qemu_read(path)[: 64 << 10] == b"\1" * (64 << 10)
    qemu_check(path)
