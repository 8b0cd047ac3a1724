"""Start-up options that bring an engine into its first state, strictly in the order given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from engine.engine import Engine


async def start_up(engine: Engine, options: CommonOptions) -> None:
    """Carry out ``options.startup``. Errors: StartupError naming the option at fault."""
    for option, text in options.startup:
        if option == "--blockdev":
            await _blockdev(engine, text)
        else:
            raise StartupError(f"{option} {text}", "not available here yet")


async def _blockdev(engine: Engine, text: str) -> None:
    import asyncio

    from engine.errors import QMPError
    from engine.graph.options import BlockdevOptions
    from engine.qapi import to_wire
    from engine.qapi.keyval import from_option

    try:
        arguments = to_wire(from_option(BlockdevOptions, text, "driver"))
        await asyncio.wrap_future(engine.submit("blockdev-add", arguments))
    except QMPError as exc:
        raise StartupError(f"--blockdev {text}", exc.desc) from exc
