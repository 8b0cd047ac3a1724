"""The write threshold: one event for the first write past it, whoever writes and however many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from engine.graph.node import Node
from engine.graph.threshold import set_write_threshold, write_threshold
from tests.graphs import Bench

SIZE = 1 << 20


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, node: Node, over: int, limit: int) -> None:
        self.seen.append((node.name, over, limit))


def test_the_first_write_past_it(tmp_path: Path) -> None:
    node, told = Bench(tmp_path).raw("n", bytes(SIZE)), Told()
    set_write_threshold(node, 4096, told)
    node.write(0, memoryview(bytes(4096)))
    node.read(0, memoryview(bytearray(SIZE)))
    assert (told.seen, write_threshold(node)) == ([], 4096)
    node.write(4000, memoryview(bytes(100)))
    assert (told.seen, write_threshold(node)) == ([("n", 4, 4096)], 0)
    node.write(8000, memoryview(bytes(100)))
    assert len(told.seen) == 1
    assert not node.trackers


def test_zeros_and_discards_count(tmp_path: Path) -> None:
    node, told = Bench(tmp_path).raw("n", bytes(SIZE), discard="unmap"), Told()
    set_write_threshold(node, 4096, told)
    node.write_zeroes(0, 8192)
    set_write_threshold(node, 4096, told)
    node.discard(8192, 4096)
    assert [over for _, over, _ in told.seen] == [4096, 8192]


def test_a_new_threshold_takes_the_place_of_the_old(tmp_path: Path) -> None:
    node, told = Bench(tmp_path).raw("n", bytes(SIZE)), Told()
    set_write_threshold(node, 1, told)
    set_write_threshold(node, 8192, told)
    node.write(0, memoryview(bytes(4096)))
    assert not told.seen
    set_write_threshold(node, 0, told)
    node.write(0, memoryview(bytes(SIZE)))
    assert not told.seen
    assert (write_threshold(node), node.trackers) == (0, ())


def test_one_event_until_the_control_plane_has_noticed(tmp_path: Path) -> None:
    posted: list[Callable[[], None]] = []

    class Later:
        def post(self, function: Callable[[], None]) -> None:
            posted.append(function)

    bench, told = Bench(tmp_path), Told()
    node = bench.raw("n", bytes(SIZE))
    bench.graph.control = Later()
    set_write_threshold(node, 4096, told)
    for _ in range(3):
        node.write(0, memoryview(bytes(8192)))
    assert (len(told.seen), write_threshold(node)) == (1, 0)
    for function in posted:
        function()
    assert not node.trackers


def test_many_writers_one_event(tmp_path: Path) -> None:
    node, told = Bench(tmp_path).raw("n", bytes(SIZE)), Told()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        node.write(4096, memoryview(bytes(4096)))

    for _ in range(20):
        set_write_threshold(node, 100, told)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told.seen == [("n", 8092, 100)] * 20
