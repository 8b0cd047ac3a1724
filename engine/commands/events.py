"""Events of the block layer that belong to no command, job or export."""

from __future__ import annotations

from engine.qapi import Int, Struct, event


@event
class BlockImageCorrupted(Struct, name="BLOCK_IMAGE_CORRUPTED"):
    """The metadata of an image turned out to be broken.

    device: always '' for a node without a device
    node_name: the node, if it has a name
    msg: what is wrong, for people
    offset: where, bytes, if known
    size: how much, bytes, if known
    fatal: whether the image can't be used any more until it is repaired
    """

    device: str
    node_name: str | None = None
    msg: str
    offset: Int | None = None
    size: Int | None = None
    fatal: bool
