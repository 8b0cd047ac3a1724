"""qemu-io."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.graph.permissions import Perm
from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "qemu-io",
    args="qdev:-d,device:B,command:s",
    params='[-d] [device] "[command]"',
    help="run a qemu-io command on a block device\n"
    "\t\t\t-d: [device] is a device ID rather than a drive ID or node name",
)
async def _qemu_io(monitor: Monitor, args: dict[str, Any]) -> None:
    from engine.monitor.qemu_io import run_command

    name, graph = args["device"], monitor.engine.graph
    backend = monitor.engine.machine.backend_of(name) if args.get("qdev") else graph.find_backend(name)
    if backend is not None:
        monitor.print(await run_command(backend, args["command"], tell=_teller(monitor), lasting=True))
        return
    node = graph.find(None, name)
    backend = graph.add_backend("user", "", node, Perm.NONE, Perm.ALL)
    try:
        monitor.print(await run_command(backend, args["command"], tell=None, lasting=False))
    finally:
        if backend in graph.backends:
            graph.remove_backend(backend)


def _teller(monitor: Monitor) -> Callable[[str], None] | None:
    """How a request in the background prints when it is done: at once where somebody may be looking."""
    if not monitor.interactive:
        return None
    loop = asyncio.get_running_loop()

    def tell(text: str) -> None:
        try:
            loop.call_soon_threadsafe(monitor.print, text)
        except RuntimeError:
            pass  # the engine has ended meanwhile

    return tell
