"""Graph: all nodes and block back ends of one engine, their names and their lives."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from engine.descriptors.fdsets import FdSets
from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend
from engine.graph.change import Transaction, attach, detach, loosen, refresh_permissions
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm, Role
from engine.graph.policy import OpenPolicy
from engine.names import id_wellformed as id_wellformed
from engine.objects.store import Objects
from engine.qapi import Struct

NODE_NAME_MAX = 31


class Control(Protocol):
    """The way from a data-plane thread to the control plane."""

    def post(self, function: Callable[[], None]) -> None:
        """Run *function* on the control plane soon; any thread; in the order of the calls."""


class Graph:
    """Nodes and back ends. Methods belong to the control plane, but for changed(), emit() and report_corruption()."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.nodes: dict[str, Node] = {}
        self.backends: list[BlockBackend] = []
        self.policy = OpenPolicy()
        self.objects = Objects()
        self.fdsets = FdSets()
        self.generation = 0
        self.on_change: list[Callable[[int], None]] = []
        self.on_corruption: list[Callable[[Node, str, int | None, int | None, bool], None]] = []
        self.on_event: list[Callable[[Struct], None]] = []
        self._auto_names = 0

    # -- notices ---------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something that the picture of the graph shows is different. Any thread."""
        self.generation += 1
        for callback in self.on_change:
            callback(self.generation)

    def emit(self, event: Struct) -> None:
        """Pass an event that a driver declares (``engine.qapi.event``) on to whoever listens. Any thread."""
        for callback in self.on_event:
            callback(event)

    def report_corruption(self, node: Node, message: str, offset: int | None, size: int | None, fatal: bool) -> None:
        """Pass a driver's report on to the control plane. Any thread."""

        def report() -> None:
            node.error = message
            self.changed()
            for callback in self.on_corruption:
                callback(node, message, offset, size, fatal)

        self.control.post(report)

    # -- names -----------------------------------------------------------------------------------------------

    def name_node(self, node: Node, name: str | None) -> None:
        """Give *node* its name (generated when None) and register it. Errors: GenericError."""
        if name is None:
            while True:
                name = f"#block{self._auto_names}{random.randrange(100):02d}"
                self._auto_names += 1
                if name not in self.nodes:
                    break
            node.auto_name = True
        else:
            if not id_wellformed(name):
                raise GenericError(f"Invalid node-name: '{name}'")
            if self.find_backend(name) is not None:
                raise GenericError(f"node-name={name} is conflicting with a device id")
            if name in self.nodes:
                raise GenericError(f"Duplicate nodes with node-name='{name}'")
            if len(name) > NODE_NAME_MAX:
                raise GenericError("Node name too long")
        node.name = name
        self.nodes[name] = node

    def list_last(self, node: Node) -> None:
        """Make *node* the newest in the order of names."""
        del self.nodes[node.name]
        self.nodes[node.name] = node

    def find_backend(self, name: str) -> BlockBackend | None:
        """The named back end (device), or None."""
        if not name:
            return None
        return next((backend for backend in self.backends if backend.name == name), None)

    def find(self, device: str | None, node_name: str | None) -> Node:
        """The node that *device* (name of a back end) or *node_name* means. Errors: GenericError."""
        if device:
            backend = self.find_backend(device)
            if backend is not None:
                if backend.root is None:
                    raise GenericError(f"Device '{device}' has no medium")
                return backend.root.child
        if node_name and node_name in self.nodes:
            return self.nodes[node_name]
        raise GenericError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")

    def find_either(self, name: str) -> Node:
        """The node of the device or with the node name *name*. Errors: GenericError."""
        return self.find(name, name)

    def node(self, name: str) -> Node:
        """The node called *name*. Errors: GenericError."""
        try:
            return self.nodes[name]
        except KeyError:
            raise GenericError(f"Failed to find node with node-name='{name}'") from None

    def device(self, name: str) -> BlockBackend:
        """The back end called *name*. Errors: DeviceNotFound."""
        backend = self.find_backend(name)
        if backend is None:
            raise DeviceNotFound(f"Device '{name}' not found")
        return backend

    # -- back ends -------------------------------------------------------------------------------------------

    def add_backend(
        self, kind: str, name: str, node: Node | None, perm: Perm, shared: Perm, *, description: str | None = None
    ) -> BlockBackend:
        """A new back end of *kind*, attached to *node*. Errors: GenericError (permissions)."""
        backend = BlockBackend(kind, name, perm, shared, description=description)
        if node is not None:
            self.insert(backend, node)
        self.backends.append(backend)
        self.changed()
        return backend

    def insert(self, backend: BlockBackend, node: Node) -> None:
        """Attach *backend* to *node*. Errors: GenericError (permissions)."""

        def hold(edge: Edge | None) -> None:
            backend.root = edge

        with Transaction() as txn:
            attach(txn, backend, node, "root", Role.FILTERED | Role.PRIMARY, backend.perm, backend.shared, holder=hold)
            refresh_permissions(txn, [node])

    def eject(self, backend: BlockBackend) -> None:
        """Detach *backend* from its node, which goes when nothing else holds it."""
        edge = backend.root
        if edge is None:
            return
        while backend.on_eject:
            backend.on_eject.pop()()

        def hold(value: Edge | None) -> None:
            backend.root = value

        edge.frozen = False
        child = edge.child
        with Transaction() as txn:
            detach(txn, edge, holder=hold)
        loosen([child])

    def remove_backend(self, backend: BlockBackend) -> None:
        """Flush, detach and forget *backend*."""
        if backend.root is not None:
            self.eject(backend)
        self.backends.remove(backend)
        backend.set_limiter(None)
        self.changed()

    # -- lives -----------------------------------------------------------------------------------------------

    def release_if_unused(self, node: Node) -> None:
        """Close *node*, and whatever only it held, when no parent, no operation and not the monitor holds it."""
        if node.closed or node.parents or node.monitor_owned or node.pins:
            return
        self._close(node)

    def unpin(self, node: Node) -> None:
        """Give back a reference held by a running operation."""
        node.pins -= 1
        self.release_if_unused(node)

    def _close(self, node: Node) -> None:
        node.closed = True
        node.iothread = None
        try:
            if node.opened:
                # What was written goes to stable storage, as when QEMU closes a node; nobody is left to tell of errors.
                with suppress(OSError):
                    node.flush()
                node.driver.close()
        finally:
            children = []
            for edge in list(node.children.values()):
                edge.frozen = False
                children.append(edge.child)
                edge.child.pins += 1
                with Transaction() as txn:
                    detach(txn, edge)
            if self.nodes.get(node.name) is node:
                del self.nodes[node.name]
            loosen(children)
            for child in children:
                if child.inherits_from is node:
                    child.inherits_from = None
                self.unpin(child)
        self.changed()

    def close(self) -> None:
        """Close everything: back ends first, then the monitor's nodes. Data written is flushed by the drivers."""
        for backend in list(self.backends):
            self.remove_backend(backend)
        for node in list(self.nodes.values()):
            node.monitor_owned = False
            node.pins = 0
            self.release_if_unused(node)
