"""Which iothread serves which nodes: nodes that are linked always share one (change.follow). Control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.change import linked
from engine.graph.drain import drained

if TYPE_CHECKING:
    from engine.graph.node import Node
    from engine.objects.iothread import IOThread


def _users(node: Node) -> list[BlockBackend]:
    return [edge.parent for edge in node.parents if isinstance(edge.parent, BlockBackend)]


def has_backend(node: Node) -> bool:
    """Whether a device, an export or the like uses *node* itself."""
    return bool(_users(node))


def set_iothread(node: Node, iothread: IOThread | None, *, asked_by: BlockBackend | None = None) -> None:
    """Move *node* and all nodes linked with it to *iothread*, which *asked_by* works in, if given.

    Errors: GenericError (a user that can't follow).
    """
    if node.iothread is iothread:
        return
    nodes = linked(node)
    for each in nodes:
        for user in _users(each):
            if user is not asked_by and user.stays_in_iothread:
                raise GenericError("Cannot change iothread of active block backend")
    with drained(nodes):
        for each in nodes:
            each.iothread = iothread
