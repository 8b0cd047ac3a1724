"""copy-before-write and snapshot-access: the snapshot stays what it was while guests write; errors and limits."""

import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.bitmaps.dirty import DirtyBitmap, add_bitmap, bitmaps_of
from engine.drivers.filter.copy_before_write import CopyBeforeWriteDriver
from engine.errors import QMPError
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.driver import Status, WriteFlag
from engine.graph.node import Node
from engine.graph.permissions import Perm
from tests.engine.jobs.session import CLUSTER, TIMEOUT, Session, content, noise
from tests.engine.jobs.test_backup import Scribblers

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


def disk(session: Session, name: str, data: bytes | int, **options: Any) -> Node:
    path = session.file(f"{name}.raw", data)
    file = {"driver": "file", "filename": str(path), "discard": "unmap"}
    session.do("blockdev-add", driver="raw", node_name=name, file=file, discard="unmap", **options)
    return session.node(name)


def fleece(session: Session, **options: Any) -> Node:
    """The recipe: ``disk``, a ``target``, the filter ``cbw`` for the guest, ``snap`` for the reader; returns snap."""
    if "target" not in session.engine.graph.nodes:
        session.create_qcow2("target", session.node("disk").length)
        session.add_qcow2("target", discard="unmap")
    session.do(
        "blockdev-add",
        driver="copy-before-write",
        node_name="cbw",
        file="disk",
        target="target",
        discard="unmap",
        **options,
    )
    session.do("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw", discard="unmap")
    return session.node("snap")


def read(node: Node, offset: int, length: int) -> bytes:
    data = bytearray(length)
    node.read(offset, memoryview(data))
    return bytes(data)


def filter_of(session: Session) -> CopyBeforeWriteDriver:
    driver = session.node("cbw").driver
    assert isinstance(driver, CopyBeforeWriteDriver)
    return driver


