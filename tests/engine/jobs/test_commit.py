"""block-commit, intermediate and active: the guest's view stays, the base has it all, nobody is left behind."""

import errno
from typing import Any

import pytest

from engine.graph.driver import Status
from engine.graph.node import Node
from engine.jobs.active_commit import ActiveCommitJob
from tests.engine.jobs.session import Guest, Session, content, noise

MIB = 1 << 20
SIZE = 8 * MIB


def chain(session: Session, **options: Any) -> list[Node]:
    """base, mid1, mid2, top; data, zeros and an unaligned write."""
    session.create_qcow2("base", SIZE, **options)
    session.fill("base", (0, noise("base", 4 * MIB)))
    session.create_qcow2("mid1", SIZE, "base", **options)
    session.fill("mid1", (MIB, noise("mid1", MIB + 1536)))
    session.create_qcow2("mid2", SIZE, "mid1", **options)
    with session.offline("mid2") as guest:
        guest.write(6 * MIB + 512, memoryview(noise("mid2", 4096)))
        guest.write_zeroes(3 * MIB, MIB)
    session.create_qcow2("top", SIZE, "mid2", **options)
    session.fill("top", (2 * MIB, noise("top", 300_032)))
    nodes = []
    below = None
    for name in ("base", "mid1", "mid2", "top"):
        nodes.append(session.add_qcow2(name, below, read_only=name != "top"))
        below = name
    session.events.clear()
    return nodes


def held_by_jobs(node: Node) -> list[str]:
    return [edge.name for edge in node.parents if edge.parent.parent_kind == "job"]


def test_intermediate(session: Session) -> None:
    base, mid1, mid2, top = chain(session)
    before, below = content(top), content(mid2)
    session.do("block-commit", job_id="c", device="top", top_node="mid2", base_node="base")
    session.wait_status("c", "null")
    assert session.story("c") == ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"]
    assert session.wait_event("BLOCK_JOB_COMPLETED")["len"] == SIZE
    assert top.backing is not None
    assert top.backing.child is base
    assert (top.auto_backing_file, top.auto_backing_format) == (str(session.folder / "base.qcow2"), "qcow2")
    assert content(top) == before
    assert content(base) == below
    assert base.read_only
    assert not any(held_by_jobs(node) for node in (base, mid1, mid2, top))
    assert mid2.backing is not None
    assert not mid2.backing.frozen
    assert not any(node.driver.name == "commit_top" for node in session.engine.graph.nodes.values())
    session.do("blockdev-del", node_name="mid2")
    session.do("blockdev-del", node_name="mid1")


def test_intermediate_into_a_middle_layer_with_a_string(session: Session) -> None:
    base, mid1, _, top = chain(session)
    before = content(top)
    only_base = content(base)
    session.do("block-commit", job_id="c", device="top", top_node="mid2", base_node="mid1", backing_file="mid1.qcow2")
    session.wait_status("c", "null")
    assert top.backing is not None
    assert top.backing.child is mid1
    assert top.auto_backing_file == "mid1.qcow2"
    assert content(top) == before
    assert content(base) == only_base
    assert mid1.read_only


def test_zeros_stay_zero_clusters(session: Session) -> None:
    base, _, _, _ = chain(session)
    session.do("block-commit", job_id="c", device="top", top_node="mid2")
    session.wait_status("c", "null")
    assert base.block_status(3 * MIB, MIB).flags & Status.ZERO


def test_while_it_runs_the_layers_are_held(session: Session) -> None:
    base, mid1, mid2, _ = chain(session)
    session.do("block-commit", job_id="c", device="top", top_node="mid2", speed=1, filter_node_name="ct")
    assert held_by_jobs(mid2) == ["intermediate node", "root"]
    assert held_by_jobs(mid1) == ["intermediate node"]
    assert held_by_jobs(base) == ["base", "root"]
    assert not base.read_only
    assert session.error("blockdev-del", node_name="mid1").startswith("Node 'mid1' is busy")
    assert session.error("block-stream", job_id="s", device="top") == (
        "Node 'top' is busy: block device is in use by block job: commit"
    )
    session.do("job-cancel", id="c")
    session.wait_status("c", "null")
    assert session.story("c") == ["created", "running", "aborting", "CANCELLED", "concluded", "null"]
    assert base.read_only
    assert "ct" not in session.engine.graph.nodes
    assert [held_by_jobs(node) for node in (base, mid1, mid2)] == [[], [], []]


def test_a_cancelled_commit_loses_nothing_for_the_top(session: Session) -> None:
    *_, top = chain(session)
    before = content(top)
    session.do("block-commit", job_id="c", device="top", top_node="mid2", speed=4 * MIB)
    session.do("block-job-set-speed", device="c", speed=1)
    session.do("job-cancel", id="c")
    session.wait_status("c", "null")
    assert content(top) == before


