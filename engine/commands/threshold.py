"""block-set-write-threshold and its event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.node import Node
from engine.graph.threshold import set_write_threshold
from engine.qapi import Struct, UInt64, command, event

if TYPE_CHECKING:
    from engine.engine import Engine


@event
class BlockWriteThreshold(Struct, name="BLOCK_WRITE_THRESHOLD"):
    """A write went past the threshold of a node, which is forgotten now.

    node_name: the node
    amount_exceeded: bytes past the threshold
    write_threshold: where it was, bytes
    """

    node_name: str
    amount_exceeded: UInt64
    write_threshold: UInt64


@command(since="2.3", allow_preconfig=True)
def block_set_write_threshold(engine: Engine, *, node_name: str, write_threshold: UInt64) -> None:
    """Be told when a node is written to past an offset: once, by BLOCK_WRITE_THRESHOLD.

    node_name: the node; the protocol node of an image shows when its file grows
    write_threshold: the offset, bytes; 0 for none
    """
    node = engine.graph.nodes.get(node_name)
    if node is None:
        raise GenericError(f"Device '{node_name}' not found")

    def told(node: Node, over: int, limit: int) -> None:
        engine.emit(BlockWriteThreshold(node_name=node.name, amount_exceeded=over, write_threshold=limit))

    set_write_threshold(node, write_threshold, told)
