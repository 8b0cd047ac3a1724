"""blockdev-mirror and drive-mirror: what is copied, how zeros get there, and how the job leaves the graph."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import engine.jobs.mirror_end
from engine.copying import host_copy
from engine.drivers.filter.internal import MirrorTopDriver
from engine.errors import GenericError
from engine.graph.driver import Status
from engine.graph.node import Node
from engine.graph.policy import OpenPolicy
from tests.engine.jobs.session import Session, content, noise

MIB = 1 << 20
SIZE = 4 * MIB
MODES = ("background", "write-blocking")


def add_raw(session: Session, name: str, data: bytes | int, **options: Any) -> Node:
    path = session.file(f"{name}.raw", data)
    session.do("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": str(path)}, **options)
    return session.node(name)


def held_by_jobs(node: Node) -> list[str]:
    return [edge.name for edge in node.parents if edge.parent.parent_kind == "job"]


def assert_gone(session: Session, *nodes: Node) -> None:
    """Nothing of the job is left in the graph."""
    assert not any(isinstance(node.driver, MirrorTopDriver) for node in session.engine.graph.nodes.values())
    for node in nodes:
        assert not held_by_jobs(node)
        assert not node.trackers
        assert node.quiesce_count == 0


def complete(session: Session, job: str = "m") -> None:
    session.wait_status(job, "ready")
    session.do("job-complete", id=job)
    session.wait_status(job, "null")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [512, MIB + 512, MIB + 3 * 512])
def test_sizes_that_are_no_multiple_of_anything(session: Session, mode: str, size: int) -> None:
    source = add_raw(session, "s", noise("s", size))
    target = add_raw(session, "t", size)
    with session.writer("s") as user:
        session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full", copy_mode=mode)
        session.wait_status("m", "ready")
        user.write(size - 512, memoryview(b"last" * 128))
        user.write(0, memoryview(b"frst" * 128)) if size > 512 else None
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
        assert user.node is target
        assert content(target) == content(source)
        assert content(target)[-512:] == b"last" * 128
    done = session.wait_event("BLOCK_JOB_COMPLETED")
    assert done["len"] == done["offset"] >= size
    assert_gone(session, source, target)


def test_everything_of_an_old_target_is_overwritten(session: Session) -> None:
    session.create_qcow2("s", SIZE)
    session.fill("s", (MIB, noise("s", MIB)))
    source = session.add_qcow2("s")
    session.create_qcow2("t", SIZE)
    session.fill("t", (0, noise("old", SIZE)))
    target = session.add_qcow2("t")
    session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full")
    session.wait_status("m", "ready")
    # The whole disk counts: nobody knows what the target had.
    assert session.wait_event("BLOCK_JOB_READY")["len"] == SIZE
    session.do("block-job-cancel", device="m")
    session.wait_status("m", "null")
    assert content(target) == content(source)
    assert session.story("m") == [
        *["created", "running", "ready", "READY"],
        *["waiting", "pending", "COMPLETED", "concluded", "null"],
    ]
    assert_gone(session, source, target)


def test_an_old_target_that_unmaps_is_zeroed_first(session: Session) -> None:
    session.create_qcow2("s", SIZE)
    session.fill("s", (MIB, noise("s", MIB)))
    source = session.add_qcow2("s")
    session.create_qcow2("t", SIZE)
    session.fill("t", (0, noise("old", SIZE)))
    target = session.add_qcow2("t", discard="unmap")
    session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full")
    session.wait_status("m", "ready")
    assert session.wait_event("BLOCK_JOB_READY")["len"] == MIB
    session.do("block-job-cancel", device="m")
    session.wait_status("m", "null")
    assert content(target) == content(source)


def test_zeros_cover_a_backing_image_that_comes_later(session: Session) -> None:
    """The target has no backing image while it is copied to: unallocated reads as zero there, but not afterwards."""
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", SIZE)))
    session.create_qcow2("top", SIZE, "base")
    with session.offline("top") as guest:
        guest.write_zeroes(MIB, MIB)
    session.add_qcow2("base", read_only=True)
    top = session.add_qcow2("top", "base")
    expected = content(top)
    session.create_qcow2("t", SIZE)
    target = session.add_qcow2("t")
    session.do("blockdev-mirror", job_id="m", device="top", target="t", sync="top")
    session.wait_status("m", "ready")
    assert session.wait_event("BLOCK_JOB_READY")["len"] == MIB
    session.do("block-job-cancel", device="m")
    session.wait_status("m", "null")
    assert target.block_status(MIB, MIB).flags & Status.ALLOCATED
    session.do("blockdev-del", node_name="top")
    session.do("blockdev-snapshot", node="base", overlay="t")
    assert content(target) == expected


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_zeros_are_there_for_good(session: Session, version: str) -> None:
    """Old images have no zero clusters: there zeros are data. Either way nothing below will shine through."""
    session.create_qcow2("s", MIB)
    session.fill("s", (65536, noise("s", 65536)))
    session.add_qcow2("s")
    session.create_qcow2("t", MIB, version=version)
    target = session.add_qcow2("t")
    session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full")
    complete(session)
    for offset in range(0, MIB, 65536):
        flags = target.block_status(offset, 65536).flags
        assert flags & Status.ALLOCATED
        assert bool(flags & Status.DATA) == (version == "v2" or offset == 65536)


@pytest.mark.parametrize("unmap", [True, False])
def test_unmap(session: Session, tmp_path: Path, unmap: bool) -> None:
    """Zeros of the source become holes, or zeros that take their space."""
    session.create_qcow2("s", SIZE)
    with session.offline("s") as guest:
        guest.write_zeroes(0, 2 * MIB)
    session.add_qcow2("s")
    path = tmp_path / "copy.raw"
    session.do(
        "drive-mirror", job_id="m", device="s", target=str(path), format="raw", sync="full", unmap=unmap
    )  # fmt: skip
    complete(session)
    assert (os.stat(path).st_blocks * 512 >= 2 * MIB) is not unmap


def test_the_kernel_copies(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: False)
    session.create_qcow2("s", SIZE)
    session.fill("s", (0, noise("s", SIZE)))
    source = session.add_qcow2("s")
    session.create_qcow2("t", SIZE)
    target = session.add_qcow2("t")
    copied = []
    real = os.copy_file_range

    def count(*args: Any) -> int:
        done = real(*args)
        copied.append(done)
        return done

    monkeypatch.setattr(os, "copy_file_range", count)
    session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full")
    session.wait_status("m", "ready")
    session.do("job-cancel", id="m")
    session.wait_status("m", "null")
    assert sum(copied) == SIZE
    assert content(target) == content(source)


def quorum(session: Session) -> tuple[Node, Node]:
    """q reads its first child, the raw node a; b differs."""
    add_raw(session, "a", noise("a", MIB))
    b = add_raw(session, "b", MIB)
    add_raw(session, "t", MIB)
    session.do(
        "blockdev-add",
        **{"driver": "quorum", "node-name": "q", "vote-threshold": 1, "read-pattern": "fifo", "children": ["a", "b"]},
    )
    return session.node("q"), b


def test_replacing_a_child_of_a_quorum(session: Session) -> None:
    q, b = quorum(session)
    session.do("blockdev-mirror", job_id="m", device="q", target="t", sync="full", replaces="b")
    session.wait_status("m", "ready")
    session.do("job-pause", id="m")
    session.wait_status("m", "standby")
    session.do("job-complete", id="m")
    # From then on it is not to be touched.
    assert session.error("blockdev-del", node_name="b") == (
        "Node 'b' is busy: block device is in use by block-job-complete"
    )
    session.do("job-resume", id="m")
    session.wait_status("m", "null")
    assert [edge.child.name for edge in q.children.values()] == ["a", "t"]
    assert content(session.node("t")) == content(q)
    session.do("blockdev-del", node_name="b")
    assert_gone(session, q, b)


def test_what_can_no_longer_be_replaced(session: Session) -> None:
    """Somebody else reads the child by then, and would see it change."""
    q, b = quorum(session)
    session.do("blockdev-mirror", job_id="m", device="q", target="t", sync="full", replaces="b")
    session.wait_status("m", "ready")
    session.do("blockdev-add", driver="raw", node_name="late", file="b", read_only=True)
    session.do("job-complete", id="m")
    session.wait_status("m", "null")
    assert session.story("m")[-5:] == ["pending", "aborting", "COMPLETED", "concluded", "null"]
    assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Operation not permitted"
    assert [edge.child.name for edge in q.children.values()] == ["a", "b"]
    assert not b.blockers.reasons()
    assert_gone(session, q, b)


def test_the_node_to_replace_is_gone(session: Session) -> None:
    q, _ = quorum(session)
    session.do("blockdev-mirror", job_id="m", device="q", target="t", sync="full", replaces="b")
    session.wait_status("m", "ready")
    session.do("x-blockdev-change", parent="q", child="children.1")
    session.do("blockdev-del", node_name="b")
    assert session.error("job-complete", id="m") == "Node name 'b' not found"
    session.do("block-job-cancel", device="m")
    session.wait_status("m", "null")
    assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
    assert_gone(session, q)


def top_over_base(session: Session) -> Node:
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", SIZE)))
    session.create_qcow2("top", SIZE, "base")
    session.fill("top", (MIB, noise("top", MIB)))
    session.add_qcow2("base", read_only=True)
    return session.add_qcow2("top", "base")


def test_without_its_backing_image_the_target_is_not_switched_to(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = top_over_base(session)

    def refuse(*args: object) -> None:
        raise GenericError("no")

    monkeypatch.setattr(engine.jobs.mirror_end, "set_backing", refuse)
    with session.writer("top") as user:
        path = str(session.folder / "copy.qcow2")
        session.do("drive-mirror", job_id="m", device="top", target=path, sync="top")
        complete(session)
        assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Operation not permitted"
        assert user.node is top
        user.write(0, memoryview(bytes(512)))
    assert_gone(session, top)


def test_what_was_written_before_is_durable_below_the_copy(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sync=none the source becomes the backing image; flushes of its former users don't reach it any more."""
    top = top_over_base(session)
    flushed = threading.Event()
    real = top.driver.flush

    def flush() -> None:
        real()
        flushed.set()

    monkeypatch.setattr(top.driver, "flush", flush)
    with session.writer("top") as user:
        user.write(0, memoryview(b"old" * 512))
        path = str(session.folder / "copy.qcow2")
        session.do("drive-mirror", job_id="m", device="top", target=path, sync="none")
        complete(session)
        assert user.node.backing is not None
        assert user.node.backing.child is top
        assert flushed.is_set()


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_broken_chain_below_an_existing_target(session: Session, tolerant: bool) -> None:
    top = top_over_base(session)
    session.create_qcow2("gone", SIZE)
    path = session.create_qcow2("copy", SIZE, "gone")
    os.unlink(session.folder / "gone.qcow2")
    session.engine.graph.policy = OpenPolicy(tolerate_broken=tolerant)
    with session.writer("top") as user:
        session.do("drive-mirror", job_id="m", device="top", target=str(path), sync="top", mode="existing")
        complete(session)
        assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Invalid argument"
        assert user.node is top
    assert_gone(session, top)


