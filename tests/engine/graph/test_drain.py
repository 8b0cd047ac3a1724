from __future__ import annotations

import threading

from engine.graph.drain import Door, drained
from engine.graph.permissions import Perm
from engine.graph.ranges import RangeLock
from tests.graphs import Bench


def test_closed_door_holds_new_requests_and_waits_for_running_ones() -> None:
    door = Door()
    door.enter()
    entered = threading.Event()
    door.close()

    def late() -> None:
        with door:
            entered.set()

    thread = threading.Thread(target=late)
    thread.start()
    idle = threading.Event()

    def wait() -> None:
        door.wait_idle()
        idle.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not idle.is_set()
    door.leave()
    waiter.join(5)
    assert idle.is_set()
    assert not entered.is_set()
    door.open()
    thread.join(5)
    assert entered.is_set()


def test_drain_reaches_users_through_layers_and_lets_them_go_on(bench: Bench) -> None:
    node = bench.raw("r")
    assert node.file is not None
    backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ, Perm.ALL)
    done = threading.Event()

    def read() -> None:
        backend.read(0, memoryview(bytearray(512)))
        done.set()

    with drained([node.file.child]):
        thread = threading.Thread(target=read)
        thread.start()
        assert backend.door.closed
        assert not done.wait(0.05)
    thread.join(5)
    assert done.is_set()
    assert not backend.door.closed


def test_user_attached_to_a_drained_node_starts_drained(bench: Bench) -> None:
    node = bench.raw("r")
    with drained([node]):
        backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ, Perm.ALL)
        assert backend.door.closed
    assert not backend.door.closed


def test_user_removed_while_drained_is_open_again(bench: Bench) -> None:
    node = bench.raw("r")
    backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ, Perm.ALL)
    with drained([node]):
        bench.graph.remove_backend(backend)
    assert not backend.door.closed
    assert node.quiesce_count == 0


def test_overlapping_ranges_take_turns_and_others_do_not() -> None:
    lock = RangeLock()
    order: list[str] = []
    with lock.hold(0, 100):
        with lock.hold(100, 10):
            order.append("beside")

        def overlapping() -> None:
            with lock.hold(50, 10):
                order.append("after")

        thread = threading.Thread(target=overlapping)
        thread.start()
        order.append("holder")
    thread.join(5)
    assert order == ["beside", "holder", "after"]
