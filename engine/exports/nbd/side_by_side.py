"""Requests of one connection served side by side, where each waits for a disk or a throttle.

From the host's cache a request takes some microseconds, and nothing is faster than one after the other. Where they have
to wait, they wait together: up to sixteen, as in QEMU. Which it is shows in how long they take, and is tried again and
again. The protocol leaves the order of requests that are on the way to the server.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

Span = tuple[int, int]
"""Where a request lies in the in buffer: first byte, and the one behind its last."""
Serve = Callable[[Span], bytes]
"""Serves a request and returns the answer."""

MOST: Final = 16
_SLOW: Final = 100e-6
"""Seconds that a request must take by itself to make it worth handing over."""
_SIGN: Final = 8
"""Slow batches in a row that are a sign: for one or two it may be other programs that the processor was waited for."""
_GAIN: Final = 0.8
_ROUNDS: Final = 64
"""After so many rounds side by side, one after the other is tried again: what was slow may be in the cache now."""
_PAUSE, _LONGEST_PAUSE = 8, 1024
"""Batches until side by side is tried again when it was no faster; twice as many every time."""


class SideBySide:
    """Decides for one connection, and has the threads. Its methods are called by the connection's thread alone."""

    def __init__(self) -> None:
        self._pace = 0.0
        """Seconds that a request takes by itself."""
        self._slow = 0
        """How many batches in a row were slow."""
        self._rounds = 0
        self._pause, self._next_pause = 0, _PAUSE
        self._asked: queue.SimpleQueue[Span | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def alone(self, seconds: float, number: int) -> None:
        """Learn how long *number* short requests took one after the other."""
        self._pace = pace = seconds / number
        self._slow = self._slow + 1 if pace > _SLOW else 0
        self._rounds = 0

    @property
    def wanted(self) -> bool:
        """Whether to serve what comes next side by side."""
        if self._slow < _SIGN:
            return False
        if self._pause:
            self._pause -= 1
            return False
        return self._rounds < _ROUNDS

    def serve(self, spans: Sequence[Span], make: Callable[[], Serve]) -> Iterator[bytes]:
        """The answers, as they get ready. make: makes what a thread serves with. Errors: what serving raises."""
        begun = time.monotonic()
        while len(self._threads) < min(len(spans), MOST) and self._start(make):
            pass
        for span in spans:
            self._asked.put(span)
        failed: BaseException | None = None
        left = len(spans)
        while left:
            ready = [self._done.get()]
            while not self._done.empty():
                ready.append(self._done.get())
            left -= len(ready)
            answers = [each for each in ready if isinstance(each, bytes)]
            failed = next((each for each in ready if isinstance(each, BaseException)), failed)
            yield b"".join(answers)
        if failed is not None:
            raise failed
        self._learn((time.monotonic() - begun) / len(spans))

    def _learn(self, pace: float) -> None:
        self._rounds += 1
        if pace < self._pace * _GAIN:
            self._next_pause = _PAUSE
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)

    def _start(self, make: Callable[[], Serve]) -> bool:
        thread = threading.Thread(target=self._work, args=(make(),), name="nbd request", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: those that there are do it
            if not self._threads:
                raise
            return False
        self._threads.append(thread)
        return True

    def _work(self, serve: Serve) -> None:
        while (span := self._asked.get()) is not None:
            try:
                self._done.put(serve(span))
            except BaseException as exc:
                self._done.put(exc)

    def close(self) -> None:
        """End the threads; returns when the last request has ended."""
        for _ in self._threads:
            self._asked.put(None)
        while self._threads:
            self._threads.pop().join()
