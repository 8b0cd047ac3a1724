"""External snapshots: a new overlay takes the place of a node, which becomes its backing node."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from engine.errors import GenericError
from engine.graph.blockers import Op
from engine.graph.change import Transaction, append, refresh_permissions
from engine.graph.creation import GraphCreateContext, create_image
from engine.graph.drain import drained
from engine.graph.driver import drivers
from engine.graph.filenames import refresh_filename
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.graph.reopen import set_read_only
from engine.qapi import Enum, Struct, command
from engine.transaction.action import Action
from engine.transaction.actions import ActionContext, action, perform

if TYPE_CHECKING:
    from engine.engine import Engine


class NewImageMode(Enum):
    """Whether a command makes the image it needs, or finds it made.

    existing: the image is there already
    absolute-paths: the command makes it, with an absolute path to its backing file
    """

    EXISTING = "existing"
    ABSOLUTE_PATHS = "absolute-paths"


class BlockdevSnapshot(Struct):
    """An overlay that is open already.

    node: the node, or device, to take a snapshot of
    overlay: the node to put on top; without a backing node, and not in use
    """

    node: str
    overlay: str


class BlockdevSnapshotSync(Struct):
    """An overlay by its file name.

    device: the device whose node it is
    node_name: the node, instead of a device
    snapshot_file: file of the overlay
    snapshot_node_name: name for the overlay's node; needed with node-name
    format: of the overlay, qcow2 by default
    mode: whether the overlay is made (absolute-paths, the default) or there already
    """

    device: str | None = None
    node_name: str | None = None
    snapshot_file: str
    snapshot_node_name: str | None = None
    format: str | None = None
    mode: NewImageMode | None = None


class _ExternalSnapshot(Action):
    """What both forms have in common; a subclass names the old node and brings the overlay."""

    def __init__(self, context: ActionContext) -> None:
        self.engine = context.engine
        self.graph = context.engine.graph
        self._held = ExitStack()
        self._change: Transaction | None = None
        self._old: Node

    def find_old(self) -> Node:
        """The node to take a snapshot of. Errors: GenericError."""
        raise AssertionError

    def open_overlay(self, old: Node) -> Node:
        """The overlay, pinned. Errors: GenericError."""
        raise AssertionError

    def prepare(self) -> None:
        old = self._old = self.find_old()
        # Nothing is written to the old node from here on until the new one is in its place.
        self._held.enter_context(drained([old]))
        old.blockers.check(Op.EXTERNAL_SNAPSHOT, old.device_or_node_name)
        if not old.read_only:
            try:
                old.flush()
            except OSError as exc:
                raise GenericError("An IO error has occurred") from exc
        overlay = self._overlay = self.open_overlay(old)
        self._held.callback(self.graph.unpin, overlay)
        # An overlay that is only written to may be in use already: the target of a mirror job.
        if overlay.cumulative_permissions()[0] & Perm.CONSISTENT_READ:
            raise GenericError("The overlay is already in use")
        if overlay.driver.is_filter:
            raise GenericError("Filters cannot be used as overlays")
        if overlay.backing is not None:
            raise GenericError("The overlay already has a backing image")
        if not overlay.driver.supports_backing:
            raise GenericError("The overlay does not support backing images")
        change = Transaction()
        try:
            append(change, overlay, old)
            refresh_permissions(change, [overlay])
        except BaseException:
            change.undo()
            raise
        self._change = change

    def commit(self) -> None:
        assert self._change is not None
        self._change.commit()
        try:
            set_read_only(self._old, True)
        except GenericError:
            pass  # somebody else writes to it, who had to share that; QEMU lets it be, too
        refresh_filename(self._overlay)
        self.graph.changed()

    def abort(self) -> None:
        if self._change is not None:
            self._change.undo()

    def clean(self) -> None:
        self._held.close()


@action("blockdev-snapshot", data=BlockdevSnapshot, since="2.5")
class BlockdevSnapshotAction(_ExternalSnapshot):
    """blockdev-snapshot: the overlay is a node that is open already."""

    def __init__(self, context: ActionContext, data: BlockdevSnapshot) -> None:
        super().__init__(context)
        self._data = data

    def find_old(self) -> Node:
        return self.graph.find_either(self._data.node)

    def open_overlay(self, old: Node) -> Node:
        return open_node(self.graph, self._data.overlay)


@action("blockdev-snapshot-sync", data=BlockdevSnapshotSync, since="1.1")
class BlockdevSnapshotSyncAction(_ExternalSnapshot):
    """blockdev-snapshot-sync: the overlay is made, or opened, by its file name."""

    def __init__(self, context: ActionContext, data: BlockdevSnapshotSync) -> None:
        super().__init__(context)
        self._data = data
        self._format = data.format or "qcow2"

    def find_old(self) -> Node:
        return self.graph.find(self._data.device, self._data.node_name)

    def open_overlay(self, old: Node) -> Node:
        data = self._data
        if data.node_name and data.snapshot_node_name is None:
            raise GenericError("New overlay node-name missing")
        if data.snapshot_node_name is not None and self._is_taken(data.snapshot_node_name):
            raise GenericError("New overlay node-name already in use")
        if data.mode is not NewImageMode.EXISTING:
            refresh_filename(old)
            create_image(
                GraphCreateContext(self.graph, self.engine.control.call),
                data.snapshot_file,
                self._format,
                old.length,
                backing_file=old.filename,
                backing_format=old.driver.name,
            )
        return open_node(self.graph, self._options(old), filename=data.snapshot_file)

    def _is_taken(self, name: str) -> bool:
        return name in self.graph.nodes or self.graph.find_backend(name) is not None

    def _options(self, old: Node) -> dict[str, Any]:
        """Options of the overlay: the modes of the node whose place it takes."""
        options: dict[str, Any] = {
            "driver": self._format,
            "read-only": old.read_only,
            "auto-read-only": old.auto_read_only,
            "discard": "unmap" if old.discard_unmap else "ignore",
            "cache": {"direct": old.cache_direct, "no-flush": old.cache_no_flush},
        }
        if self._data.snapshot_node_name is not None:
            options["node-name"] = self._data.snapshot_node_name
        cls = drivers.get(self._format)
        if cls is not None and cls.supports_backing:
            options["backing"] = None  # the old node takes that place
        return options


@command(since="2.5", boxed=True, features=("allow-write-only-overlay",), allow_preconfig=True)
def blockdev_snapshot(engine: Engine, data: BlockdevSnapshot) -> None:
    """Put an open overlay on top of a node: writes go to the overlay from then on."""
    perform(engine, BlockdevSnapshotAction, data)


@command(since="0.14", boxed=True, allow_preconfig=True)
def blockdev_snapshot_sync(engine: Engine, data: BlockdevSnapshotSync) -> None:
    """Make an overlay image and put it on top of a node."""
    perform(engine, BlockdevSnapshotSyncAction, data)
