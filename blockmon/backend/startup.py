"""Start-up options that bring an engine into its first state, strictly in the order given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.monitor.server import Monitors

log = logging.getLogger("blockmon")


async def start_up(engine: Engine, options: CommonOptions, announce: Callable[[str], None] = log.info) -> None:
    """Carry out ``options.startup``. Errors: StartupError naming the option at fault.

    announce: takes sentences for the person at the terminal; called on the engine's thread.
    """
    from engine.errors import QMPError

    monitors: Monitors | None = None
    for option, text in options.startup:
        if option != "--blockdev" and monitors is None:
            from engine.monitor.server import Monitors

            monitors = Monitors(engine, announce)
        try:
            work = (
                _blockdev(engine, text)
                if monitors is None or option == "--blockdev"
                else _monitor(monitors, option, text)
            )
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, engine.control.loop))
        except QMPError as exc:
            message = exc.desc if exc.hint is None else f"{exc.desc}\n{exc.hint}"
            raise StartupError(f"{option} {text}", message) from exc


async def _blockdev(engine: Engine, text: str) -> None:
    from engine.graph.options import BlockdevOptions
    from engine.qapi import to_wire
    from engine.qapi.keyval import from_option

    await engine.run_command("blockdev-add", to_wire(from_option(BlockdevOptions, text, "driver")))


async def _monitor(monitors: Monitors, option: str, text: str) -> Any:
    if option == "--chardev":
        await monitors.add_chardev(text)
    elif option == "--monitor":
        monitors.add_monitor(text)
    else:
        await monitors.listen({"--qmp": "control", "--hmp": "readline"}[option], text)
