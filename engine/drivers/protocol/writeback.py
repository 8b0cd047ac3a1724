"""Having the kernel write a file's cached data to the disk early, beside whoever writes them."""

from __future__ import annotations

import contextlib
import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from engine.drivers.protocol import hostfile


class FileWriteback:
    """What one file has going on. start() in any thread; settle() before the descriptor is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Future[None] | None = None

    def start(self, fd: int) -> None:
        """Begin, unless that is still going on; a hint: errors show at the next flush.

        In a thread of its own: where data lie scattered, merely to begin takes longer than to copy them.
        """
        with self._lock:
            if self._running is None or self._running.done():
                # The program may be about to end: it starts no threads then.
                with contextlib.suppress(RuntimeError):
                    self._running = _thread().submit(hostfile.start_writeback, fd)

    def settle(self) -> None:
        """Return when nobody uses the descriptor any more. A lock of the file lasts as long as a call that uses it."""
        with self._lock:
            running, self._running = self._running, None
            if running is not None and not running.cancel():
                running.exception()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "writeback")