def test_a_shorter_base_grows(session: Session) -> None:
    session.create_qcow2("base", 2 * MIB)
    session.fill("base", (0, noise("base", 2 * MIB)))
    session.create_qcow2("mid", 4 * MIB, "base")
    session.fill("mid", (3 * MIB, noise("mid", 4096)))
    session.create_qcow2("top", 4 * MIB, "mid")
    base = session.add_qcow2("base", read_only=True)
    session.add_qcow2("mid", "base", read_only=True)
    top = session.add_qcow2("top", "mid")
    before = content(top)
    session.do("block-commit", job_id="c", device="top", top_node="mid")
    session.wait_status("c", "null")
    assert base.length == 4 * MIB
    assert content(top) == before
    session.do("block-commit", job_id="c", device="top")
    session.wait_status("c", "ready")
    session.do("job-complete", id="c")
    session.wait_status("c", "null", 2)
    assert content(base) == before


@pytest.mark.parametrize("seed", range(3))
def test_intermediate_with_a_guest_that_writes(session: Session, seed: int) -> None:
    chain(session)
    with session.writer("top") as user:
        guest = Guest(user, seed)
        with guest:
            session.do("block-commit", job_id="c", device="top", top_node="mid2", speed=30 * MIB if seed else 0)
            session.wait_status("c", "null")
        assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
        assert content(user) == guest.model


# -- active ------------------------------------------------------------------------------------------------------------


def test_active(session: Session) -> None:
    base, mid1, mid2, top = chain(session)
    before = content(top)
    with session.writer("top") as user:
        session.do("block-commit", job_id="c", device="top")
        session.wait_status("c", "ready")
        ready = session.wait_event("BLOCK_JOB_READY")
        assert session.story("c") == ["created", "running", "ready", "READY"]
        assert ready["len"] == ready["offset"] > 0
        info = session.do("query-block-jobs")[0]
        assert (info["ready"], info["status"], info["type"]) == (True, "ready", "commit")
        user.write(7 * MIB, memoryview(b"late" * 128))
        session.do("block-job-complete", device="c")
        session.wait_status("c", "null")
        assert session.story("c")[4:] == ["waiting", "pending", "COMPLETED", "concluded", "null"]
        assert user.node is base
        assert not base.read_only
        expected = before[: 7 * MIB] + b"late" * 128 + before[7 * MIB + 512 :]
        assert content(user) == expected
        user.write(0, memoryview(b"more" * 128))
        assert content(base)[:512] == b"more" * 128
    for name in ("top", "mid2", "mid1"):
        session.do("blockdev-del", node_name=name)
    assert not any(held_by_jobs(node) for node in (base, mid1, mid2, top))


def test_active_soft_cancel_leaves_the_chain_and_a_consistent_base(session: Session) -> None:
    base, _, _, top = chain(session)
    before = content(top)
    with session.writer("top") as user:
        session.do("block-commit", job_id="c", device="top")
        session.wait_status("c", "ready")
        session.do("block-job-cancel", device="c")
        session.wait_status("c", "null")
        assert session.story("c")[4:] == ["waiting", "pending", "COMPLETED", "concluded", "null"]
        assert user.node is top
        assert content(base) == before
        assert base.read_only


@pytest.mark.parametrize("ready", [False, True])
def test_active_forced_cancel(session: Session, ready: bool) -> None:
    base, _, _, top = chain(session)
    before = content(top)
    with session.writer("top") as user:
        session.do("block-commit", job_id="c", device="top", speed=0 if ready else 1)
        if ready:
            session.wait_status("c", "ready")
        session.do("block-job-cancel", device="c", force=True)
        session.wait_status("c", "null")
        assert session.story("c")[-4:] == ["aborting", "CANCELLED", "concluded", "null"]
        assert user.node is top
        assert content(user) == before
    assert base.read_only
    assert top.backing is not None
    assert not top.backing.frozen
    assert top.trackers == ()


def test_soft_cancel_before_ready_is_forced(session: Session) -> None:
    chain(session)
    session.do("block-commit", job_id="c", device="top", speed=1)
    session.do("block-job-cancel", device="c")
    session.wait_status("c", "null")
    assert session.story("c") == ["created", "running", "aborting", "CANCELLED", "concluded", "null"]


