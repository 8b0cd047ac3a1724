"""block-stream: what the guest sees never changes, the chain gets shorter, errors follow the policy."""

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine.copying.copier import PopulateTarget
from engine.graph.driver import Status
from engine.graph.node import Node
from tests.engine.jobs.session import CLUSTER, TIMEOUT, Guest, Session, content, noise

MIB = 1 << 20
SIZE = 8 * MIB


def three_layers(session: Session, **options: Any) -> list[Node]:
    """base, mid, top with data of each showing in the top."""
    session.create_qcow2("base", SIZE, **options)
    session.fill("base", (0, noise("base", 3 * MIB)), (5 * MIB, noise("b2", 100_352)))
    session.create_qcow2("mid", SIZE, "base", **options)
    session.fill("mid", (MIB, noise("mid", MIB + 512)), (6 * MIB, noise("m2", 4096)))
    session.create_qcow2("top", SIZE, "mid", **options)
    session.fill("top", (2 * MIB, noise("top", 300_032)))
    nodes = []
    below = None
    for name in ("base", "mid", "top"):
        nodes.append(session.add_qcow2(name, below, read_only=name != "top"))
        below = name
    session.events.clear()
    return nodes


def allocated(node: Node, offset: int) -> bool:
    return bool(node.block_status(offset, 512).flags & Status.ALLOCATED)


def test_whole_chain(session: Session) -> None:
    _, _, top = three_layers(session)
    before = content(top)
    session.do("block-stream", job_id="s", device="top")
    session.wait_status("s", "null")
    assert session.story("s") == ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"]
    done = session.wait_event("BLOCK_JOB_COMPLETED")
    assert done == {"type": "stream", "device": "s", "len": SIZE, "offset": SIZE, "speed": 0}
    assert top.backing is None
    assert top.auto_backing_file == ""
    assert content(top) == before
    assert not allocated(top, 7 * MIB)
    session.do("blockdev-del", node_name="mid")
    session.do("blockdev-del", node_name="base")
    assert content(top) == before
    assert set(session.engine.graph.nodes) == {"top", top.children["file"].child.name}


@pytest.mark.parametrize("how", ["base", "base-node", "bottom"])
def test_down_to_a_base(session: Session, how: str) -> None:
    base, _, top = three_layers(session)
    before = content(top)
    value = str(session.folder / "base.qcow2") if how == "base" else {"base-node": "base", "bottom": "mid"}[how]
    session.do("block-stream", job_id="s", device="top", **{how: value})
    session.wait_status("s", "null")
    assert top.backing is not None
    assert top.backing.child is base
    assert top.auto_backing_file == str(session.folder / "base.qcow2")
    assert top.auto_backing_format == "qcow2"
    assert content(top) == before
    assert allocated(top, MIB)
    assert not allocated(top, 0)


def test_backing_file_string(session: Session) -> None:
    _, _, top = three_layers(session)
    session.do("block-stream", job_id="s", device="top", base_node="base", backing_file="base.qcow2")
    session.wait_status("s", "null")
    assert (top.auto_backing_file, top.auto_backing_format) == ("base.qcow2", "qcow2")


def test_nothing_to_stream_rewrites_the_header_only(session: Session) -> None:
    _, mid, top = three_layers(session)
    session.do("block-stream", job_id="s", device="top", base_node="mid", backing_file="x")
    session.wait_status("s", "null")
    assert session.wait_event("BLOCK_JOB_COMPLETED")["len"] == 0
    assert top.backing is not None
    assert top.backing.child is mid
    assert top.auto_backing_file == "x"


def test_without_an_id_the_job_is_called_after_the_device(session: Session) -> None:
    three_layers(session)
    assert session.error("block-stream", device="top") == "Invalid job ID ''"
    with session.writer("top"):
        session.do("block-stream", device="guest", auto_dismiss=False)
        session.wait_status("guest", "concluded")
        session.do("block-job-dismiss", id="guest")
        assert session.story("guest")[-2:] == ["concluded", "null"]


def test_into_an_intermediate_read_only_layer(session: Session) -> None:
    _, mid, top = three_layers(session)
    before = content(mid), content(top)
    session.do("block-stream", job_id="s", device="mid", auto_finalize=False)
    session.wait_status("s", "pending")
    assert not mid.read_only
    session.do("job-finalize", id="s")
    session.wait_status("s", "null")
    assert mid.read_only
    assert mid.backing is None
    assert (content(mid), content(top)) == before


