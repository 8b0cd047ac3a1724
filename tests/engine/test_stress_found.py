"""What random commands under load (scripts/stress.py) have found."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine.graph.change
from engine.bitmaps.dirty import DirtyBitmap
from engine.drivers.protocol.locks import ImageLock
from engine.errors import GenericError
from engine.graph.change import Transaction
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.jobs.blockjob import BlockJob
from tests.engine.jobs.session import Session, content, noise

MIB = 1 << 20


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path)
    yield session
    session.close()


def raw(session: Session, name: str, size: int = MIB, **options: Any) -> Node:
    path = session.folder / f"{name}.raw"
    if not path.exists():
        session.file(path.name, size)
    session.do("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": str(path)}, **options)
    return session.node(name)


def lock_of(node: Node) -> ImageLock:
    lock = node.driver.lock  # type: ignore[attr-defined]
    assert isinstance(lock, ImageLock)
    return lock


def test_a_refused_user_leaves_no_image_locks_behind(session: Session) -> None:
    node = raw(session, "a")
    file = node.file
    assert file is not None
    with session.writer("a"):
        before = (lock_of(file.child).perm, lock_of(file.child).shared)
        raw(session, "b", read_only=True)
        # The same file as another node, which can't be written to: the first one has it.
        session.do(
            "blockdev-add",
            driver="raw",
            node_name="again",
            file={"driver": "file", "filename": str(session.folder / "a.raw"), "node-name": "again-file"},
            read_only=True,
        )
        again = lock_of(session.node("again-file"))
        idle = (again.perm, again.shared)
        graph = session.engine.graph

        def use() -> None:
            graph.add_backend("device", "x", graph.nodes["again"], Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)

        with pytest.raises(GenericError, match='Failed to get shared "write" lock'):
            session.call(use)
        assert (again.perm, again.shared) == idle == (Perm.NONE, Perm.ALL)
        assert (lock_of(file.child).perm, lock_of(file.child).shared) == before
    # With the writer gone nothing is in the way.
    with session.writer("a"):
        pass


def test_a_stream_ends_on_a_layer_that_got_a_writer(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    session.chain("base", "top")
    session.do("blockdev-del", node_name="top")
    session.add_qcow2("top", "base", read_only=True)
    session.do("block-stream", job_id="j", device="top", auto_finalize=False, filter_node_name="cor")
    session.wait_status("j", "pending")
    with session.writer("cor"), caplog.at_level(logging.ERROR):
        session.do("job-finalize", id="j")
        session.wait_status("j", "null")
        assert not caplog.records
    assert session.node("top").pins == 0
    session.do("blockdev-del", node_name="top")


def test_a_bitmap_outlives_a_resize_below_its_node(session: Session) -> None:
    raw(session, "below")
    session.do("object-add", qom_type="throttle-group", id="g")
    session.do("blockdev-add", driver="throttle", node_name="filter", throttle_group="g", file="below")
    raw(session, "target", 4 * MIB)
    session.do("block-dirty-bitmap-add", node="filter", name="b")
    for size in (2 * MIB, MIB // 2):
        session.do("block_resize", node_name="below", size=size)
        why = session.error(
            "blockdev-backup", job_id="j", device="filter", target="target", sync="incremental", bitmap="b"
        )
        assert why == "Source and target image have different sizes"
        # It is not in use any more.
        session.do("block-dirty-bitmap-clear", node="filter", name="b")


def test_a_child_that_cannot_follow_to_an_iothread_is_not_kept(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        raw(session, name)
    session.do("blockdev-add", driver="quorum", node_name="q", vote_threshold=1, children=["one", "two"])

    def refuse(txn: Transaction, edge: Edge) -> None:
        raise GenericError("no")

    monkeypatch.setattr(engine.graph.change, "follow", refuse)
    assert session.error("x-blockdev-change", parent="q", node="three") == "no"
    assert list(session.node("q").children) == ["children.0", "children.1"]
    assert session.node("three").parents == []
    monkeypatch.undo()
    session.do("x-blockdev-change", parent="q", node="three")
    assert list(session.node("q").children) == ["children.0", "children.1", "children.2"]


@pytest.mark.parametrize("speed", [1_000_001, 4 * MIB])
def test_a_mirror_at_a_limited_speed_copies_everything(session: Session, speed: int) -> None:
    source = raw(session, "s")
    with session.writer("s") as user:
        user.write(0, memoryview(noise("s", MIB)))
    target = raw(session, "t")
    session.do("blockdev-mirror", job_id="j", device="s", target="t", sync="full", speed=speed)
    session.wait_status("j", "ready")
    session.do("block-job-cancel", device="j")
    session.wait_status("j", "null")
    assert content(target) == content(source)


def test_taking_dirty_areas_forgets_nothing(session: Session) -> None:
    bitmap = DirtyBitmap(raw(session, "s"), 65536)
    bitmap.set(0, MIB)
    taken = []
    while (area := bitmap.take_area(0, 100_000)) is not None:
        taken.append(area)
    assert taken == [(offset, 65536) for offset in range(0, MIB, 65536)]


def test_a_backup_that_cannot_hold_its_target_is_no_job(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = raw(session, "s"), raw(session, "t")
    add_node = BlockJob.add_node

    def refuse(job: BlockJob, name: str, node: Node, *args: Any, **options: Any) -> None:
        if name == "target":
            raise GenericError("no")
        add_node(job, name, node, *args, **options)

    monkeypatch.setattr(BlockJob, "add_node", refuse)
    assert session.error("blockdev-backup", job_id="j", device="s", target="t", sync="full") == "no"
    assert session.do("query-jobs") == []
    for node in (source, target):
        assert (node.pins, node.parents, node.trackers) == (0, [], ())
    session.do("blockdev-del", node_name="s")
    session.do("blockdev-del", node_name="t")


def test_stopping_the_guests_waits_for_no_limit(session: Session) -> None:
    session.do("object-add", qom_type="throttle-group", id="g", limits={"bps-total": 2000})
    below = {"driver": "null-co", "size": MIB}
    session.do("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file=below)
    session.do("device_add", driver="virtio-blk-pci", id="d", drive="t")
    request = {"device": "d", "operation": "write", "offset": 0, "length": 65536}
    # The first one may go at once; the next would have to wait for it half a minute.
    session.engine.submit("x-blockmon-guest-request", request).result(5)
    waiting = session.engine.submit("x-blockmon-guest-request", request)
    disk = session.engine.machine.disk("d")
    until = time.monotonic() + 5
    while not disk._active:
        assert time.monotonic() < until
        session.do("query-status")
    session.engine.submit("stop").result(5)
    waiting.result(5)
    assert session.do("query-status")["status"] == "paused"


@pytest.mark.parametrize("child", ["n", {"driver": "raw", "file": "n"}, {"driver": "preallocate", "file": "n"}])
def test_a_node_below_itself_is_refused(session: Session, child: object) -> None:
    raw(session, "s")
    assert session.error("blockdev-add", driver="blkverify", node_name="n", test="s", raw=child) == (
        "Node 'n' would be a child of itself"
    )
    assert set(session.engine.graph.nodes.values()) == {session.node("s"), session.node("s").children["file"].child}
