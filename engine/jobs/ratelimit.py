"""How long a job has to wait so that it keeps to its speed."""

from __future__ import annotations

import time
from collections.abc import Callable

SLICE = 0.1
"""Seconds that a late worker may catch up, and that the work of one step should last at most."""


class RateLimit:
    """Spreads work over time: after account(n) the next n bytes are due n/speed seconds later.

    A worker that was held up (a pause, a slow disk) does not get the lost time back beyond one slice, so there are no
    bursts. Not locked: the owner does that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.speed = 0
        self._due = 0.0

    def set_speed(self, speed: int) -> None:
        """Limit to *speed* bytes per second from now on, 0 for no limit. What was done before counts no more."""
        self.speed = speed
        self._due = self._clock()

    def account(self, size: int) -> None:
        """*size* bytes were done."""
        if self.speed:
            self._due = max(self._due, self._clock() - SLICE) + size / self.speed

    def delay(self) -> float:
        """Seconds to wait before more may be done; 0 for none."""
        return max(self._due - self._clock(), 0.0) if self.speed else 0.0

    def step(self, limit: int, smallest: int) -> int:
        """Bytes to do at once: what the speed allows in a slice, a multiple of *smallest*, between that and *limit*."""
        if not self.speed:
            return limit
        allowed = int(self.speed * SLICE)
        return max(min(allowed - allowed % smallest, limit), min(smallest, limit))
