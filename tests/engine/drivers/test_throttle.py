"""throttle nodes: what waits and what doesn't, drains, reopening with another group. Time is the test's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.permissions import Perm
from engine.throttle.group import ThrottleGroups
from tests.engine.throttle.clock import MS, PATIENCE, SECOND, FakeClock, Requests

KIB = 1024


class Session:
    """An engine with a throttle node ``t`` over a raw file, in the group ``g`` of 4 KiB a second both ways."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = Engine()
        self.engine.objects.throttle_groups = ThrottleGroups(self.clock)
        self.path = folder / "disk.raw"
        self.path.write_bytes(bytes(64 * KIB))
        self.do("object-add", **{"qom-type": "throttle-group"}, id="g", limits={"bps-total": 4096})
        file = {"driver": "file", "filename": str(self.path), "node-name": "f", "discard": "unmap"}
        self.do("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file=file, discard="unmap")

    def do(self, command: str, **arguments: Any) -> Any:
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.engine.submit(command, wire).result(PATIENCE)

    def user(self, name: str = "t") -> BlockBackend:
        graph = self.engine.graph
        found: BlockBackend = self.engine.control.call(
            lambda: graph.add_backend("user", "", graph.node(name), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
        )
        return found


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.engine.close()


def data(size: int, byte: int = 0x5A) -> memoryview:
    return memoryview(bytes([byte]) * size)


def test_every_kind_of_request_that_moves_data_waits(session: Session) -> None:
    user = session.user()
    buffer = memoryview(bytearray(4096))
    for what in (
        lambda: user.read(0, buffer),
        lambda: user.write(0, data(4096)),
        lambda: user.write_zeroes(0, 4096),
        lambda: user.discard(0, 4096),
    ):
        requests = Requests(session.clock)
        user.write(0, data(4096))
        requests.start("it", what)
        assert session.clock.waiting == [900 * MS]
        session.clock.advance(900 * MS)
        requests.settle(1)
        requests.join()
        session.clock.advance(2 * SECOND)


def test_flushes_and_questions_do_not_wait(session: Session) -> None:
    user = session.user()
    user.write(0, data(16 * KIB))
    user.flush()
    user.block_status(0, 4096)
    assert session.path.read_bytes()[: 16 * KIB] == bytes(data(16 * KIB))


def test_a_drain_of_the_node_lets_what_waits_through(session: Session) -> None:
    user = session.user()
    user.write(0, data(8 * KIB))
    requests = Requests(session.clock)
    requests.start("write", lambda: user.write(0, data(4, 1)))

    def drain() -> None:
        with drained([session.engine.graph.node("t")]):
            assert session.path.read_bytes()[:4] == b"\1\1\1\1"

    session.engine.control.call(drain)
    requests.join()
    requests.start("again", lambda: user.write(0, data(4, 2)))
    # A tenth of a second is free; what the drain let through counts.
    assert session.clock.waiting == [round((8 * KIB + 4 - 409.6) * SECOND / 4096)]
    session.clock.advance(9 * SECOND)
    requests.join()


def test_a_drain_above_the_node_does_not_wait_for_the_limits_either(session: Session) -> None:
    session.do("blockdev-add", driver="raw", node_name="r", file="t")
    user = session.user("r")
    user.write(0, data(8 * KIB))
    requests = Requests(session.clock)
    requests.start("write", lambda: user.write(0, data(4, 1)))
    session.do("blockdev-snapshot-sync", node_name="r", snapshot_node_name="s", snapshot_file=f"{session.path}.qcow2")
    requests.join()


def test_reopening_may_change_the_group(session: Session) -> None:
    user = session.user()
    session.do("object-add", **{"qom-type": "throttle-group"}, id="h", limits={"bps-total": 8192})
    options = {"driver": "throttle", "node-name": "t", "file": "f", "discard": "unmap"}
    with pytest.raises(GenericError, match="Throttle group 'x' does not exist"):
        session.do("blockdev-reopen", options=[{**options, "throttle-group": "x"}])
    with pytest.raises(GenericError, match="object 'g' is in use, can not be deleted"):
        session.do("object-del", id="g")
    session.do("blockdev-reopen", options=[{**options, "throttle-group": "h"}])
    session.do("object-del", id="g")
    user.write(0, data(8 * KIB))
    requests = Requests(session.clock)
    requests.start("write", lambda: user.write(0, data(1)))
    assert session.clock.waiting == [900 * MS]
    session.clock.advance(900 * MS)
    requests.join()


def test_two_nodes_of_a_group_share_its_limits(session: Session) -> None:
    session.do("blockdev-add", driver="throttle", node_name="u", throttle_group="g", file={"driver": "null-co"})
    one, other = session.user("t"), session.user("u")
    one.write(0, data(4096))
    requests = Requests(session.clock)
    requests.start("other", lambda: other.read(0, memoryview(bytearray(1))))
    assert session.clock.waiting == [900 * MS]
    session.do("qom-set", path="g", property="limits", value={"bps-total": 0})
    requests.join()


def test_the_engine_ends_without_waiting_for_limits(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.do("x-blockmon-guest-add", id="d", node_name="t", iops=1000, request_size=64 * KIB)
    session.clock.until(lambda: len(session.clock.waiting) == 1)
    session.engine.close()


def test_a_guest_goes_without_waiting_for_limits(session: Session) -> None:
    session.do("x-blockmon-guest-add", id="d", node_name="t", iops=1000, request_size=64 * KIB)
    session.clock.until(lambda: len(session.clock.waiting) == 1)
    session.do("x-blockmon-guest-del", id="d")
    assert session.clock.waiting == []


def test_data_is_not_copied_past_the_limits_by_a_job(session: Session) -> None:
    session.user().write(0, data(64 * KIB))
    session.do("blockdev-add", driver="null-co", node_name="target", size=64 * KIB)
    session.do("blockdev-backup", job_id="j", device="t", target="target", sync="full")
    session.clock.until(lambda: len(session.clock.waiting) > 0)
    session.do("qom-set", path="g", property="limits", value={"bps-total": 0})


def test_a_drain_of_a_jobs_target_does_not_wait_for_the_source(session: Session) -> None:
    session.user().write(0, data(64 * KIB))
    session.do("blockdev-add", driver="null-co", node_name="target", size=64 * KIB)
    session.do("blockdev-mirror", job_id="j", device="t", target="target", sync="full")
    session.clock.until(lambda: len(session.clock.waiting) > 0)
    session.do("object-add", **{"qom-type": "iothread"}, id="i")
    session.do("x-blockdev-set-iothread", node_name="target", iothread="i", force=True)
    # What the job links goes together.
    places = {name: node.iothread for name, node in session.engine.graph.nodes.items()}
    assert places["t"] is places["f"] is places["target"] is session.engine.objects.find("i")
