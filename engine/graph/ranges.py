"""Byte-range locks: overlapping holders take turns, others run side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RangeLock:
    """Exclusive locks on byte ranges; used where a read-modify-write or a copy-on-read must not be interleaved."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._held: list[tuple[int, int]] = []

    @contextmanager
    def hold(self, offset: int, length: int) -> Iterator[None]:
        """Hold [offset, offset + length) bytes; waits for overlapping holders."""
        mine = (offset, offset + length)
        with self._condition:
            while any(start < mine[1] and mine[0] < end for start, end in self._held):
                self._condition.wait()
            self._held.append(mine)
        try:
            yield
        finally:
            with self._condition:
                self._held.remove(mine)
                self._condition.notify_all()
