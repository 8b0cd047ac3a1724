"""Limited events, and what a client that does not read costs."""

import asyncio
from collections.abc import Callable
from typing import Any

from engine.monitor import outlet as outlet_module
from engine.monitor.outlet import Outlet
from engine.monitor.qmp.events import RateLimit, RateLimiter


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self._calls.append((self.now + delay, call))

    def pass_to(self, when: float) -> None:
        while self._calls and min(self._calls, key=lambda entry: entry[0])[0] <= when:
            entry = min(self._calls, key=lambda entry: entry[0])
            self._calls.remove(entry)
            self.now = entry[0]
            entry[1]()
        self.now = when


class Limited:
    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[float, Any]] = []
        self.limiter = RateLimiter(
            lambda event: self.sent.append((self.clock.now, event["data"]["n"])),
            self.clock.call_later,
            {"X": RateLimit(1.0), "Y": RateLimit(1.0, ("node-name",))},
        )

    def offer(self, name: str, number: int, node: str = "") -> None:
        self.limiter.offer({"event": name, "data": {"n": number, "node-name": node}})


def test_first_goes_at_once_then_the_latest_of_each_interval() -> None:
    limited = Limited()
    limited.offer("X", 1)
    limited.clock.pass_to(0.2)
    limited.offer("X", 2)
    limited.offer("X", 3)
    assert limited.sent == [(0.0, 1)]
    limited.clock.pass_to(1.5)
    assert limited.sent == [(0.0, 1), (1.0, 3)]
    limited.offer("X", 4)  # the second interval has begun with 3
    limited.clock.pass_to(5.0)
    assert limited.sent == [(0.0, 1), (1.0, 3), (2.0, 4)]
    limited.offer("X", 5)  # nothing was held at 3.0, so the limit was forgotten
    assert limited.sent[-1] == (5.0, 5)


def test_keys_are_limited_by_themselves() -> None:
    limited = Limited()
    limited.offer("Y", 1, "a")
    limited.offer("Y", 2, "b")
    limited.offer("Y", 3, "a")
    limited.offer("X", 4)
    assert [number for _, number in limited.sent] == [1, 2, 4]
    limited.clock.pass_to(1.0)
    assert limited.sent[-1] == (1.0, 3)


def test_other_events_are_not_limited() -> None:
    limited = Limited()
    for number in range(5):
        limited.offer("Z", number)
    assert [number for _, number in limited.sent] == [0, 1, 2, 3, 4]


class Written(asyncio.Transport):
    """A transport that remembers what was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))


def make_outlet() -> tuple[Outlet, Written]:
    outlet = Outlet(lambda count: b"<lost %d>" % count)
    transport = Written()
    outlet.connect(transport)
    return outlet, transport


async def test_everything_of_one_turn_goes_in_one_write() -> None:
    outlet, transport = make_outlet()
    outlet.send(b"a")
    outlet.offer(b"b")
    outlet.send(b"c")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.writes == [b"abc"]


async def test_nothing_is_written_to_a_client_that_does_not_read() -> None:
    outlet, transport = make_outlet()
    outlet.pause()
    outlet.offer(b"event")
    outlet.send(b"reply")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.writes == []
    outlet.resume()
    assert transport.writes == [b"eventreply"]


async def test_too_many_events_are_dropped_with_a_notice_in_their_place(monkeypatch: Any) -> None:
    monkeypatch.setattr(outlet_module, "EVENT_LIMIT", 3)
    outlet, transport = make_outlet()
    outlet.pause()
    outlet.offer(b"1")
    outlet.send(b"R")
    for number in (b"2", b"3", b"4", b"5"):
        outlet.offer(number)
    outlet.resume()
    assert transport.writes == [b"R<lost 3>45"]
    outlet.offer(b"6")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.writes[1:] == [b"6"]
