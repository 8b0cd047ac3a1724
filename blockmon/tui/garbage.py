"""
Python's search for garbage, kept out of the way of keys.

A full search looks at every object there is, which with a thousand nodes and a long log takes a tenth of a second, and
it comes at any moment. So what stands after the start is never looked at again, and full searches are made when nobody
has pressed a key for a while.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

EVERY = 30.0
"""Seconds between two full searches at least."""
AT_REST = 2.0
"""Seconds without a key after which one is made."""
OVERDUE = 300.0
"""Seconds after which one is made even so."""
_THRESHOLDS = (10_000, 10, 1_000_000)


class Collector:
    """Decides when there is a full search."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._before: tuple[int, int, int] | None = None

    def begin(self) -> None:
        """From now on; what there is now stays."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        self._last = self._clock()

    def look(self, last_key: float) -> bool:
        """Search if it is time; *last_key* is when a key was pressed. Whether it was."""
        now = self._clock()
        if self._last is None or now - self._last < EVERY:
            return False
        if now - last_key < AT_REST and now - self._last < OVERDUE:
            return False
        gc.collect()
        self._last = self._clock()
        return True

    def end(self) -> None:
        """Leave it to Python again."""
        if self._before is not None:
            gc.unfreeze()
            gc.set_threshold(*self._before)
            self._before = self._last = None
