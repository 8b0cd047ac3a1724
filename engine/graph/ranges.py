"""Byte-range locks: overlapping holders take turns, others run side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RangeLock:
    """Exclusive locks on byte ranges; used where a read-modify-write or a copy-on-read must not be interleaved."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: list[tuple[int, int, object]] = []

    @contextmanager
    def hold(self, offset: int, length: int) -> Iterator[None]:
        """Hold [offset, offset + length) bytes; waits for overlapping ones that came before."""
        mine = (offset, offset + length, object())
        with self._condition:
            # Holders and waiters in the order they came: a long range gets its turn among many short ones.
            self._queue.append(mine)
            while self._blocked(mine):
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self._queue.remove(mine)
                if self._queue:
                    self._condition.notify_all()

    def _blocked(self, mine: tuple[int, int, object]) -> bool:
        for other in self._queue:
            if other is mine:
                return False
            if other[0] < mine[1] and mine[0] < other[1]:
                return True
        return False


class Readers:
    """Reads under way, and the wait for those that may have seen the state before a change.

    A reader that begins after the change sees the new state; who made the change waits for the older ones before it
    lets the old state go. Readers never wait.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._reading: list[tuple[int, int, object]] = []

    @contextmanager
    def reading(self, offset: int, length: int) -> Iterator[None]:
        """A read of [offset, offset + length) bytes is under way inside the block."""
        mine = (offset, offset + length, object())
        with self._condition:
            self._reading.append(mine)
        try:
            yield
        finally:
            with self._condition:
                self._reading.remove(mine)
                self._condition.notify_all()

    def wait(self, offset: int, length: int) -> None:
        """Block until every read of a part of the range that is under way now has ended."""
        end = offset + length
        with self._condition:
            older = [mine for mine in self._reading if mine[0] < end and offset < mine[1]]
            while any(mine in self._reading for mine in older):
                self._condition.wait()