def test_users_wait_from_the_last_look_to_the_change(session: Session) -> None:
    """With auto-finalize=false the job is pending; a write made then ends up in the target."""
    source = add_raw(session, "s", noise("s", MIB))
    target = add_raw(session, "t", MIB)
    with session.writer("s") as user:
        session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full", auto_finalize=False)
        session.wait_status("m", "ready")
        session.do("job-complete", id="m")
        session.wait_status("m", "pending")
        began, over = threading.Event(), threading.Event()

        def write() -> None:
            began.set()
            user.write(0, memoryview(b"late" * 128))
            over.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert began.wait(20)
        assert not over.wait(0.1)
        session.do("job-finalize", id="m")
        session.wait_status("m", "null")
        thread.join(20)
        assert over.is_set()
        assert content(target)[:4] == b"late"
        assert content(source)[:4] != b"late"
    assert_gone(session, source, target)


def test_the_end_of_the_engine_ends_a_ready_mirror(session: Session) -> None:
    add_raw(session, "s", noise("s", MIB))
    add_raw(session, "t", MIB)
    session.do("blockdev-mirror", job_id="m", device="s", target="t", sync="full", auto_finalize=False)
    session.wait_status("m", "ready")
    session.do("job-complete", id="m")
    session.wait_status("m", "pending")
    session.close()
    assert session.story("m")[-4:] == ["aborting", "CANCELLED", "concluded", "null"]


