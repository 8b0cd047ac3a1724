"""Events on their way to the clients: some are limited to one a second, all are encoded once for everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from engine.qapi.json_stream import dumps

if TYPE_CHECKING:
    from engine.engine import Engine

Event = dict[str, Any]


class RateLimit(NamedTuple):
    """How often an event may be sent. interval: seconds. key: data members; each of their values counts for itself."""

    interval: float
    key: tuple[str, ...] = ()


RATE_LIMITS: dict[str, RateLimit] = {
    "QUORUM_REPORT_BAD": RateLimit(1.0, ("node-name",)),
    "QUORUM_FAILURE": RateLimit(1.0),
    "VSERPORT_CHANGE": RateLimit(1.0, ("id",)),
}
"""The events of a block engine that QEMU 7.2's monitor limits (monitor_qapi_event_conf)."""


class RateLimiter:
    """Lets an event of a kind through at once, and then the latest one of each interval. Control plane only."""

    def __init__(
        self,
        send: Callable[[Event], None],
        call_later: Callable[[float, Callable[[], None]], Any],
        limits: dict[str, RateLimit] | None = None,
    ) -> None:
        self._send = send
        self._call_later = call_later
        self._limits = RATE_LIMITS if limits is None else limits
        self._held: dict[tuple[str, ...], Event | None] = {}

    def offer(self, event: Event) -> None:
        """Send *event* now, or keep it as the latest of its kind."""
        name = event["event"]
        limit = self._limits.get(name)
        if limit is None:
            self._send(event)
            return
        data = event.get("data", {})
        key = (name, *(str(data.get(member)) for member in limit.key))
        if key in self._held:
            self._held[key] = event
        else:
            self._send(event)
            self._start(key, limit.interval)

    def _start(self, key: tuple[str, ...], interval: float) -> None:
        self._held[key] = None
        self._call_later(interval, lambda: self._expire(key, interval))

    def _expire(self, key: tuple[str, ...], interval: float) -> None:
        event = self._held.pop(key)
        if event is not None:
            self._send(event)
            self._start(key, interval)


OWN_EVENTS: Final = "X_BLOCKMON_"
"""How the names of events begin that QEMU does not have."""


class Listener(Protocol):
    """A client that takes events. knows_us: it has used a command of ours, so that events of ours mean something."""

    pretty: bool
    knows_us: bool

    def send_event(self, data: bytes) -> None:
        """Take an event as it goes over the wire."""


def encode(message: Any, pretty: bool) -> bytes:
    """A message as it goes over the wire, its line end included."""
    text = dumps(message, pretty=pretty)
    if pretty:
        text = text.replace("\n", "\r\n")
    return text.encode("ascii") + b"\r\n"


class EventHub:
    """Takes the events of an engine and gives them to the clients that listen. Control plane only."""

    def __init__(self, engine: Engine) -> None:
        self.listeners: set[Listener] = set()
        self._limiter = RateLimiter(self._broadcast, lambda delay, call: _loop().call_later(delay, call))
        self._unsubscribe = engine.subscribe(self._limiter.offer)

    def close(self) -> None:
        self._unsubscribe()
        self.listeners.clear()

    def _broadcast(self, event: Event) -> None:
        encoded: list[bytes | None] = [None, None]
        ours = event["event"].startswith(OWN_EVENTS)
        for listener in tuple(self.listeners):
            if ours and not listener.knows_us:
                continue  # a QEMU client may count what it gets
            data = encoded[listener.pretty]
            if data is None:
                data = encoded[listener.pretty] = encode(event, listener.pretty)
            listener.send_event(data)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
