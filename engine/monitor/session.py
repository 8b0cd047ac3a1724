"""What a monitor's server knows of each of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.descriptors.passing import Descriptors


class Session(asyncio.Protocol):
    """One client. on_lost: called when the connection is gone.

    take_passed: gives the file descriptors that came with what was just received, None for none (see PassingSocket).
    descriptors: those of the command that runs, and those with names.
    """

    def __init__(self) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self.take_passed: Callable[[], list[int] | None] = lambda: None
        self.descriptors = Descriptors()

    def connection_lost(self, exc: Exception | None) -> None:
        self.descriptors.arrived(self.take_passed() or [])
        self.descriptors.close()
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
