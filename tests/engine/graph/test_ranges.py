"""Byte-range locks: who overlaps takes turns in the order they came."""

import threading

from engine.graph.ranges import RangeLock


class Holder(threading.Thread):
    """Holds a range from when it gets it until it is told to let go."""

    def __init__(self, lock: RangeLock, offset: int, length: int) -> None:
        super().__init__(daemon=True)
        self._lock, self._range = lock, (offset, length)
        self.has, self.let_go = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._lock.hold(*self._range):
            self.has.set()
            self.let_go.wait(20)

    def end(self) -> None:
        self.let_go.set()
        self.join(20)
        assert not self.is_alive()


def test_only_who_overlaps_waits() -> None:
    lock = RangeLock()
    first = Holder(lock, 0, 100)
    assert first.has.wait(20)
    beside, inside = Holder(lock, 100, 10), Holder(lock, 99, 1)
    assert beside.has.wait(20)
    assert not inside.has.wait(0.05)
    first.end()
    assert inside.has.wait(20)
    beside.end()
    inside.end()


def test_a_long_range_gets_its_turn() -> None:
    """Short ones that come later don't overtake it, or it might wait for ever."""
    lock = RangeLock()
    first = Holder(lock, 0, 10)
    assert first.has.wait(20)
    long = Holder(lock, 0, 1000)
    assert not long.has.wait(0.05)
    late = Holder(lock, 500, 10)
    assert not late.has.wait(0.05)
    first.end()
    assert long.has.wait(20)
    assert not late.has.is_set()
    long.end()
    assert late.has.wait(20)
    late.end()
