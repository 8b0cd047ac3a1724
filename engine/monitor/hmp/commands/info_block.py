"""info block, info blockstats, info block-jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import QMPError
from engine.monitor.hmp.image_text import image_text
from engine.monitor.hmp.registry import info

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor

_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
_THROTTLING = (
    *("bps", "bps_rd", "bps_wr", "bps_max", "bps_rd_max", "bps_wr_max"),
    *("iops", "iops_rd", "iops_wr", "iops_max", "iops_rd_max", "iops_wr_max", "iops_size"),
)


@info(
    "block",
    args="nodes:-n,verbose:-v,device:B?",
    params="[-n] [-v] [device]",
    help="show info of one block device or all block devices (-n: show named nodes; -v: show details)",
)
async def _info_block(monitor: Monitor, args: dict[str, Any]) -> None:
    wanted: str | None = args.get("device")
    verbose: bool = args.get("verbose", False)
    nodes: bool = args.get("nodes", False)
    found = False
    if not nodes:
        for index, device in enumerate(await monitor.qmp("query-block")):
            if wanted is None or device["device"] == wanted:
                monitor.print(("\n" if index else "") + "".join(_device_text(device, verbose)))
                found = True
        if found or wanted is None:
            return
    try:
        listed = await monitor.qmp("query-named-block-nodes")
    except QMPError:
        # An ejected node keeps the others from being shown too, as in QEMU.
        return
    for index, node in enumerate(listed):
        if wanted is None or node["node-name"] == wanted:
            # An empty line separates a node from those in front of it, shown or not.
            monitor.print(("\n" if index else "") + "".join(_node_text(node, node["node-name"], None, verbose)))


def _device_text(device: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    inserted = device.get("inserted")
    name = device["device"]
    if not name:
        name = (inserted or {}).get("node-name") or device.get("qdev") or "<anonymous>"
    elif inserted is not None and "node-name" in inserted:
        name = f"{name} ({inserted['node-name']})"
    if inserted is not None:
        yield from _node_text(inserted, name, device, verbose)
    else:
        yield f"{name}: [not inserted]\n"
        yield from _front_text(device)


def _front_text(device: Mapping[str, Any]) -> Iterator[str]:
    if "qdev" in device:
        yield f"    Attached to:      {device['qdev']}\n"
    if device.get("io-status", "ok") != "ok":
        yield f"    I/O status:       {device['io-status']}\n"
    if device["removable"]:
        locked = "" if device["locked"] else "not "
        tray = "open" if device.get("tray_open") else "closed"
        yield f"    Removable device: {locked}locked, tray {tray}\n"


def _node_text(node: Mapping[str, Any], name: str, device: Mapping[str, Any] | None, verbose: bool) -> Iterator[str]:
    read_only = ", read-only" if node["ro"] else ""
    encrypted = ", encrypted" if node["encrypted"] else ""
    yield f"{name}: {node['file']} ({node['drv']}{read_only}{encrypted})\n"
    if device is not None:
        yield from _front_text(device)
    cache = node["cache"]
    mode = "writeback" if cache["writeback"] else "writethrough"
    direct = ", direct" if cache["direct"] else ""
    no_flush = ", ignore flushes" if cache["no-flush"] else ""
    yield f"    Cache mode:       {mode}{direct}{no_flush}\n"
    if "backing_file" in node:
        yield f"    Backing file:     {node['backing_file']} (chain depth: {node['backing_file_depth']})\n"
    if node["detect_zeroes"] != "off":
        yield f"    Detect zeroes:    {node['detect_zeroes']}\n"
    if any(node[limit] for limit in _LIMITS):
        limits = " ".join(f"{limit}={node.get(limit, 0)}" for limit in _THROTTLING)
        yield f"    I/O throttling:   {limits} group={node.get('group', '')}\n"
    if verbose:
        yield "\nImages:\n"
        image = node["image"]
        while image is not None:
            yield from image_text(image)
            image = image.get("backing-image")


_COUNTERS = (
    *("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations"),
    *("wr_total_time_ns", "rd_total_time_ns", "flush_total_time_ns", "rd_merged", "wr_merged", "idle_time_ns"),
)


@info("blockstats", help="show block device statistics")
async def _info_blockstats(monitor: Monitor, args: dict[str, Any]) -> None:
    for device in await monitor.qmp("query-blockstats"):
        if "device" in device:
            counters = " ".join(f"{name}={device['stats'].get(name, 0)}" for name in _COUNTERS)
            monitor.print(f"{device['device']}: {counters}\n")


@info("block-jobs", help="show progress of ongoing block device operations")
async def _info_block_jobs(monitor: Monitor, args: dict[str, Any]) -> None:
    jobs = await monitor.qmp("query-block-jobs")
    for job in jobs:
        what = "Streaming" if job["type"] == "stream" else f"Type {job['type']},"
        monitor.print(
            f"{what} device {job['device']}: Completed {job['offset']} of {job['len']} bytes, "
            f"speed limit {job['speed']} bytes/s\n"
        )
    if not jobs:
        monitor.print("No active jobs\n")
