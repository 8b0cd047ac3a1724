"""What goes out on one connection: everything of one turn of the loop in one write, and never more than fits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

EVENT_LIMIT = 10_000
"""Events that may wait for a client that does not read."""


class Outlet:
    """Collects output and hands it to a transport. Control plane only.

    Replies are kept whatever happens; the session stops executing commands while ``paused``. When more than
    EVENT_LIMIT events wait, they are dropped together, and the client is told how many by *lost*, which makes the
    text that takes their place.
    """

    def __init__(self, lost: Callable[[int], bytes]) -> None:
        self._lost = lost
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._events = 0
        self._dropped = 0
        self._dropped_at = 0
        self._scheduled = False
        self._ready: asyncio.Event = asyncio.Event()
        self._ready.set()

    def connect(self, transport: asyncio.WriteTransport) -> None:
        """Begin to write to *transport*."""
        self._transport = transport
        self._schedule()

    def disconnect(self) -> None:
        """Forget everything; the transport is gone. Whoever waits goes on."""
        self._transport = None
        self._waiting.clear()
        self._events = self._dropped = 0
        self._ready.set()

    @property
    def paused(self) -> bool:
        """Whether the client reads too slowly for more output now."""
        return not self._ready.is_set()

    async def ready(self) -> None:
        """Wait until the client has read enough for more output."""
        await self._ready.wait()

    def pause(self) -> None:
        self._ready.clear()

    def resume(self) -> None:
        self._ready.set()
        self._flush()

    def send(self, data: bytes) -> None:
        """Send something that must not be lost."""
        self._waiting.append((data, False))
        self._schedule()

    def offer(self, data: bytes) -> None:
        """Send an event, unless too many are waiting."""
        if self._events >= EVENT_LIMIT:
            self._drop_events()
        self._events += 1
        self._waiting.append((data, True))
        self._schedule()

    def _drop_events(self) -> None:
        kept: deque[tuple[bytes, bool]] = deque()
        for item in self._waiting:
            if not item[1]:
                kept.append(item)
        self._dropped += self._events
        self._events = 0
        self._waiting = kept
        self._dropped_at = len(kept)

    def _schedule(self) -> None:
        if not self._scheduled and self._transport is not None and self._ready.is_set():
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._transport is None or not self._ready.is_set():
            return
        parts = [data for data, _ in self._waiting]
        if self._dropped:
            parts.insert(self._dropped_at, self._lost(self._dropped))
            self._dropped = 0
        self._waiting.clear()
        self._events = 0
        if parts:
            self._transport.write(b"".join(parts))

    def flush(self) -> None:
        """Hand over what is waiting now (before the connection is closed), however slow the client is."""
        self._ready.set()
        self._flush()