def test_the_filter_and_the_holds_go_when_it_is_cancelled(session: Session) -> None:
    _, mid, top = three_layers(session)
    before = content(top)
    names = set(session.engine.graph.nodes)
    session.do("block-stream", job_id="s", device="top", speed=1, filter_node_name="cor")
    assert session.node("cor").driver.name == "copy-on-read"
    assert not session.node("cor").implicit
    assert mid.blockers.reasons() == [
        "node is used as backing hd of 'top'",
        "block device is in use by block job: stream",
    ]
    session.do("job-cancel", id="s")
    session.wait_status("s", "null")
    assert set(session.engine.graph.nodes) == names
    assert mid.blockers.reasons() == ["node is used as backing hd of 'top'"]
    assert all(edge.parent.parent_kind == "node" for node in (top, mid) for edge in node.parents)
    assert top.backing is not None
    assert not top.backing.frozen
    assert content(top) == before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_with_a_guest_that_writes(session: Session, seed: int, cluster_size: int) -> None:
    """Every write made while the job copies must survive it."""
    three_layers(session, cluster_size=cluster_size)
    with session.writer("top") as user:
        guest = Guest(user, seed)
        with guest:
            session.do("block-stream", job_id="s", device="top", speed=40 * MIB if seed % 2 else 0)
            session.wait_status("s", "null")
            assert session.story("s")[-3:] == ["COMPLETED", "concluded", "null"]
            assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")
        assert guest.operations > 0
        assert content(user) == guest.model


def test_a_write_during_a_copy_waits_and_wins(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job has read the old data when the guest writes: the guest's write has to come after the job's."""
    _, _, top = three_layers(session)
    real = PopulateTarget.plan
    threads: list[threading.Thread] = []
    with session.writer("top") as user:

        def write() -> None:
            user.write(CLUSTER, memoryview(b"!" * CLUSTER))

        def plan(self: PopulateTarget, offset: int, length: int) -> Any:
            made = real(self, offset, length)
            if not threads:
                threads.append(threading.Thread(target=write))
                threads[0].start()
                threads[0].join(0.1)  # without the lock it gets through here, and is overwritten
                assert threads[0].is_alive()
            return made

        monkeypatch.setattr(PopulateTarget, "plan", plan)
        session.do("block-stream", job_id="s", device="top")
        session.wait_status("s", "null")
        threads[0].join(TIMEOUT)
        assert content(top)[CLUSTER : 2 * CLUSTER] == b"!" * CLUSTER
        assert "error" not in session.wait_event("BLOCK_JOB_COMPLETED")


def test_a_short_layer_hides_the_base_also_afterwards(session: Session) -> None:
    """mid ends before base does; top sees zeros behind its end, not the base's data."""
    session.create_qcow2("base", 4 * MIB)
    session.fill("base", (0, noise("base", 4 * MIB)))
    session.create_qcow2("mid", 2 * MIB, "base")
    session.create_qcow2("top", 4 * MIB, "mid")
    session.add_qcow2("base", read_only=True)
    session.add_qcow2("mid", "base", read_only=True)
    top = session.add_qcow2("top", "mid")
    before = content(top)
    assert before[2 * MIB :] == bytes(2 * MIB)
    session.do("block-stream", job_id="s", device="top", base_node="base")
    session.wait_status("s", "null")
    assert content(top) == before
    session.do("block-stream", job_id="s", device="top")
    session.wait_status("s", "null", 2)
    assert content(top) == before


def test_zeros_in_the_layers_become_zero_clusters(session: Session) -> None:
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, bytes(MIB)), (MIB, noise(1, MIB)))
    session.create_qcow2("top", SIZE, "base")
    session.add_qcow2("base", read_only=True)
    top = session.add_qcow2("top", "base")
    session.do("block-stream", job_id="s", device="top")
    session.wait_status("s", "null")
    assert top.block_status(0, MIB).flags & Status.ZERO
    assert top.block_status(MIB, MIB).flags & Status.DATA
    assert (session.folder / "top.qcow2").stat().st_size < 2 * MIB


def test_bitmaps_of_the_streamed_node_stay_clean(session: Session) -> None:
    from engine.bitmaps.dirty import DirtyBitmap

    _, _, top = three_layers(session)
    file = top.children["file"].child
    bitmaps = [DirtyBitmap(node, CLUSTER) for node in (top, file)]
    for bitmap in bitmaps:
        session.call(bitmap.attach)
    session.do("block-stream", job_id="s", device="top")
    session.wait_status("s", "null")
    assert bitmaps[0].count == 0
    assert bitmaps[1].count > 0


