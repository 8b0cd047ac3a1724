"""Internal snapshots of a node, or of the node below it that holds its data: finding, taking, deleting, going back.

All on the control plane. A node whose driver knows nothing of snapshots passes on to its primary child when that is
its only storage (QEMU's fallback): raw and filters over qcow2.
"""

from __future__ import annotations

import errno
import os
import time

from engine.bitmaps.dirty import bitmaps_of
from engine.errors import GenericError, os_error_text
from engine.graph.drain import drained
from engine.graph.info import SnapshotInfo
from engine.graph.node import Node
from engine.graph.permissions import Perm, Role

NAME_MAX = 255
"""Longest name of a snapshot, in bytes; longer ones are cut."""
_STORAGE = Role.DATA | Role.METADATA | Role.FILTERED


def holder_of(node: Node) -> Node | None:
    """The node that keeps the snapshots of *node*; None where there is none."""
    while not node.driver.supports_snapshots:
        primary = node.primary
        if primary is None:
            return None
        if any(edge is not primary and edge.role & _STORAGE for edge in node.children.values()):
            return None
        node = primary.child
    return node


def can_snapshot(node: Node) -> bool:
    """Whether a snapshot of *node* may be taken: all is writable down to a node that can hold it."""
    while not node.read_only:
        if node.driver.supports_snapshots:
            return True
        below = node.primary
        if below is None or holder_of(node) is None:
            return False
        node = below.child
    return False


def list_snapshots(node: Node) -> list[SnapshotInfo]:
    """The snapshots of *node*. Errors: GenericError where there can't be any."""
    holder = holder_of(node)
    if holder is None or not holder.driver.holds_snapshots():
        raise GenericError(f"Failed to get a snapshot list: {os.strerror(errno.ENOTSUP)}")
    return holder.driver.snapshot_list()


def snapshots_below(node: Node) -> list[SnapshotInfo]:
    """As list_snapshots(), but none where there can't be any."""
    holder = holder_of(node)
    return holder.driver.snapshot_list() if holder is not None else []


def find_snapshot(node: Node, snapshot_id: str | None, name: str | None) -> SnapshotInfo | None:
    """The first snapshot of *node* with this id and name, as far as given. Errors: GenericError."""
    for item in list_snapshots(node):
        if (snapshot_id is None or item.id == snapshot_id) and (name is None or item.name == name):
            return item
    return None


def snapshot_now(name: str) -> SnapshotInfo:
    """What a snapshot called *name* taken now is to tell. Without a guest the clock is that of the host, as in
    QEMU's storage daemon.
    """
    seconds, micros = divmod(time.time_ns() // 1000, 10**6)
    return SnapshotInfo(
        id="",
        name=os.fsdecode(os.fsencode(name)[:NAME_MAX]),
        vm_state_size=0,
        date_sec=seconds,
        date_nsec=micros * 1000,
        vm_clock_sec=seconds,
        vm_clock_nsec=micros * 1000,
    )


def _holder(node: Node) -> Node:
    holder = holder_of(node)
    if holder is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return holder


def create_snapshot(node: Node, info: SnapshotInfo) -> SnapshotInfo:
    """Take a snapshot of *node*; returns it with its id. Errors: OSError."""
    holder = _holder(node)
    with drained([holder]):
        stored = holder.driver.snapshot_create(info)
    node.graph.changed()
    return stored


def delete_snapshot(node: Node, snapshot_id: str | None, name: str | None) -> None:
    """Delete a snapshot of *node* by id and name, as far as given. Errors: GenericError."""
    holder = holder_of(node)
    if holder is None:
        raise GenericError(
            f"Block format '{node.driver.name}' used by device '{node.name}' "
            "does not support internal snapshot deletion"
        )
    with drained([holder]):
        try:
            holder.driver.snapshot_delete(snapshot_id, name)
        except OSError as exc:
            raise GenericError(os_error_text(exc)) from exc
        finally:
            node.graph.changed()


def goto_snapshot(node: Node, id_or_name: str) -> None:
    """Make *node*'s disk what it was when the snapshot was taken. Errors: GenericError."""
    for layer in _down_to_holder(node):
        if bitmaps_of(layer):
            raise GenericError("Device has active dirty bitmaps")
    try:
        holder = _holder(node)
        with drained([holder]):
            _check_size(holder, id_or_name)
            holder.driver.snapshot_goto(id_or_name)
    except OSError as exc:
        raise GenericError(f"Failed to load snapshot: {os_error_text(exc)}") from exc
    finally:
        node.graph.changed()


def _down_to_holder(node: Node) -> list[Node]:
    nodes = [node]
    while not node.driver.supports_snapshots and node.primary is not None:
        node = node.primary.child
        nodes.append(node)
    return nodes


def _check_size(holder: Node, id_or_name: str) -> None:
    """A snapshot of another size needs everybody above to allow a change of size. Errors: OSError ENOTSUP."""
    size = holder.driver.snapshot_size(id_or_name)
    if size is not None and size != holder.length and not holder.cumulative_permissions()[1] & Perm.RESIZE:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