@pytest.mark.parametrize("seed", range(6))
def test_active_with_a_guest_that_never_stops(session: Session, seed: int) -> None:
    """It converges, pivots while the guest writes, and the base then has every byte."""
    base, *_ = chain(session, cluster_size=4096 if seed % 2 else 65536)
    with session.writer("top") as user:
        guest = Guest(user, seed)
        with guest:
            session.do("block-commit", job_id="c", device="top", speed=0 if seed % 3 else 60 * MIB)
            session.wait_status("c", "ready")
            session.do("job-pause", id="c")
            session.do("job-resume", id="c")
            session.do("job-complete", id="c")
            session.wait_status("c", "null")
            seen = guest.operations
            while guest.operations < seen + 20:
                session.do("query-jobs")
        assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
        assert user.node is base
        assert content(user) == guest.model


def test_a_pending_pivot_keeps_the_guest_waiting_and_loses_nothing(session: Session) -> None:
    base, *_ = chain(session)
    with session.writer("top") as user:
        guest = Guest(user, 1)
        with guest:
            session.do("block-commit", job_id="c", device="top", auto_finalize=False)
            session.wait_status("c", "ready")
            session.do("job-complete", id="c")
            session.wait_status("c", "pending")
            info = session.do("query-block-jobs")[0]
            assert (info["paused"], info["ready"]) == (True, False)
            session.do("job-finalize", id="c")
            session.wait_status("c", "null")
        assert user.node is base
        assert content(user) == guest.model


def test_a_cancelled_pending_pivot_lets_the_guest_go_on(session: Session) -> None:
    *_, top = chain(session)
    with session.writer("top") as user:
        guest = Guest(user, 1)
        with guest:
            session.do("block-commit", job_id="c", device="top", auto_finalize=False)
            session.wait_status("c", "ready")
            session.do("job-complete", id="c")
            session.wait_status("c", "pending")
            session.do("job-cancel", id="c")
            session.wait_status("c", "null")
            assert session.story("c")[-4:] == ["aborting", "CANCELLED", "concluded", "null"]
            seen = guest.operations
            while guest.operations < seen + 5:
                session.do("query-jobs")
        assert user.node is top
        assert content(user) == guest.model


@pytest.mark.parametrize("removed", [False, True])
def test_a_guest_waiting_for_a_pivot_can_go(session: Session, removed: bool) -> None:
    """Removing the guest, or closing the engine, does not wait for the job that keeps the guest waiting."""
    *_, top = chain(session)
    session.do("x-blockmon-guest-add", id="g", node_name="top", iops=5000)
    session.do("block-commit", job_id="c", device="top", auto_finalize=False)
    session.wait_status("c", "ready")
    session.do("job-complete", id="c")
    session.wait_status("c", "pending")
    if removed:
        session.do("x-blockmon-guest-del", id="g")
        session.do("job-finalize", id="c")
        session.wait_status("c", "null")
        assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
    else:
        session.close()
        assert session.story("c")[-4:] == ["aborting", "CANCELLED", "concluded", "null"]
    assert top.quiesce_count == 0


def test_a_layer_in_the_middle_with_a_writer_is_committed_actively(session: Session) -> None:
    base, mid1, mid2, top = chain(session)
    before = content(top)
    session.call(lambda: _make_writable(mid1))
    with session.writer("mid1") as user:
        assert session.error(
            "block-commit", job_id="c", device="top", top_node="mid1", base_node="base", backing_file="x"
        ) == ("'backing-file' specified, but 'top' has a writer on it")
        session.do("block-commit", job_id="c", device="top", top_node="mid1", base_node="base")
        session.wait_status("c", "ready")
        session.do("job-complete", id="c")
        session.wait_status("c", "null")
        assert user.node is base
    assert mid2.backing is not None
    assert mid2.backing.child is base
    assert content(top) == before


def _make_writable(node: Node) -> None:
    from engine.graph.reopen import set_read_only

    set_read_only(node, False)


def test_an_empty_top_is_ready_at_once(session: Session) -> None:
    session.chain("base", "top")
    session.do("block-commit", job_id="c", device="top")
    session.wait_status("c", "ready")
    assert session.wait_event("BLOCK_JOB_READY") == {
        "type": "commit",
        "device": "c",
        "len": 0,
        "offset": 0,
        "speed": 0,
    }


# -- errors ------------------------------------------------------------------------------------------------------------


