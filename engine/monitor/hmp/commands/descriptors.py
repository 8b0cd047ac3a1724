"""getfd, closefd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "getfd",
    args="fdname:s",
    params="getfd name",
    help="receive a file descriptor via SCM rights and assign it a name",
)
async def _getfd(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("getfd", fdname=args["fdname"])


@hmp(
    "closefd",
    args="fdname:s",
    params="closefd name",
    help="close a file descriptor previously passed via SCM rights",
)
async def _closefd(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("closefd", fdname=args["fdname"])
