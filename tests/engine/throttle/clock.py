"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

MS = 1_000_000
SECOND = 1000 * MS
PATIENCE = 20.0
"""Seconds of real time after which a test gives up."""


class FakeClock:
    """Time for throttle groups. until() waits, in real time, for the threads of the test to get somewhere."""

    def __init__(self) -> None:
        self.time = 0
        self.waiting: list[int | None] = []
        """What those who wait now asked for: nanoseconds, or None for a notice."""
        self._conditions: list[threading.Condition] = []
        self._changed = threading.Condition()

    def now(self) -> int:
        return self.time

    def wait(self, condition: threading.Condition, delay: int | None) -> None:
        with self._changed:
            self.waiting.append(delay)
            self._conditions.append(condition)
            self._changed.notify_all()
        condition.wait()
        with self._changed:
            index = self._conditions.index(condition)
            del self._conditions[index], self.waiting[index]
            self._changed.notify_all()

    def advance(self, nanoseconds: int) -> None:
        """Let time pass and wake whoever waits for it."""
        with self._changed:
            self.time += nanoseconds
            timed = [c for c, delay in zip(self._conditions, self.waiting, strict=True) if delay is not None]
        for condition in timed:
            with condition:
                condition.notify_all()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so that comes about by threads that wait or go on here."""
        with self._changed:
            assert self._changed.wait_for(true, PATIENCE), f"not so; waiting: {self.waiting}"

    def tell(self) -> None:
        """Something changed that until() may wait for."""
        with self._changed:
            self._changed.notify_all()


class Requests:
    """Requests in threads of their own; ``done`` has the labels of those let through, in order."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.done: list[str] = []
        self.threads: list[threading.Thread] = []

    def start(self, label: str, request: Callable[[], None]) -> None:
        """Start a request; returns when it waits or is done."""
        known = len(self.clock.waiting) + len(self.done)

        def run() -> None:
            request()
            self.done.append(label)
            self.clock.tell()

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()
        self.clock.until(lambda: len(self.clock.waiting) + len(self.done) > known)

    def settle(self, done: int) -> None:
        """Wait until *done* requests are done and all others wait."""
        self.clock.until(lambda: len(self.done) == done and len(self.clock.waiting) == len(self.threads) - done)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
