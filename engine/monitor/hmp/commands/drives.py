"""Legacy drives: drive_add, drive_del."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import QMPError
from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


def _report(monitor: Monitor, exc: QMPError) -> None:
    """These two commands print an error without the usual word before it."""
    monitor.print(f"{exc.desc}\n" + (f"{exc.hint}\n" if exc.hint is not None else ""))


@hmp(
    "drive_add",
    args="node:-n,pci_addr:s,opts:s",
    params="[-n] [[<domain>:]<bus>:]<slot>\n"
    "[file=file][,if=type][,bus=n]\n"
    "[,unit=m][,media=d][,index=i]\n"
    "[,snapshot=on|off][,cache=on|off]\n"
    "[,readonly=on|off][,copy-on-read=on|off]",
    help="add drive to PCI storage controller",
)
async def _drive_add(monitor: Monitor, args: dict[str, Any]) -> None:
    from engine.devices.drive import add_node, format_list
    from engine.devices.drive_options import Interface

    text = args["opts"]
    drives = monitor.engine.drives
    listed = format_list(text)
    if listed is not None:
        monitor.print(listed)
        return
    try:
        if args.get("node"):
            add_node(monitor.engine, text)
            return
        options = drives.parse(text)
        backend = drives.add(options)
    except QMPError as exc:
        _report(monitor, exc)
        return
    for warning in options.warnings:
        monitor.print(f"warning: {warning}\n")
    if options.interface is not Interface.NONE:
        monitor.print(f"Can't hot-add drive to type {int(options.interface)}\n")
        drives.discard(backend)
        return
    monitor.print("OK\n")


@hmp("drive_del", args="id:B", params="device", help="remove host block device")
async def _drive_del(monitor: Monitor, args: dict[str, Any]) -> None:
    name = args["id"]
    try:
        if name in monitor.engine.graph.nodes:
            await monitor.qmp("blockdev-del", node_name=name)
        else:
            monitor.engine.drives.delete(name)
    except QMPError as exc:
        _report(monitor, exc)