class Broken:
    """Makes writes of a node's driver fail or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
        self.error: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        write = node.driver.write

        def broken(offset: int, data: Any, flags: int = 0) -> None:
            self.entered.set()
            assert self.gate.wait(TIMEOUT)
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            write(offset, data, flags)

        monkeypatch.setattr(node.driver, "write", broken)
        monkeypatch.setattr(node.driver, "begin_write", lambda offset, length: None)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_snapshot_stays_while_guests_write(session: Session, kind: str) -> None:
    """Readers of the snapshot at any moment, several at a time, see what was there when the filter was opened."""
    if kind == "raw":
        source = disk(session, "disk", noise("disk", SIZE))
    else:
        session.create_qcow2("base", SIZE)
        session.fill("base", (0, noise("base", 5 * MIB)))
        session.create_qcow2("disk", SIZE, "base")
        session.fill("disk", (MIB, noise("disk", 2 * MIB)))
        session.add_qcow2("base", read_only=True)
        source = session.add_qcow2("disk", "base", discard="unmap")
    reference = content(source)
    snap = fleece(session)
    wrong: list[int] = []

    def look(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            size = rng.randrange(1, 300_000)
            offset = rng.randrange(SIZE - size)
            if read(snap, offset, size) != reference[offset : offset + size]:
                wrong.append(offset)

    with session.writer("cbw") as guest, Scribblers(guest, seed=1):
        readers = [threading.Thread(target=look, args=(seed,)) for seed in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(TIMEOUT)
        assert content(snap) == reference
    assert not wrong
    assert content(snap) == reference
    assert content(source) != reference


def test_backup_of_the_snapshot_while_guests_write(session: Session) -> None:
    """The modern recipe: a job copies from snapshot-access."""
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    fleece(session)
    copy = disk(session, "copy", SIZE)
    with session.writer("cbw") as guest, Scribblers(guest, seed=2):
        session.do("blockdev-backup", job_id="b", device="snap", target="copy", sync="full")
        session.wait_status("b", "null")
    assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
    assert content(copy) == reference


def test_only_what_is_overwritten_is_copied(session: Session) -> None:
    disk(session, "disk", noise("disk", SIZE))
    fleece(session)
    target = session.node("target")
    with session.writer("cbw") as guest:
        guest.write(3 * CLUSTER + 17, memoryview(b"x"))
        guest.write(3 * CLUSTER + 99, memoryview(b"y"))
        guest.write_zeroes(10 * CLUSTER - 1, 2)
        guest.discard(20 * CLUSTER, CLUSTER)
    found = [n for n in range(SIZE // CLUSTER) if target.block_status(n * CLUSTER, 512).flags & Status.ALLOCATED]
    assert found == [3, 9, 10, 20]


def test_unchanged_data_need_no_copy(session: Session) -> None:
    """What a stream or a copy-on-read brings changes nothing, so it is not copied before."""
    disk(session, "disk", noise("disk", SIZE))
    fleece(session)
    session.node("cbw").write(0, memoryview(noise("disk", SIZE)[:512]), int(WriteFlag.UNCHANGED))
    assert not session.node("target").block_status(0, 512).flags & Status.ALLOCATED


def test_bitmap_limits_the_snapshot(session: Session) -> None:
    source = disk(session, "disk", noise("disk", SIZE))
    made = session.call(lambda: add_bitmap(source, CLUSTER, "m"))
    assert isinstance(made, DirtyBitmap)
    made.set(2 * CLUSTER, 3 * CLUSTER)
    reference = content(source)
    snap = fleece(session, bitmap={"node": "disk", "name": "m"})
    with session.writer("cbw") as guest:
        guest.write(0, memoryview(b"x"))
        guest.write(2 * CLUSTER, memoryview(b"x"))
    assert read(snap, 2 * CLUSTER, 3 * CLUSTER) == reference[2 * CLUSTER : 5 * CLUSTER]
    for offset in (0, 5 * CLUSTER, 5 * CLUSTER - 1):
        with pytest.raises(PermissionError):
            read(snap, offset, 2)
    assert not session.node("target").block_status(0, 512).flags & Status.ALLOCATED
    with pytest.raises(PermissionError):
        snap.block_status(0, 3 * CLUSTER)
    assert snap.block_status(2 * CLUSTER, 3 * CLUSTER).length == CLUSTER


def test_discard_gives_parts_of_the_snapshot_up(session: Session) -> None:
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    snap = fleece(session)
    target = session.node("target")
    with session.writer("cbw") as guest:
        guest.write(0, memoryview(b"x"))
        # Whole clusters alone: 1 and 2; of 0 and 3 only parts are given up, so they stay.
        snap.discard(CLUSTER - 512, 2 * CLUSTER + 1024)
        guest.write(CLUSTER, memoryview(b"x"))
        assert not target.block_status(CLUSTER, 512).flags & Status.ALLOCATED
        with pytest.raises(PermissionError):
            read(snap, CLUSTER, 1)
        assert read(snap, 0, CLUSTER) == reference[:CLUSTER]
        assert read(snap, 3 * CLUSTER, CLUSTER) == reference[3 * CLUSTER : 4 * CLUSTER]
        assert target.block_status(0, 512).flags & Status.DATA
        snap.discard(0, CLUSTER)
    assert not target.block_status(0, 512).flags & Status.DATA


def test_snapshot_cannot_be_written(session: Session) -> None:
    disk(session, "disk", noise("disk", SIZE))
    snap = fleece(session)
    with pytest.raises(OSError) as caught:
        snap.write(0, memoryview(b"x"))
    assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(OSError) as caught:
        snap.write_zeroes(0, 512)
    assert caught.value.errno == errno.ENOTSUP


def test_snapshot_of_no_filter(session: Session) -> None:
    disk(session, "disk", noise("disk", SIZE))
    session.do("blockdev-add", driver="snapshot-access", node_name="snap", file="disk")
    with pytest.raises(OSError) as caught:
        read(session.node("snap"), 0, 512)
    assert caught.value.errno == errno.ENOTSUP


def test_no_host_offsets_of_the_snapshot(session: Session) -> None:
    """Where the data lie may change at any moment, so nobody is told to fetch them there."""
    disk(session, "disk", noise("disk", SIZE))
    snap = fleece(session)
    extent = snap.block_status(0, SIZE)
    assert not extent.flags & Status.OFFSET_VALID
    assert extent.node is None


# -- errors ----------------------------------------------------------------------------------------------------------


def test_a_failed_copy_breaks_the_write(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    snap = fleece(session)
    target = Broken(monkeypatch, session.node("target"))
    target.error = errno.ENOSPC
    with session.writer("cbw") as guest:
        with pytest.raises(OSError) as caught:
            guest.write(0, memoryview(b"new"))
        assert caught.value.errno == errno.ENOSPC
        assert content(snap) == reference
        target.error = None
        guest.write(0, memoryview(b"new"))
    assert content(snap) == reference
    assert read(source, 0, 3) == b"new"


def test_a_failed_copy_breaks_the_snapshot(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    source = disk(session, "disk", noise("disk", SIZE))
    snap = fleece(session, on_cbw_error="break-snapshot")
    target = Broken(monkeypatch, session.node("target"))
    target.error = errno.ENOSPC
    with session.writer("cbw") as guest:
        guest.write(0, memoryview(b"new"))
        target.error = None
        guest.write(CLUSTER, memoryview(b"new"))
    assert read(source, 0, 3) == read(source, CLUSTER, 3) == b"new"
    with pytest.raises(PermissionError):
        read(snap, 4 * CLUSTER, 1)
    # Nothing is copied for a snapshot that is lost.
    assert not session.node("target").block_status(CLUSTER, 512).flags & Status.ALLOCATED


@pytest.mark.parametrize("policy", ["break-guest-write", "break-snapshot"])
def test_timeout(session: Session, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """A target that hangs holds a write up for so long and no longer; a drain waits for it."""
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    snap = fleece(session, on_cbw_error=policy, cbw_timeout=1)
    target = Broken(monkeypatch, session.node("target"))
    target.gate.clear()
    with session.writer("cbw") as guest:
        if policy == "break-guest-write":
            with pytest.raises(TimeoutError):
                guest.write(0, memoryview(b"new"))
            assert read(source, 0, 3) == reference[:3]
        else:
            guest.write(0, memoryview(b"new"))
            assert read(source, 0, 3) == b"new"
            with pytest.raises(PermissionError):
                read(snap, 0, 1)
        order: list[str] = []

        def drain_source() -> None:
            with drained([source]):
                order.append("drained")

        drain = threading.Thread(target=lambda: session.call(drain_source))
        drain.start()
        order.append("opened")
        target.gate.set()
        drain.join(TIMEOUT)
        assert order == ["opened", "drained"]
        if policy == "break-guest-write":
            guest.write(0, memoryview(b"new"))
            assert content(snap) == reference


def test_writes_to_one_cluster_wait_for_its_copy(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a copy is under way, another write to the cluster waits, one to another cluster does not."""
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    snap = fleece(session)
    target = Broken(monkeypatch, session.node("target"))
    with session.writer("cbw") as guest:
        guest.write(5 * CLUSTER, memoryview(b"before"))
        target.entered.clear()
        target.gate.clear()
        first = threading.Thread(target=lambda: guest.write(0, memoryview(b"one")))
        first.start()
        assert target.entered.wait(TIMEOUT)
        second = threading.Thread(target=lambda: guest.write(512, memoryview(b"two")))
        second.start()
        guest.write(5 * CLUSTER, memoryview(b"again"))
        assert read(source, 0, CLUSTER) == reference[:CLUSTER]
        target.gate.set()
        first.join(TIMEOUT)
        second.join(TIMEOUT)
    assert read(source, 0, 3) == b"one"
    assert read(source, 512, 3) == b"two"
    assert content(snap) == reference