def test_a_refused_mirror_changes_nothing(session: Session) -> None:
    source = add_raw(session, "s", MIB)
    target = add_raw(session, "t", MIB, read_only=True)
    before = [(edge.parent, edge.perm, edge.shared) for edge in source.parents]
    assert session.error("blockdev-mirror", job_id="m", device="s", target="t", sync="full") == (
        "Block node is read-only"
    )
    assert session.error("blockdev-mirror", job_id="1", device="s", target="t", sync="full") == "Invalid job ID '1'"
    assert [(edge.parent, edge.perm, edge.shared) for edge in source.parents] == before
    assert session.do("query-jobs") == []
    assert_gone(session, source, target)
    assert not source.blockers.reasons()


def test_limits_follow_the_switch(session: Session) -> None:
    """A filter above takes over the request alignment of what it is above of now."""
    source = add_raw(session, "s", MIB)
    path = session.file("t.raw", MIB)
    session.do(
        "blockdev-add",
        driver="raw",
        node_name="t",
        file={"driver": "blkdebug", "align": 4096, "image": {"driver": "file", "filename": str(path)}},
    )
    session.do("blockdev-add", driver="copy-on-read", node_name="cor", file="s")
    session.do("blockdev-mirror", job_id="m", device="cor", target="t", sync="full", replaces="s")
    complete(session)
    assert session.node("cor").limits.request_alignment == 4096
    assert_gone(session, source)
