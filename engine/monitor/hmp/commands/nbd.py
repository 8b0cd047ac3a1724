"""nbd_server_start, nbd_server_add, nbd_server_remove, nbd_server_stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.commands.exports import start_nbd_server
from engine.errors import GenericError, QMPError
from engine.monitor.hmp.registry import hmp
from engine.sockets.addresses import parse_address

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "nbd_server_start",
    args="all:-a,writable:-w,uri:s",
    params="nbd_server_start [-a] [-w] host:port",
    help="serve block devices on the given host and port",
)
async def _start(monitor: Monitor, args: dict[str, Any]) -> None:
    writable = bool(args.get("writable"))
    if writable and not args.get("all"):
        raise GenericError("-w only valid together with -a")
    await start_nbd_server(monitor.engine, parse_address(args["uri"]))
    if not args.get("all"):
        return
    # All devices with a medium, or none.
    try:
        for device in await monitor.qmp("query-block"):
            if "inserted" in device:
                await monitor.qmp(
                    "block-export-add",
                    type="nbd",
                    id=device["device"],
                    node_name=device["inserted"]["node-name"],
                    writable=writable,
                )
    except QMPError:
        await monitor.qmp("nbd-server-stop")
        raise


@hmp(
    "nbd_server_add",
    args="writable:-w,device:B,name:s?",
    params="nbd_server_add [-w] device [name]",
    help="export a block device via NBD",
)
async def _add(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp(
        "nbd-server-add", device=args["device"], name=args.get("name"), writable=bool(args.get("writable"))
    )


@hmp(
    "nbd_server_remove",
    args="force:-f,name:s",
    params="nbd_server_remove [-f] name",
    help="remove an export previously exposed via NBD",
)
async def _remove(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("nbd-server-remove", name=args["name"], mode="hard" if args.get("force") else "safe")


@hmp(
    "nbd_server_stop",
    params="nbd_server_stop",
    help="stop serving block devices using the NBD protocol",
)
async def _stop(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("nbd-server-stop")
