"""Threads that copy beside whoever has much to copy, and the buffers of all who copy."""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

BUFFER: Final = 1 << 20
"""Bytes moved at once. The processor's caches still hold what a read of so much brought, and servers get the memory for
it without asking the system."""
_MOST_HELPERS: Final = 3
_REMOTE_HELPERS: Final = 30

_T = TypeVar("_T")


class _Buffers(threading.local):
    """Buffers of one thread that nobody uses. A write that a copy makes may make another copy below it (a filter)."""

    def __init__(self) -> None:
        self.free: list[memoryview] = []


_own = _Buffers()


@contextmanager
def scratch() -> Iterator[memoryview]:
    """BUFFER bytes for the calling thread; they come from the last one that let go of its."""
    buffer = _own.free.pop() if _own.free else memoryview(mmap.mmap(-1, BUFFER))
    try:
        yield buffer
    finally:
        _own.free.append(buffer)


class Helpers:
    """At most *most* threads, *at_once* of them for one caller; those that are busy are not waited for."""

    def __init__(self, most: int, at_once: int = 1) -> None:
        self._most = most
        self._at_once = at_once
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def share(self, todo: deque[_T], work: Callable[[_T], None]) -> None:
        """Call *work* for everything in *todo*, here and in threads that are free; an error ends it, and is raised.

        When it returns or raises, nobody works any more.
        """
        helping: list[Future[None]] = []
        try:
            while len(helping) < min(self._at_once, len(todo) - 1) and self._free.acquire(blocking=False):
                started = self._start(todo, work)
                if started is None:
                    break
                helping.append(started)
            _work(todo, work)
        finally:
            failed = [exc for each in helping if (exc := each.exception()) is not None]
        if failed:
            raise failed[0]

    def _start(self, todo: deque[_T], work: Callable[[_T], None]) -> Future[None] | None:
        try:
            with self._lock:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(self._most, "copy")
            return self._threads.submit(self._help, todo, work)
        except RuntimeError:
            # There are no more threads to be had, or the program is about to end.
            self._free.release()
            return None

    def _help(self, todo: deque[_T], work: Callable[[_T], None]) -> None:
        try:
            _work(todo, work)
        finally:
            self._free.release()


def _work(todo: deque[_T], work: Callable[[_T], None]) -> None:
    try:
        while True:
            try:
                each = todo.popleft()
            except IndexError:
                return
            work(each)
    except BaseException:
        todo.clear()
        raise


host = Helpers(min(len(os.sched_getaffinity(0)) - 1, _MOST_HELPERS))
"""For files of the host: more than there are processors gain nothing."""
remote = Helpers(_REMOTE_HELPERS, at_once=15)
"""For what waits for others: the next piece is on its way while one is written."""
