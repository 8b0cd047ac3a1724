"""Which node a finished mirror may take the place of (``replaces``)."""

from __future__ import annotations

from engine.errors import GenericError
from engine.graph.blockers import Op
from engine.graph.graph import Graph
from engine.graph.node import Node


def can_replace(source: Node, node: Node) -> bool:
    """Whether a copy of *source* may take the place of *node* without a sudden change of the data anybody sees.

    So it is for the source itself, for what filters show unchanged, and where a driver doesn't trust its children
    anyway (quorum). Source: QEMU's bdrv_recurse_can_replace.
    """
    return source is node or source.driver.can_replace(node)


def check_to_replace(graph: Graph, source: Node, name: str) -> Node:
    """The node called *name*, which a copy of *source* is to replace. Errors: GenericError."""
    node = graph.node(name)
    node.blockers.check(Op.REPLACE, name)
    if not can_replace(source, node):
        raise GenericError(
            f"Cannot replace '{name}' by a node mirrored from '{source.name}', because it cannot be guaranteed that "
            "doing so would not lead to an abrupt change of visible data"
        )
    return node
