"""Recognising the format of an image by its first bytes."""

from __future__ import annotations

from engine.graph.driver import Driver, drivers
from engine.graph.node import Node

SURE = 100
"""Score of a driver that no other can outdo."""
PROBE_SIZE = 512
"""Bytes of an image that format drivers may look at to recognise it."""


def format_of(head: bytes, filename: str) -> type[Driver]:
    """The format driver with the highest score for the first bytes of an image; raw when none claims it."""
    best, best_score = drivers["raw"], 0
    if head:
        for cls in drivers.probers(head):
            score = cls.probe(head, filename)
            if score > best_score:
                best, best_score = cls, score
            if best_score == SURE:
                break
    return best


def probe_format(node: Node, filename: str) -> type[Driver]:
    """The format driver of the image in the protocol node *node*. Errors: OSError."""
    head = bytearray(min(PROBE_SIZE, node.length))
    node.read(0, memoryview(head))
    return format_of(bytes(head), filename)
