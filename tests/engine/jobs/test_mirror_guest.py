"""Mirrors while guests write: nothing is lost, whatever the copy mode, and the target is what the guest wrote."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.filter.internal import MirrorTopDriver
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.jobs.mirror import MirrorJob
from tests.engine.jobs.session import Guest, Session, content, noise

MIB = 1 << 20
SIZE = 8 * MIB
MODES = ("background", "write-blocking")


def source(session: Session) -> Node:
    """top over base: data in both, zeros, and much that is in neither."""
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", 3 * MIB)))
    session.create_qcow2("top", SIZE, "base")
    with session.offline("top") as guest:
        guest.write(MIB + 512, memoryview(noise("top", MIB)))
        guest.write_zeroes(2 * MIB + 65536, 300_032)
        guest.write(5 * MIB + 1024, memoryview(noise("more", 70_144)))
    session.add_qcow2("base", read_only=True)
    return session.add_qcow2("top", "base")


def target(session: Session, kind: str) -> Node:
    if kind == "raw":
        session.file("t.raw", SIZE)
        session.do(
            "blockdev-add",
            driver="raw",
            node_name="t",
            file={"driver": "file", "filename": str(session.folder / "t.raw")},
        )
    else:
        session.create_qcow2("t", SIZE, cluster_size=4096 if kind == "small" else 65536)
        session.add_qcow2("t", discard="unmap" if kind == "unmap" else "ignore")
    return session.node("t")


def run_beside_a_guest(
    session: Session,
    seed: int,
    arguments: dict[str, Any],
    command: str = "blockdev-mirror",
    check: Callable[[Node], object] = str,
) -> Node:
    """Mirror and switch over while two guests write, each to a half of its own; returns the node they are on then.

    check: called with that node while it is in use.
    """
    with session.writer("top") as user:
        guests = [Half(user, seed * 2 + number, number) for number in (0, 1)]
        for guest in guests:
            guest.__enter__()
        try:
            session.do(command, job_id="m", device="top", **arguments)
            session.wait_status("m", "ready")
            before = [guest.operations for guest in guests]
            wait(lambda: all(guest.operations > count + 20 for guest, count in zip(guests, before, strict=True)))
            session.do("job-complete", id="m")
            session.wait_status("m", "null")
            before = [guest.operations for guest in guests]
            wait(lambda: all(guest.operations > count + 5 for guest, count in zip(guests, before, strict=True)))
        finally:
            for guest in guests:
                guest.stop()
        assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
        node = user.node
        half = SIZE // 2
        assert content(node) == bytes(guests[0].model[:half]) + bytes(guests[1].model[half:])
        check(node)
        return node


class Half(Guest):
    """A guest that keeps to one half of the disk."""

    def __init__(self, backend: BlockBackend, seed: int, half: int) -> None:
        super().__init__(backend, seed)
        self._half = half

    def once(self) -> None:
        rng = self._rng
        length = 512 * rng.choice((1, 8, 128, rng.randrange(1, 300)))
        size = len(self.model) // 2
        offset = self._half * size + 512 * rng.randrange((size - length) // 512 + 1)
        if rng.random() < 0.15:
            self.backend.write_zeroes(offset, length)
            self.model[offset : offset + length] = bytes(length)
        else:
            data = bytes([rng.randrange(1, 256)]) * length
            self.backend.write(offset, memoryview(data))
            self.model[offset : offset + length] = data
        self.operations += 1


def wait(condition: Callable[[], bool]) -> None:
    """Let the guests' threads go on until *condition* holds."""
    ticks = threading.Event()
    for _ in range(3000):
        if condition():
            return
        ticks.wait(0.01)
    raise AssertionError("the guests stand still")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["qcow2", "small", "unmap", "raw"])
def test_full(session: Session, mode: str, kind: str) -> None:
    source(session)
    node = target(session, kind)
    moved = run_beside_a_guest(session, MODES.index(mode), {"target": "t", "sync": "full", "copy_mode": mode})
    assert moved is node


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("granularity", [512, 4096, MIB])
def test_granularity(session: Session, mode: str, granularity: int) -> None:
    source(session)
    target(session, "qcow2")
    arguments = {"target": "t", "sync": "full", "copy_mode": mode, "granularity": granularity, "buf_size": 65536}
    run_beside_a_guest(session, 7, arguments)