def test_speed_is_kept_within_five_per_cent(session: Session) -> None:
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", SIZE)))
    session.create_qcow2("top", SIZE, "base")
    session.add_qcow2("base", read_only=True)
    session.add_qcow2("top", "base")
    begun = time.monotonic()
    session.do("block-stream", job_id="s", device="top", speed=3 * MIB)
    session.wait_status("s", "null")
    assert time.monotonic() - begun == pytest.approx(SIZE / (3 * MIB), rel=0.05)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_mid(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Reads of the middle layer's file fail until the returned function is called."""
    from engine.copying import copier as copying

    _, mid, _ = three_layers(session)
    driver = mid.children["file"].child.driver
    real = driver.read
    state = {"broken": True}

    def read(offset: int, buffer: memoryview) -> None:
        if state["broken"] and len(buffer) >= 4096:
            raise OSError(errno.EIO, "")
        real(offset, buffer)

    monkeypatch.setattr(driver, "read", read)
    monkeypatch.setattr(copying, "transparent", lambda node: False)

    def mend() -> None:
        state["broken"] = False

    return mend


def test_report(session: Session, broken_mid: Callable[[], None]) -> None:
    session.do("block-stream", job_id="s", device="top")
    session.wait_status("s", "null")
    assert session.story("s") == ["created", "running", "ERROR", "aborting", "COMPLETED", "concluded", "null"]
    assert session.wait_event("BLOCK_JOB_ERROR") == {"device": "s", "operation": "read", "action": "report"}
    assert session.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    top = session.node("top")
    assert top.backing is not None
    assert top.backing.child.name == "mid"


def test_ignore_goes_on_and_keeps_the_link(session: Session, broken_mid: Callable[[], None]) -> None:
    before = None
    session.do("block-stream", job_id="s", device="top", on_error="ignore")
    session.wait_status("s", "null")
    done = session.wait_event("BLOCK_JOB_COMPLETED")
    assert done["error"] == "Input/output error"
    assert done["offset"] == done["len"] == SIZE
    actions = [e["data"]["action"] for e in session.events if e["event"] == "BLOCK_JOB_ERROR"]
    assert set(actions) == {"ignore"}
    top = session.node("top")
    assert top.backing is not None
    assert top.backing.child.name == "mid"
    broken_mid()
    before = content(top)
    assert before[MIB : MIB + 512] == noise("mid", MIB + 512)[:512]


def test_stop_and_resume(session: Session, broken_mid: Callable[[], None]) -> None:
    session.do("block-stream", job_id="s", device="top", on_error="stop")
    session.wait_status("s", "paused")
    info = session.do("query-block-jobs")[0]
    assert (info["io-status"], info["paused"], info["status"]) == ("failed", True, "paused")
    session.do("block-job-resume", device="s")
    session.wait_status("s", "paused", 2)
    assert session.story("s") == ["created", "running", "ERROR", "paused", "running", "ERROR", "paused"]
    broken_mid()
    session.do("block-job-resume", device="s")
    session.wait_status("s", "null")
    assert session.story("s")[-5:] == ["waiting", "pending", "COMPLETED", "concluded", "null"]
    assert session.node("top").backing is None
    assert content(session.node("top"))[MIB : 2 * MIB] == noise("mid", MIB + 512)[:MIB]


def test_a_stopped_job_can_be_cancelled(session: Session, broken_mid: Callable[[], None]) -> None:
    session.do("block-stream", job_id="s", device="top", on_error="stop")
    session.wait_status("s", "paused")
    session.do("job-cancel", id="s")
    session.wait_status("s", "null")
    assert session.story("s")[-5:] == ["running", "aborting", "CANCELLED", "concluded", "null"]


@pytest.mark.parametrize(("policy", "action"), [("enospc", "stop"), ("auto", "stop"), ("report", "report")])
def test_enospc(session: Session, monkeypatch: pytest.MonkeyPatch, policy: str, action: str) -> None:
    _, _, top = three_layers(session)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(top.driver, "begin_write", full)
    session.do("block-stream", job_id="s", device="top", on_error=policy)
    assert session.wait_event("BLOCK_JOB_ERROR")["action"] == action
    if action == "stop":
        session.wait_status("s", "paused")
        assert session.do("query-block-jobs")[0]["io-status"] == "nospace"
        session.do("job-cancel", id="s")
    session.wait_status("s", "null")
