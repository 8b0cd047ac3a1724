"""How a connection waits for its client: busily as long as that pays, and no longer."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine.exports.nbd import polling
from engine.exports.nbd.polling import BusyPoll

SHORT, LONG = 10_000, 1_000_000_000


class FakePoll:
    """Stands for select.poll(): data come *after* nanoseconds, and every look at the socket takes 500."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.after = 0
        self.busy = self.slept = 0

    def look(self) -> None:
        self.clock.now += 500

    def register(self, sock: socket.socket, event: int) -> None:
        self.arrives = 0

    def poll(self, timeout: int | None) -> list[int]:
        if timeout == 0:
            self.busy += 1
            self.look()
            return [1] if self.clock.now >= self.arrives else []
        self.slept += 1
        self.clock.now = max(self.clock.now, self.arrives)
        return [1]


class Clock:
    now = 0


class Waiting:
    """A BusyPoll whose clock and socket are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: int) -> None:
        self.clock = Clock()
        self.poll = FakePoll(self.clock)
        given = SimpleNamespace(poll_max_ns=None, poll_grow=None, poll_shrink=None)
        vars(given).update(options)
        iothread = SimpleNamespace(options=given) if options else None
        backend: Any = SimpleNamespace(node=SimpleNamespace(iothread=iothread))
        monkeypatch.setattr(select, "poll", lambda: self.poll)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.clock.now)
        sock, other = socket.socketpair()
        with sock, other:
            self.polling = BusyPoll(sock, backend)
        # Nobody else has been there for long.
        polling._last.poll, polling._last.since = self.polling._poll, -LONG

    def wait(self, after: int) -> bool:
        """Wait for data that come *after* so many nanoseconds; whether it slept."""
        self.poll.arrives = self.clock.now + after
        before = self.poll.slept
        self.polling.wait()
        assert self.clock.now >= self.poll.arrives
        return self.poll.slept > before


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(polling, "_has_processors", lambda: True)
    yield
    polling._last.poll = None


def test_a_client_that_answers_at_once_is_waited_for_busily(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch)
    assert [waiting.wait(SHORT) for _ in range(5)] == [True, True, True, False, False]


def test_an_idle_client_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch)
    for _ in range(5):
        waiting.wait(SHORT)
    assert waiting.wait(LONG)
    before = waiting.poll.busy
    assert [waiting.wait(LONG) for _ in range(5)] == [True] * 5
    assert waiting.poll.busy == before


def test_it_is_busy_for_no_longer_than_poll_max_ns(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, poll_max_ns=20_000)
    for _ in range(6):
        waiting.wait(19_000)
    before = waiting.poll.busy
    assert waiting.wait(LONG)
    assert 40 <= waiting.poll.busy - before <= 42  # 500 ns each


def test_poll_max_ns_of_0_means_never(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, poll_max_ns=0)
    assert all(waiting.wait(SHORT) for _ in range(10))
    assert not waiting.poll.busy


def test_poll_grow_and_poll_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, poll_max_ns=64_000, poll_grow=16, poll_shrink=2)
    assert [waiting.wait(SHORT) for _ in range(3)] == [True, True, False]
    waiting.wait(LONG)  # half of 64,000 is left, which is enough
    assert not waiting.wait(SHORT)


def test_one_processor_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_has_processors", lambda: False)
    waiting = Waiting(monkeypatch)
    assert all(waiting.wait(SHORT) for _ in range(10))


def another(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Waiting:
    """A second connection, of the same time."""
    kept = polling._last.poll, polling._last.since
    other = Waiting(monkeypatch)
    other.clock = other.poll.clock = clock
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock.now)
    polling._last.poll, polling._last.since = kept
    return other


def test_of_two_connections_at_work_none_waits_busily(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take the interpreter, or their clients' processor, from one another."""
    first = Waiting(monkeypatch)
    second = another(monkeypatch, first.clock)
    for _ in range(20):
        assert first.wait(SHORT)
        assert second.wait(SHORT)
    assert (first.poll.busy, second.poll.busy) == (0, 0)
    # The other has nothing more to do.
    slept = [first.wait(SHORT) for _ in range(300)]
    assert slept[:90] == [True] * 90
    assert not any(slept[120:])


@pytest.mark.parametrize("work", ["wait", "pass_by"])
def test_a_busy_one_stops_when_another_gets_to_work(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    first = Waiting(monkeypatch)
    second = another(monkeypatch, first.clock)
    for _ in range(9):
        first.wait(90_000)
    before = first.poll.busy
    look = first.poll.look

    def interrupted() -> None:
        look()
        if first.poll.busy == before + 5:
            second.poll.arrives = first.clock.now
            getattr(second.polling, work)()

    monkeypatch.setattr(first.poll, "look", interrupted)
    assert first.wait(90_000)
    assert first.poll.busy == before + 5
