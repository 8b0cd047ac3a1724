"""A node's write threshold: the first write that ends past it is told of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.graph.node import Node

Told = Callable[["Node", int, int], None]
"""(node, bytes past the threshold, the threshold)"""


class WriteThreshold:
    """One of ``node.trackers``: calls *told*, in the writer's thread, at the first write past *limit*, in bytes."""

    def __init__(self, node: Node, limit: int, told: Told) -> None:
        self.limit = limit
        self.passed = False
        self._node = node
        self._told = told
        self._lock = threading.Lock()

    def __call__(self, offset: int, length: int, /) -> None:
        over = offset + length - self.limit
        if over <= 0 or self.passed:
            return
        with self._lock:
            if self.passed:
                return
            self.passed = True
        self._told(self._node, over, self.limit)
        self._node.graph.control.post(self._forget)

    def _forget(self) -> None:
        node = self._node
        node.trackers = tuple(tracker for tracker in node.trackers if tracker is not self)


def _thresholds(node: Node) -> list[WriteThreshold]:
    return [tracker for tracker in node.trackers if isinstance(tracker, WriteThreshold)]


def write_threshold(node: Node) -> int:
    """The threshold that waits to be passed, in bytes; 0 for none."""
    return next((threshold.limit for threshold in _thresholds(node) if not threshold.passed), 0)


def set_write_threshold(node: Node, limit: int, told: Told) -> None:
    """Replace the node's threshold; 0 for none. Control plane."""
    others = tuple(tracker for tracker in node.trackers if not isinstance(tracker, WriteThreshold))
    # Behind the bitmaps, whose order among themselves matters.
    node.trackers = (*others, WriteThreshold(node, limit, told)) if limit else others
