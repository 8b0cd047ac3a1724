"""What a monitor's server knows of each of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Session(asyncio.Protocol):
    """One client. on_lost: called when the connection is gone."""

    def __init__(self) -> None:
        self.on_lost: list[Callable[[], None]] = []

    def connection_lost(self, exc: Exception | None) -> None:
        for callback in self.on_lost:
            callback()
        self.on_lost.clear()

    async def stop(self) -> None:
        """Take no more commands; wait for the one that runs."""

    def close(self) -> None:
        """Send what is waiting and close the connection."""

    def abort(self) -> None:
        """Close the connection, sent or not."""


SessionFactory = Callable[[bool], Session]
"""Makes what serves a connection. Its argument: whether the connection outlives the end of its input."""
