"""x-blockdev-change: children of a running node come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.change import Transaction, loosen, refresh_permissions
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.qapi import command

if TYPE_CHECKING:
    from engine.engine import Engine


@command(since="2.7", features=("unstable",), allow_preconfig=True)
def x_blockdev_change(engine: Engine, *, parent: str, child: str | None = None, node: str | None = None) -> None:
    """Give a node (quorum only, so far) one more child, or take one away.

    parent: the node, or the device it is in
    child: name of the child to take away
    node: the node to add as a child
    """
    graph = engine.graph
    top = graph.find_either(parent)
    if (child is None) == (node is None):
        raise GenericError(
            "Either child or node must be specified"
            if child is None
            else "The parameters child and node are in conflict"
        )
    if child is not None:
        _remove(top, child, parent)
    elif node is not None:
        if node not in graph.nodes:
            raise GenericError(f"Node '{node}' not found")
        _add(top, graph.nodes[node])
    top.driver.refresh_limits()
    graph.changed()


def _add(top: Node, child: Node) -> None:
    if top.driver.changes_children and child.parents:
        raise GenericError(f"The node {child.name} already has a parent")
    with drained([top, child]), Transaction() as txn:
        top.driver.add_child(txn, child)
        refresh_permissions(txn, [top])


def _remove(top: Node, name: str, given: str) -> None:
    edge = top.children.get(name)
    if edge is None:
        raise GenericError(f"Node '{given}' does not have child '{name}'")
    child = edge.child
    with drained([top, child]):
        child.pins += 1
        try:
            with Transaction() as txn:
                top.driver.remove_child(txn, edge)
                if child.inherits_from is top and all(other.parent is not top for other in child.parents):
                    child.inherits_from = None
            loosen([child])
        finally:
            child.graph.unpin(child)
