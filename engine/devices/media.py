"""Media: opening and closing trays, putting nodes into back ends and taking them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend, GuestDevice
from engine.graph.blockers import Op
from engine.graph.change import Transaction, move, refresh_permissions
from engine.graph.drain import drained
from engine.graph.iothreads import set_iothread
from engine.graph.opening import open_node
from engine.qapi import Enum

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.graph.graph import Graph
    from engine.graph.node import Node


class BlockdevChangeReadOnlyMode(Enum):
    """Whether a new medium is read-only: as the last one was (retain), or as said.

    retain: as the medium before
    read-only: open the new medium read-only
    read-write: open the new medium for writing
    """

    RETAIN = "retain"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


class TrayLocked(GenericError):
    """The guest has locked the tray; it was asked to open it."""


def find_backend(engine: Engine, device: str | None, id: str | None) -> BlockBackend:
    """The back end called *device*, or that of the guest device *id*. Errors: GenericError, DeviceNotFound."""
    if (device is None) == (id is None):
        raise GenericError("Need exactly one of 'device' and 'id'")
    if id is not None:
        return engine.machine.backend_of(id)
    assert device is not None
    backend = engine.graph.find_backend(device)
    if backend is None:
        raise DeviceNotFound(f"Device '{device}' not found")
    return backend


def removable(backend: BlockBackend) -> bool:
    """Whether the medium may be changed; in a back end without a device it always may."""
    return backend.device is None or backend.device.removable_media


def _tray_device(backend: BlockBackend) -> GuestDevice | None:
    return backend.device if backend.device is not None and backend.device.has_tray else None


def _move(engine: Engine, backend: BlockBackend, load: bool) -> None:
    """Tell the device about its medium, and the world about the tray if it moved. Errors: GenericError."""
    device = backend.device
    if device is None:
        return
    was_open = device.tray_open
    device.change_media(load)
    if device.tray_open != was_open:
        engine.machine.announce_tray(backend)


def open_tray(engine: Engine, backend: BlockBackend, shown: str, force: bool) -> None:
    """Open the tray; nothing to do when it is open or there is none. Errors: GenericError, TrayLocked."""
    if not removable(backend):
        raise GenericError(f"Device '{shown}' is not removable")
    device = _tray_device(backend)
    if device is None or device.tray_open:
        return
    locked = device.medium_locked
    if locked:
        device.eject_request(force)
    if not locked or force:
        _move(engine, backend, False)
    else:
        raise TrayLocked(f"Device '{shown}' is locked and force was not specified, wait for tray to open and try again")


def close_tray(engine: Engine, backend: BlockBackend, shown: str) -> None:
    """Close the tray. Errors: GenericError."""
    if not removable(backend):
        raise GenericError(f"Device '{shown}' is not removable")
    device = _tray_device(backend)
    if device is not None and device.tray_open:
        _move(engine, backend, True)


@contextmanager
def _quiet(backend: BlockBackend) -> Iterator[None]:
    """No request of this back end is in flight meanwhile."""
    backend.drained_begin()
    try:
        backend.drained_wait()
        yield
    finally:
        backend.drained_end()


def remove_medium(engine: Engine, backend: BlockBackend, shown: str) -> None:
    """Take the medium out; its node goes unless somebody else holds it. Errors: GenericError."""
    device = _tray_device(backend)
    if not removable(backend):
        raise GenericError(f"Device '{shown}' is not removable")
    if device is not None and not device.tray_open:
        raise GenericError(f"Tray of device '{shown}' is not open")
    if backend.root is None:
        return
    node = backend.root.child
    node.blockers.check(Op.EJECT, node.device_or_node_name)
    backend.remember_root()
    with _quiet(backend):
        engine.graph.eject(backend)
        if device is None:
            _move(engine, backend, False)


def insert_medium(engine: Engine, backend: BlockBackend, node: Node) -> None:
    """Put *node* in. Errors: GenericError."""
    device = _tray_device(backend)
    if not removable(backend):
        raise GenericError("Device is not removable")
    if device is not None and not device.tray_open:
        raise GenericError("Tray of the device is not open")
    if backend.root is not None:
        raise GenericError("There already is a medium in the device")
    if backend.device is not None:
        set_iothread(node, backend.iothread, asked_by=backend)
    engine.graph.insert(backend, node)
    if device is None:
        try:
            _move(engine, backend, True)
        except GenericError:
            with _quiet(backend):
                engine.graph.eject(backend)
            raise


def swap_node(backend: BlockBackend, node: Node) -> None:
    """Put *node* under a device in use, in the place of its present one. Errors: GenericError."""
    edge = backend.root
    if edge is None:
        raise GenericError("There is no medium in the device")
    old = edge.child
    if old is node:
        return
    with drained([old, node]), Transaction() as txn:
        move(txn, edge, node)
        refresh_permissions(txn, [old, node])
    node.graph.changed()


def node_to_insert(graph: Graph, name: str) -> Node:
    """The node called *name* if no device uses it. Errors: GenericError."""
    node = graph.nodes.get(name)
    if node is None:
        raise GenericError(f"Node '{name}' not found")
    if any(isinstance(edge.parent, BlockBackend) for edge in node.parents):
        raise GenericError(f"Node '{name}' is already in use")
    return node


def eject(engine: Engine, backend: BlockBackend, shown: str, force: bool) -> None:
    """Open the tray, if there is one, and take the medium out. Errors: GenericError."""
    open_tray(engine, backend, shown, force)
    remove_medium(engine, backend, shown)


def change_medium(
    engine: Engine,
    backend: BlockBackend,
    shown: str,
    *,
    filename: str,
    format: str | None,
    force: bool,
    mode: BlockdevChangeReadOnlyMode,
) -> None:
    """Open the image *filename* and put it in in place of the present medium. Errors: GenericError.

    The new node has the cache mode and the detect-zeroes setting of the last medium.
    """
    backend.remember_root()
    state = backend.root_state
    read_only = {
        BlockdevChangeReadOnlyMode.RETAIN: state.read_only,
        BlockdevChangeReadOnlyMode.READ_ONLY: True,
        BlockdevChangeReadOnlyMode.READ_WRITE: False,
    }[mode]
    options: dict[str, Any] = {
        "detect-zeroes": state.detect_zeroes,
        "read-only": read_only,
        "cache": {"direct": state.direct, "no-flush": state.no_flush},
    }
    if format is not None:
        options["driver"] = format
    node = open_node(engine.graph, options, filename=filename)
    try:
        open_tray(engine, backend, shown, force)
        remove_medium(engine, backend, shown)
        insert_medium(engine, backend, node)
    finally:
        engine.graph.unpin(node)
    close_tray(engine, backend, shown)
