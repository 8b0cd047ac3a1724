"""iothreads: real threads, and which nodes lie in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.permissions import Perm
from tests.engine.objects.conftest import Store

PATIENCE = 20.0


def test_work_runs_in_the_thread_and_its_workers(store: Store) -> None:
    thread = store.make("iothread", "i", thread_pool_max=2)

    async def on_the_loop() -> tuple[int, str]:
        return threading.get_native_id(), threading.current_thread().name

    assert thread.run(on_the_loop()).result(PATIENCE) == (thread.thread_id, "IO i")
    assert thread.thread_id != threading.get_native_id()
    barrier = threading.Barrier(2)
    both = [thread.submit(barrier.wait, PATIENCE) for _ in range(2)]
    assert sorted(future.result(PATIENCE) for future in both) == [0, 1]
    assert thread.submit(lambda: threading.current_thread().name).result(PATIENCE).startswith("worker i")


def test_as_many_workers_as_asked_for(store: Store) -> None:
    before = set(threading.enumerate())
    thread = store.make("iothread", "i", thread_pool_min=3)
    new = set(threading.enumerate()) - before
    assert len([found for found in new if found.name.startswith("worker i")]) == 3
    with pytest.raises(GenericError, match="bad thread-pool-min/thread-pool-max values"):
        thread.set_property("thread-pool-max", 2)
    assert thread.get_property("thread-pool-max") == 64
    thread.set_property("thread-pool-min", 1)
    thread.set_property("thread-pool-max", 1)
    # One worker: what comes second waits for the first.
    order: list[int] = []
    gate = threading.Event()
    first = thread.submit(lambda: (gate.wait(PATIENCE), order.append(1)))
    second = thread.submit(lambda: order.append(2))
    gate.set()
    first.result(PATIENCE)
    second.result(PATIENCE)
    assert order == [1, 2]


def test_the_thread_ends_with_the_object(store: Store) -> None:
    thread = store.make("iothread", "i")
    store.delete("i")
    assert thread.loop.is_closed()
    assert "IO i" not in {found.name for found in threading.enumerate()}


class Session:
    def __init__(self) -> None:
        self.engine = Engine()
        for name in ("i", "j"):
            self.do("object-add", **{"qom-type": "iothread"}, id=name)
        self.do("blockdev-add", driver="null-co", node_name="below")
        self.do("blockdev-add", driver="raw", node_name="mid", file="below")
        self.do("blockdev-add", driver="raw", node_name="top", file="mid")
        self.do("blockdev-add", driver="null-co", node_name="alone")

    def do(self, command: str, **arguments: Any) -> Any:
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.engine.submit(command, wire).result(PATIENCE)

    def move(self, node: str, iothread: str | None, **more: Any) -> None:
        self.do("x-blockdev-set-iothread", node_name=node, iothread=iothread, **more)

    def places(self) -> dict[str, str | None]:
        nodes = self.engine.graph.nodes.values()
        return {node.name: node.iothread.id if node.iothread is not None else None for node in nodes}


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.engine.close()


def test_linked_nodes_move_together(session: Session) -> None:
    session.move("mid", "i")
    assert session.places() == {"below": "i", "mid": "i", "top": "i", "alone": None}
    session.move("top", "j")
    session.move("alone", "i")
    assert session.places() == {"below": "j", "mid": "j", "top": "j", "alone": "i"}
    session.move("below", None)
    assert set(session.places().values()) == {None, "i"}


def test_nodes_that_become_linked_share_the_parents_thread(session: Session, tmp_path: Path) -> None:
    session.move("alone", "i")
    session.do("blockdev-add", driver="raw", node_name="over", file="alone")
    assert session.places()["alone"] is None
    session.move("top", "j")
    arguments = {"node_name": "mid", "snapshot_node_name": "new", "snapshot_file": str(tmp_path / "new.qcow2")}
    session.do("blockdev-snapshot-sync", **arguments)
    places = session.places()
    # The new node comes from the main loop, and takes what it is put on there.
    assert {places[name] for name in ("new", "top", "mid", "below")} == {places["top"]}


def test_an_iothread_is_in_use_by_its_nodes(session: Session) -> None:
    session.move("top", "i")
    session.move("alone", "i")
    session.do("blockdev-del", node_name="alone")
    with pytest.raises(GenericError, match="object 'i' is in use, can not be deleted"):
        session.do("object-del", id="i")
    session.move("top", None)
    session.do("object-del", id="i")


def test_users_that_can_not_follow(session: Session) -> None:
    graph = session.engine.graph

    def attach() -> None:
        graph.add_backend("export", "", graph.node("top"), Perm.NONE, Perm.ALL)

    session.engine.control.call(attach)
    with pytest.raises(GenericError, match="Node top is associated with a BlockBackend and could be in use"):
        session.move("top", "i")
    session.move("below", "i")
    session.move("top", "j", force=True)
    session.do("device_add", driver="virtio-blk", id="v", drive="top", share_rw=True)
    with pytest.raises(GenericError, match="Cannot change iothread of active block backend"):
        session.move("below", "i", force=True)
    # A device takes its node along to where it works itself.
    assert session.places()["top"] is None


def test_query_iothreads(session: Session) -> None:
    first, second = session.do("query-iothreads")
    assert (first["id"], second["id"]) == ("i", "j")
    assert first["poll-max-ns"] == 32768
    threads = {found.name: found.native_id for found in threading.enumerate()}
    assert first["thread-id"] == threads["IO i"]