@pytest.mark.parametrize("mode", MODES)
def test_slowly(session: Session, mode: str) -> None:
    """The guest writes for a long time before everything was copied once."""
    source(session)
    target(session, "qcow2")
    arguments = {"target": "t", "sync": "full", "copy_mode": mode, "speed": 16 * MIB, "buf_size": 65536}
    run_beside_a_guest(session, 9, arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sync", ["top", "none", "full"])
@pytest.mark.parametrize("granularity", [4096, 65536])
def test_drive_mirror(session: Session, mode: str, sync: str, granularity: int) -> None:
    """The copy gets its backing image only at the end; parts of clusters written before must not hide it."""
    source(session)
    path = str(session.folder / "copy.qcow2")

    def check(node: Node) -> None:
        assert node.name == "copy"
        backing = node.backing.child.name if node.backing is not None else None
        assert backing == {"top": "base", "none": "top", "full": None}[sync]

    arguments = {"target": path, "sync": sync, "copy_mode": mode, "granularity": granularity, "node_name": "copy"}
    run_beside_a_guest(session, 11, arguments, "drive-mirror", check)


@pytest.mark.parametrize("mode", MODES)
def test_drive_mirror_to_an_existing_image(session: Session, mode: str) -> None:
    source(session)
    path = session.create_qcow2("copy", SIZE, "base")

    def check(node: Node) -> None:
        assert node.backing is not None
        assert node.backing.child.filename == str(session.folder / "base.qcow2")

    arguments = {"target": str(path), "mode": "existing", "sync": "top", "copy_mode": mode, "format": "qcow2"}
    run_beside_a_guest(session, 13, arguments, "drive-mirror", check)


@pytest.mark.parametrize("mode", MODES)
def test_a_soft_cancellation_leaves_one_moment(session: Session, mode: str) -> None:
    """A guest counts in slots, one after the other: the copy has the numbers of consecutive writes."""
    source(session)
    node = target(session, "qcow2")
    slots, stop = 128, threading.Event()
    with session.writer("top") as user:

        def put(number: int) -> None:
            user.write(number % slots * 65536, memoryview(number.to_bytes(8, "little") * 64))

        for number in range(slots):
            put(number)

        def count() -> None:
            number = slots
            while not stop.is_set():
                put(number)
                number += 1

        thread = threading.Thread(target=count)
        thread.start()
        session.do("blockdev-mirror", job_id="m", device="top", target="t", sync="full", copy_mode=mode)
        session.wait_status("m", "ready")
        session.do("block-job-cancel", device="m")
        session.wait_status("m", "null")
        stop.set()
        thread.join()
        assert user.node.name == "top"
    assert session.story("m")[-5:] == ["waiting", "pending", "COMPLETED", "concluded", "null"]
    found = sorted(int.from_bytes(content(node)[slot * 65536 : slot * 65536 + 8], "little") for slot in range(slots))
    assert found == list(range(found[0], found[0] + slots))


# -- write-blocking alone --------------------------------------------------------------------------------------------


def start(session: Session, *, kind: str = "qcow2", **options: Any) -> tuple[Node, Node]:
    """A write-blocking mirror that is ready, its job paused: what reaches the target now, guests bring there."""
    top, node = source(session), target(session, kind)
    arguments = {"target": "t", "sync": "full", "copy_mode": "write-blocking", "filter_node_name": "mt"} | options
    session.do("blockdev-mirror", job_id="m", device="top", **arguments)
    session.wait_status("m", "ready")
    session.do("job-pause", id="m")
    session.wait_status("m", "standby")
    return top, node


def test_the_write_is_in_both_when_it_returns(session: Session) -> None:
    top, node = start(session)
    with session.writer("mt") as user, Guest(user, 3) as guest:
        wait(lambda: guest.operations > 300)
        guest.stop()
        assert content(node) == content(top) == bytes(guest.model)
    info = session.do("query-block-jobs")[0]
    assert info["len"] == info["offset"] > SIZE
    assert bitmap_info(session)["count"] == 0
    session.do("job-resume", id="m")


def bitmap_info(session: Session) -> dict[str, Any]:
    nodes = {info["node-name"]: info for info in session.do("query-named-block-nodes", flat=True)}
    info: dict[str, Any] = nodes["top"]["dirty-bitmaps"][0]
    return info


def test_writes_that_bypass_the_filter_are_copied_too(session: Session) -> None:
    _, node = start(session)
    assert bitmap_info(session)["recording"] is False
    with session.writer("top") as around:
        around.write(6 * MIB, memoryview(b"beside" * 256))
        assert bitmap_info(session)["count"] == 65536
        session.do("job-resume", id="m")
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
    assert content(node)[6 * MIB : 6 * MIB + 6] == b"beside"


def test_a_drained_target_keeps_no_guest_waiting(session: Session) -> None:
    """The write is marked and copied later."""
    _, node = start(session)
    with session.writer("mt") as user:

        def write_in_drain() -> None:
            with drained([node]):
                thread = threading.Thread(target=lambda: user.write(6 * MIB, memoryview(b"drain" * 1024)))
                thread.start()
                thread.join(20)
                assert not thread.is_alive()

        session.call(write_in_drain)
        assert content(node)[6 * MIB : 6 * MIB + 5] == bytes(5)
        assert bitmap_info(session)["count"] == 65536
        session.do("job-resume", id="m")
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
        assert user.node is node
    assert content(node)[6 * MIB : 6 * MIB + 5] == b"drain"


def test_a_drain_waits_for_the_write_to_the_target(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _, node = start(session)
    inside, go_on, over = threading.Event(), threading.Event(), threading.Event()
    real = node.driver.write

    def slow(offset: int, data: memoryview, flags: int = 0) -> None:
        inside.set()
        assert go_on.wait(20)
        real(offset, data, flags)
        over.set()

    monkeypatch.setattr(node.driver, "write", slow)
    with session.writer("mt") as user:
        thread = threading.Thread(target=lambda: user.write(6 * MIB, memoryview(b"slow" * 1024)))
        thread.start()
        assert inside.wait(20)

        def drain() -> bool:
            threading.Timer(0.05, go_on.set).start()
            with drained([node]):
                return over.is_set()

        assert session.call(drain)
        thread.join()
    session.do("job-resume", id="m")


def test_a_guest_waits_for_a_copy_of_the_same_place(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the copy, with what it read before, would undo the write to the target."""
    top, node = source(session), target(session, "qcow2")
    inside, go_on, over = threading.Event(), threading.Event(), threading.Event()
    real = node.driver.write

    def slow(offset: int, data: memoryview, flags: int = 0) -> None:
        if threading.current_thread().name == "job-m" and offset == 0:
            inside.set()
            assert go_on.wait(20)
        real(offset, data, flags)

    monkeypatch.setattr(node.driver, "write", slow)
    monkeypatch.setattr(node.driver, "begin_write", lambda offset, length: None)
    session.do(
        "blockdev-mirror",
        job_id="m",
        device="top",
        target="t",
        sync="full",
        copy_mode="write-blocking",
        filter_node_name="mt",
        buf_size=65536,
    )
    assert inside.wait(20)
    with session.writer("mt") as user:

        def write() -> None:
            user.write(4096, memoryview(b"wait" * 1024))
            over.set()

        thread = threading.Thread(target=write)
        thread.start()
        user.write(MIB, memoryview(b"free" * 1024))  # another place
        assert not over.wait(0.1)
        go_on.set()
        thread.join(20)
        assert over.is_set()
        session.wait_status("m", "ready")
        assert content(node) == content(top)


def test_zeros_do_not_run_ahead_of_guests(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest writes to both while the job zeroes a part of the target before it."""
    session.create_qcow2("top", SIZE)
    session.add_qcow2("top")
    node = target(session, "qcow2")
    inside, go_on = threading.Event(), threading.Event()
    real = node.driver.write_zeroes

    def slow(offset: int, length: int, flags: int = 0) -> None:
        inside.set()
        assert go_on.wait(20)
        real(offset, length, flags)

    monkeypatch.setattr(node.driver, "write_zeroes", slow)
    arguments = {"sync": "full", "copy_mode": "write-blocking", "filter_node_name": "mt", "buf_size": 65536}
    session.do("blockdev-mirror", job_id="m", device="top", target="t", **arguments)
    assert inside.wait(20)
    with session.writer("mt") as user:
        user.write(6 * MIB, memoryview(noise("guest", 65536)))
        go_on.set()
        session.wait_status("m", "ready")
        assert content(node)[6 * MIB : 6 * MIB + 65536] == noise("guest", 65536)


@pytest.mark.parametrize("mode", MODES)
def test_the_last_look_waits_for_writes_in_flight(session: Session, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    top, node = source(session), target(session, "qcow2")
    with session.writer("top") as user:
        session.do("blockdev-mirror", job_id="m", device="top", target="t", sync="full", copy_mode=mode)
        session.wait_status("m", "ready")
        inside, go_on = threading.Event(), threading.Event()
        real = top.driver.write

        def slow(offset: int, data: memoryview, flags: int = 0) -> None:
            inside.set()
            assert go_on.wait(20)
            real(offset, data, flags)

        monkeypatch.setattr(top.driver, "write", slow)
        thread = threading.Thread(target=lambda: user.write(6 * MIB, memoryview(b"late" * 1024)))
        thread.start()
        assert inside.wait(20)
        threading.Timer(0.2, go_on.set).start()
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
        thread.join(20)
        assert user.node is node
        assert content(node)[6 * MIB : 6 * MIB + 4] == b"late"


def fail_writes(node: Node, monkeypatch: pytest.MonkeyPatch, times: int, number: int) -> None:
    left = [number] * times
    real = node.driver.write

    def write(offset: int, data: memoryview, flags: int = 0) -> None:
        if left:
            error = left.pop()
            raise OSError(error, os.strerror(error))
        real(offset, data, flags)

    monkeypatch.setattr(node.driver, "write", write)


@pytest.mark.parametrize("policy", ["report", "ignore", "stop"])
def test_an_error_of_the_target_is_not_the_guests(
    session: Session, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    top, node = start(session, on_target_error=policy)
    session.do("job-resume", id="m")
    session.wait_status("m", "ready", 2)
    fail_writes(node, monkeypatch, 1, errno.ENOSPC)
    with session.writer("mt") as user:
        user.write(6 * MIB, memoryview(b"error" * 1024))
        event = session.wait_event("BLOCK_JOB_ERROR")
        assert event == {"device": "m", "operation": "write", "action": policy}
        if policy == "report":
            session.wait_status("m", "null")
            assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "No space left on device"
            assert user.node is top
            return
        if policy == "stop":
            session.wait_status("m", "standby", 2)
            assert session.do("query-block-jobs")[0]["io-status"] == "nospace"
            session.do("job-resume", id="m")
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
        assert user.node is node
        assert content(node)[6 * MIB : 6 * MIB + 5] == b"error"


def test_a_failed_write_to_the_source_is_copied_as_it_is(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    top, node = start(session)
    fail_writes(top, monkeypatch, 1, errno.EIO)
    with session.writer("mt") as user:
        with pytest.raises(OSError, match="Input/output error"):
            user.write(6 * MIB, memoryview(b"fails" * 1024))
        assert bitmap_info(session)["count"] == 65536
        session.do("job-resume", id="m")
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
    assert content(node) == content(top)


def test_after_force_cancel_guests_go_on_alone(session: Session) -> None:
    top, node = start(session)
    before = content(node)
    with session.writer("mt") as user:
        session.do("job-cancel", id="m")
        session.wait_status("m", "null")
        assert user.node is top
        user.write(6 * MIB, memoryview(b"alone" * 1024))
    assert content(node) == before
    assert not top.trackers
    assert not any(isinstance(other.driver, MirrorTopDriver) for other in session.engine.graph.nodes.values())


def test_unaligned_writes_to_dirty_granules_wait_for_the_copy(session: Session) -> None:
    """Parts of a granule that is to be copied anyway are not written twice, and none of it gets lost."""
    top, node = source(session), target(session, "qcow2")
    session.do(
        "blockdev-mirror", job_id="m", device="top", target="t", sync="full", copy_mode="write-blocking", speed=1,
        buf_size=65536, filter_node_name="mt",
    )  # fmt: skip
    session.wait_status("m", "running")
    job = session.engine.jobs.find("m")
    assert isinstance(job, MirrorJob)
    wait(lambda: job.progress_current >= 65536)
    with session.writer("mt") as user:
        user.write(3 * MIB - 512, memoryview(noise("x", 2 * 65536)))
        # The granule in the middle is whole.
        at = 3 * MIB
        assert content(node)[at : at + 65536] == content(top)[at : at + 65536]
        assert content(node)[at - 512 : at] == bytes(512)
        assert content(node)[at + 65536 : at + 2 * 65536] == bytes(65536)
        session.do("block-job-set-speed", device="m", speed=0)
        session.wait_status("m", "ready")
        assert content(node) == content(top)


def test_the_copy_on_the_disk(session: Session, tmp_path: Path) -> None:
    """After the pivot and the end of the engine the file holds it all."""
    source(session)
    target(session, "raw")
    with session.writer("top") as user, Guest(user, 21) as guest:
        session.do("blockdev-mirror", job_id="m", device="top", target="t", sync="full", copy_mode="write-blocking")
        session.wait_status("m", "ready")
        session.do("job-complete", id="m")
        session.wait_status("m", "null")
        guest.stop()
        model = bytes(guest.model)
    session.close()
    assert (tmp_path / "t.raw").read_bytes() == model