def test_a_write_waits_for_who_reads_the_old_data(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of the snapshot who is in the middle of the source gets the old data, however long that takes."""
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    snap = fleece(session)
    inside, go_on, wrote = threading.Event(), threading.Event(), threading.Event()
    original = source.driver.read
    seen: list[bytes] = []

    def slow(offset: int, buffer: memoryview) -> None:
        if threading.current_thread().name == "reader":
            inside.set()
            assert go_on.wait(TIMEOUT)
        original(offset, buffer)

    monkeypatch.setattr(source.driver, "read", slow)
    with session.writer("cbw") as guest:
        reader = threading.Thread(target=lambda: seen.append(read(snap, 0, 512)), name="reader")
        reader.start()
        assert inside.wait(TIMEOUT)

        def write() -> None:
            guest.write(0, memoryview(b"new"))
            wrote.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert not wrote.wait(0.05)
        go_on.set()
        reader.join(TIMEOUT)
        writer.join(TIMEOUT)
    assert seen == [reference[:512]]
    assert read(source, 0, 3) == b"new"


# -- the node --------------------------------------------------------------------------------------------------------


def test_permissions(session: Session) -> None:
    """Nobody writes past the filter, and the target may be read meanwhile."""
    disk(session, "disk", noise("disk", SIZE))
    fleece(session)
    with pytest.raises(QMPError, match="Permission conflict on node 'disk'"), session.writer("disk"):
        pass
    with session.writer("cbw"), pytest.raises(QMPError, match="Permission conflict on node 'disk'"):
        session.do("blockdev-add", driver="qcow2", node_name="no", file="disk")


def test_goes_without_trace(session: Session) -> None:
    source = disk(session, "disk", noise("disk", SIZE))
    fleece(session)
    assert len(bitmaps_of(source)) == 1
    session.do("blockdev-del", node_name="snap")
    session.do("blockdev-del", node_name="cbw")
    assert bitmaps_of(source) == []
    with session.writer("disk") as guest:
        guest.write(0, memoryview(b"new"))
    assert not session.node("target").block_status(0, 512).flags & Status.ALLOCATED


def test_target_clusters_are_filled_whole(session: Session) -> None:
    """A target with larger clusters has them copied whole, else the rest of them would read as zeros."""
    source = disk(session, "disk", noise("disk", SIZE))
    reference = content(source)
    session.create_qcow2("target", SIZE, cluster_size=MIB)
    session.add_qcow2("target")
    snap = fleece(session)
    assert filter_of(session).copy.cluster_size == MIB
    with session.writer("cbw") as guest:
        guest.write(MIB + 5, memoryview(b"new"))
    assert content(snap) == reference
    assert read(session.node("target"), MIB, MIB) == reference[MIB : 2 * MIB]


def reading(session: Session, node: Node) -> BlockBackend:
    from engine.graph.permissions import Perm

    graph = session.engine.graph
    made = session.call(lambda: graph.add_backend("export", "", node, Perm.CONSISTENT_READ, Perm.ALL))
    assert isinstance(made, BlockBackend)
    return made


def test_reader_of_the_snapshot_does_not_stop_the_guest(session: Session) -> None:
    """snapshot-access takes no permission on the filter: it may come and go while guests write."""
    disk(session, "disk", noise("disk", SIZE))
    with_guest = fleece(session)
    with session.writer("cbw") as guest:
        user = reading(session, with_guest)
        guest.write(0, memoryview(b"new"))
        data = bytearray(3)
        user.read(0, memoryview(data))
        assert bytes(data) == noise("disk", SIZE)[:3]
        session.call(lambda: session.engine.graph.remove_backend(user))


def test_a_guest_flushes_its_own_disk_and_not_the_copies(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(session, "disk", noise(1, SIZE))
    fleece(session)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    graph, cbw = session.engine.graph, session.node("cbw")
    guest = session.engine.control.call(lambda: graph.add_backend("device", "", cbw, Perm.WRITE, Perm.ALL))
    for _ in range(2):
        guest.write(0, memoryview(b"x" * CLUSTER))
        guest.flush()
        guest.flush()
    own = (session.folder / "disk.raw").stat().st_ino
    assert flushed
    assert set(flushed) == {own}
