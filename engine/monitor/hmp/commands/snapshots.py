"""Internal snapshots: of one disk, and of all disks together (savevm, loadvm, delvm, info snapshots).

There is no guest here, so what savevm saves is the disks alone, all at one instant, and loadvm loads such snapshots
although they have no VM state. Which disks take part, and every text, are QEMU's.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.graph import Graph
from engine.graph.info import SnapshotInfo
from engine.graph.internal_snapshots import (
    can_snapshot,
    create_snapshot,
    delete_snapshot,
    find_snapshot,
    goto_snapshot,
    list_snapshots,
    snapshot_now,
)
from engine.graph.node import Node
from engine.monitor.hmp.image_text import snapshot_table
from engine.monitor.hmp.registry import hmp, info
from engine.qapi import to_wire

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor

_NOWHERE = "no block device can store vmstate for snapshot"


@hmp(
    "snapshot_blkdev_internal",
    args="device:B,name:s",
    params="device name",
    help="take an internal snapshot of device.\n"
    "\t\t\tThe format of the image used by device must\n"
    "\t\t\tsupport it, such as qcow2.\n"
    "\t\t\t",
)
async def _snapshot_blkdev_internal(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("blockdev-snapshot-internal-sync", device=args["device"], name=args["name"])


@hmp(
    "snapshot_delete_blkdev_internal",
    args="device:B,name:s,id:s?",
    params="device name [id]",
    help="delete an internal snapshot of device.\n"
    "\t\t\tIf id is specified, qemu will try delete\n"
    "\t\t\tthe snapshot matching both id and name.\n"
    "\t\t\tThe format of the image used by device must\n"
    "\t\t\tsupport it, such as qcow2.\n"
    "\t\t\t",
)
async def _snapshot_delete_blkdev_internal(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp(
        "blockdev-snapshot-delete-internal-sync", device=args["device"], name=args["name"], id=args.get("id")
    )


# -- all disks ---------------------------------------------------------------------------------------------------------


def _backend_of(node: Node) -> BlockBackend | None:
    return next((edge.parent for edge in node.parents if isinstance(edge.parent, BlockBackend)), None)


def _roots(graph: Graph) -> list[Node]:
    """Nodes that users see the top of: those of the back ends, then those of the monitor alone."""
    roots = [backend.root.child for backend in graph.backends if backend.root is not None]
    roots += [node for node in graph.nodes.values() if node.monitor_owned and _backend_of(node) is None]
    return list(dict.fromkeys(roots))


def _disks(graph: Graph) -> list[Node]:
    """The nodes that snapshots of all disks are taken of: writable, and in use or in nobody's way."""
    return [
        node for node in _roots(graph) if not node.read_only and (_backend_of(node) is not None or not node.parents)
    ]


def _usable_disks(graph: Graph) -> list[Node]:
    """All disks. Errors: GenericError when one of them can't hold snapshots."""
    disks = _disks(graph)
    for node in disks:
        if not can_snapshot(node):
            raise GenericError(f"Device '{node.device_or_node_name}' is writable but does not support snapshots")
    return disks


def _delete_all(disks: list[Node], name: str) -> None:
    for node in disks:
        found = find_snapshot(node, None, name)
        if found is None:
            continue
        try:
            delete_snapshot(node, found.id, found.name)
        except GenericError as exc:
            text = f"Could not delete snapshot '{name}' on '{node.device_or_node_name}': {exc.desc}"
            raise GenericError(text) from exc


@hmp(
    "savevm",
    args="name:s?",
    params="tag",
    help="save a VM snapshot. If no tag is provided, a new snapshot is created",
)
async def _savevm(monitor: Monitor, args: dict[str, Any]) -> None:
    disks = _usable_disks(monitor.engine.graph)
    name: str | None = args.get("name")
    if name is not None:
        _delete_all(disks, name)
    if not disks:
        raise GenericError(_NOWHERE)
    if name is None:
        name = time.strftime("vm-%Y%m%d%H%M%S")
    wanted = snapshot_now(name)
    # A guest that has never run: its clock stands at the beginning.
    wanted.vm_clock_sec = wanted.vm_clock_nsec = 0
    with drained(disks):
        for node in disks:
            try:
                create_snapshot(node, wanted)
            except OSError as exc:
                with suppress(GenericError):
                    _delete_all(disks, wanted.name)
                text = f"Could not create snapshot '{wanted.name}' on '{node.device_or_node_name}'"
                raise GenericError(text) from exc


@hmp("loadvm", args="name:s", params="tag", help="restore a VM snapshot from its tag")
async def _loadvm(monitor: Monitor, args: dict[str, Any]) -> None:
    disks = _usable_disks(monitor.engine.graph)
    name: str = args["name"]
    found = [find_snapshot(node, None, name) for node in disks]
    if None in found:
        raise GenericError(f"Snapshot '{name}' does not exist in one or more devices")
    if not disks:
        raise GenericError(_NOWHERE)
    with drained(disks):
        for node, snapshot in zip(disks, found, strict=True):
            assert snapshot is not None
            try:
                # By its id: QEMU gives the name, which may be the id of another snapshot.
                goto_snapshot(node, snapshot.id)
            except GenericError as exc:
                text = f"Could not load snapshot '{name}' on '{node.device_or_node_name}': {exc.desc}"
                raise GenericError(text) from exc


@hmp("delvm", args="name:s", params="tag", help="delete a VM snapshot from its tag")
async def _delvm(monitor: Monitor, args: dict[str, Any]) -> None:
    _delete_all(_usable_disks(monitor.engine.graph), args["name"])


@info("snapshots", help="show the currently saved VM snapshots")
async def _info_snapshots(monitor: Monitor, args: dict[str, Any]) -> None:
    graph = monitor.engine.graph
    disks = _disks(graph)
    first = next((node for node in disks if can_snapshot(node)), None)
    if first is None:
        monitor.print(f"{_NOWHERE}\n")
        return
    images = [(node, _listed(node)) for node in _roots(graph) if can_snapshot(node)]
    images = [(node, snapshots) for node, snapshots in images if snapshots]
    if not images:
        monitor.print("There is no snapshot available.\n")
        return
    common = [item for item in _listed(first) if all(_has(node, item.name) for node in disks)]
    names = {item.name for item in common}
    monitor.print("List of snapshots present on all disks:\n")
    if common:
        # Their ids may differ from disk to disk.
        _print_table(monitor, common, id_="--")
    else:
        monitor.print("None\n")
    for node, snapshots in images:
        others = [item for item in snapshots if item.name not in names]
        if others:
            monitor.print(f"\nList of partial (non-loadable) snapshots on '{node.device_name}':\n")
            _print_table(monitor, others)


def _listed(node: Node) -> list[SnapshotInfo]:
    try:
        return list_snapshots(node)
    except GenericError:
        return []


def _has(node: Node, name: str) -> bool:
    return any(item.name == name for item in _listed(node))


def _print_table(monitor: Monitor, snapshots: list[SnapshotInfo], id_: str | None = None) -> None:
    rows: list[dict[str, Any]] = [to_wire(item) for item in snapshots]
    for row in rows:
        if id_ is not None:
            row["id"] = id_
    monitor.print("".join(snapshot_table(rows)))
