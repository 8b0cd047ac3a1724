"""info about the program itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import info

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@info("version", help="show the version of QEMU")
async def _info_version(monitor: Monitor, args: dict[str, Any]) -> None:
    version = await monitor.qmp("query-version")
    number = version["qemu"]
    monitor.print(f"{number['major']}.{number['minor']}.{number['micro']}{version['package']}\n")


@info("chardev", help="show the character devices")
async def _info_chardev(monitor: Monitor, args: dict[str, Any]) -> None:
    for chardev in await monitor.qmp("query-chardev"):
        monitor.print(f"{chardev['label']}: filename={chardev['filename']}\n")


@info("history", help="show the command line history")
async def _info_history(monitor: Monitor, args: dict[str, Any]) -> None:
    for index, line in enumerate(monitor.history):
        monitor.print(f"{index}: '{line}'\n")