def fail_writes(node: Node, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next *times* writes and reservations in *node* fail."""
    left = [times]
    for name in ("write", "begin_write"):
        real = getattr(node.driver, name)

        def failing(*args: Any, real: Any = real) -> Any:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.ENOSPC, "")
            return real(*args)

        monkeypatch.setattr(node.driver, name, failing)


@pytest.mark.parametrize("active", [False, True])
def test_report(session: Session, monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    base, _, _, top = chain(session)
    before = content(top)
    fail_writes(base, monkeypatch, 1)
    session.do("block-commit", job_id="c", device="top", top_node="top" if active else "mid2")
    session.wait_status("c", "null")
    assert session.story("c") == ["created", "running", "ERROR", "aborting", "COMPLETED", "concluded", "null"]
    assert session.wait_event("BLOCK_JOB_ERROR") == {"device": "c", "operation": "write", "action": "report"}
    assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "No space left on device"
    assert content(top) == before
    assert base.read_only


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("policy", ["stop", "enospc", "ignore"])
def test_tried_again_until_it_works(
    session: Session, monkeypatch: pytest.MonkeyPatch, active: bool, policy: str
) -> None:
    base, _, mid2, top = chain(session)
    expected = content(top if active else mid2)
    fail_writes(base, monkeypatch, 2)
    session.do("block-commit", job_id="c", device="top", top_node="top" if active else "mid2", on_error=policy)
    if policy != "ignore":
        for number in (1, 2):
            session.wait_status("c", "paused", number)
            assert session.do("query-block-jobs")[0]["io-status"] == "nospace"
            session.do("job-resume", id="c")
    if active:
        session.wait_status("c", "ready")
        session.do("job-complete", id="c")
    session.wait_status("c", "null")
    assert session.story("c").count("ERROR") == 2
    assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
    assert content(base) == expected


def test_an_error_in_the_last_moment_loses_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest writes just before it is kept out; copying that fails at first."""
    base, *_ = chain(session)
    with session.writer("top") as user:
        session.do("block-commit", job_id="c", device="top", on_error="stop")
        session.wait_status("c", "ready")
        real = ActiveCommitJob._drain
        late = [True]

        def drain(self: ActiveCommitJob) -> None:
            if late.pop() if late else False:
                user.write(7 * MIB, memoryview(b"late" * 128))
                fail_writes(base, monkeypatch, 1)
            real(self)

        monkeypatch.setattr(ActiveCommitJob, "_drain", drain)
        session.do("job-complete", id="c")
        session.wait_status("c", "standby")
        user.write(0, memoryview(b"more" * 128))  # nobody is kept waiting meanwhile
        session.do("job-resume", id="c")
        session.wait_status("c", "null")
        assert session.story("c")[4:] == [
            *["ERROR", "standby", "ready"],
            *["waiting", "pending", "COMPLETED", "concluded", "null"],
        ]
        assert user.node is base
        data = content(user)
        assert (data[7 * MIB : 7 * MIB + 512], data[:512]) == (b"late" * 128, b"more" * 128)


def test_an_overlay_that_cannot_be_rewritten_fails_the_job(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, top = chain(session)
    before = content(top)

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(top.driver, "change_backing_string", refuse)
    session.do("block-commit", job_id="c", device="top", top_node="mid2")
    session.wait_status("c", "null")
    assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert content(top) == before
    assert not any(node.driver.name == "commit_top" for node in session.engine.graph.nodes.values())


def test_errors_leave_the_graph_as_it_was(session: Session) -> None:
    chain(session)

    def picture() -> Any:
        return sorted(
            (edge.parent.parent_name, edge.name, edge.child.name, edge.perm, edge.shared, edge.frozen)
            for node in session.engine.graph.nodes.values()
            for edge in node.parents
        ), sorted((node.name, node.read_only, node.pins) for node in session.engine.graph.nodes.values())

    before = session.call(picture)
    for arguments in (
        {"speed": -1},
        {"speed": -1, "top_node": "mid2"},
        {"filter_node_name": "mid1"},
        {"filter_node_name": "mid1", "top_node": "mid2"},
        {"filter_node_name": "1"},
        {"job_id": "1"},
        {"job_id": "1", "top_node": "mid2"},
    ):
        session.error("block-commit", **({"job_id": "c", "device": "top"} | arguments))
        assert session.call(picture) == before, arguments
    for arguments in ({"speed": -1}, {"filter_node_name": "mid1"}, {"job_id": "1"}):
        session.error("block-stream", **({"job_id": "c", "device": "top"} | arguments))
        assert session.call(picture) == before, arguments


def test_a_filter_that_can_not_go_stays(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    """A node uses the filter as its file and the source as its target: without the filter both would be one."""
    session.chain("base", "top", size=MIB)
    session.do("block-commit", job_id="c", device="top", speed=1, filter_node_name="f")
    session.do("blockdev-add", driver="copy-before-write", node_name="cbw", file="f", target="top")
    session.do("blockdev-add", driver="raw", node_name="user", file="cbw")
    with caplog.at_level("WARNING", "engine.jobs"):
        session.do("block-job-cancel", device="c", force=True)
        session.wait_status("c", "null")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "its filter f stays: Permission conflict" in caplog.text
    assert content(session.node("user")) == bytes(MIB)
    session.do("blockdev-del", node_name="user")
