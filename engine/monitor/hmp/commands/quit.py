"""quit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp("quit|q", help="quit the emulator")
async def _quit(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("quit")
    monitor.ended = True
