"""Internal snapshots by command: blockdev-snapshot-internal-sync and its deletion."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from engine.errors import GenericError, os_error_text
from engine.graph.blockers import Op
from engine.graph.drain import drained
from engine.graph.info import SnapshotInfo
from engine.graph.internal_snapshots import (
    can_snapshot,
    create_snapshot,
    delete_snapshot,
    find_snapshot,
    snapshot_now,
)
from engine.graph.node import Node
from engine.jobs.chain import root_node
from engine.qapi import Struct, command
from engine.transaction.action import Action
from engine.transaction.actions import ActionContext, action, perform

if TYPE_CHECKING:
    from engine.engine import Engine

log = logging.getLogger("engine.snapshots")


class BlockdevSnapshotInternal(Struct):
    """A snapshot inside the image.

    device: the device, or root node, to take it of
    name: what it is to be called; no other snapshot of the image has that name
    """

    device: str
    name: str


@action("blockdev-snapshot-internal-sync", data=BlockdevSnapshotInternal, since="1.7")
class InternalSnapshotAction(Action):
    """Takes the snapshot when it is prepared, and deletes it again if the transaction fails."""

    def __init__(self, context: ActionContext, data: BlockdevSnapshotInternal) -> None:
        self._graph = context.engine.graph
        self._data = data
        self._held = ExitStack()
        self._node: Node
        self._taken: SnapshotInfo | None = None

    def prepare(self) -> None:
        device, name = self._data.device, self._data.name
        node = self._node = root_node(self._graph, device)
        # What the snapshot shows is the disk at the moment of the whole transaction.
        self._held.enter_context(drained([node]))
        node.blockers.check(Op.INTERNAL_SNAPSHOT, node.device_or_node_name)
        if node.read_only:
            raise GenericError(f"Device '{device}' is read only")
        if not can_snapshot(node):
            raise GenericError(
                f"Block format '{node.driver.name}' used by device '{device}' does not support internal snapshots"
            )
        if not name:
            raise GenericError("Name is empty")
        if find_snapshot(node, None, name) is not None:
            raise GenericError(f"Snapshot with name '{name}' already exists on device '{device}'")
        try:
            self._taken = create_snapshot(node, snapshot_now(name))
        except OSError as exc:
            text = f"Failed to create snapshot '{name}' on device '{device}': {os_error_text(exc)}"
            raise GenericError(text) from exc

    def abort(self) -> None:
        taken = self._taken
        if taken is None:
            return
        try:
            delete_snapshot(self._node, taken.id, taken.name)
        except GenericError as exc:
            log.error(
                "Failed to delete snapshot with id '%s' and name '%s' on device '%s' in abort: %s",
                *(taken.id, taken.name, self._data.device, exc.desc),
            )

    def clean(self) -> None:
        self._held.close()


@command(since="1.7", boxed=True, allow_preconfig=True)
def blockdev_snapshot_internal_sync(engine: Engine, data: BlockdevSnapshotInternal) -> None:
    """Take a snapshot inside the image; what is written from then on leaves it as it is."""
    perform(engine, InternalSnapshotAction, data)


@command(since="1.7", allow_preconfig=True)
def blockdev_snapshot_delete_internal_sync(
    engine: Engine, *, device: str, id: str | None = None, name: str | None = None
) -> SnapshotInfo:
    """Delete a snapshot inside an image, and tell what it was.

    device: the device, or root node, it is in
    id: its id
    name: its name; at least one of both is needed
    """
    node = root_node(engine.graph, device)
    if id is None and name is None:
        raise GenericError("Name or id must be provided")
    node.blockers.check(Op.INTERNAL_SNAPSHOT_DELETE, node.device_or_node_name)
    found = find_snapshot(node, id, name)
    if found is None:
        shown_id, shown_name = ("null" if text is None else text for text in (id, name))
        raise GenericError(f"Snapshot with id '{shown_id}' and name '{shown_name}' does not exist on device '{device}'")
    delete_snapshot(node, id, name)
    return found
