"""DirtyBitmap: which parts of a node were written since."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engine.bitmaps.hbitmap import HBitmap

if TYPE_CHECKING:
    from engine.graph.node import Node

DEFAULT_GRANULARITY = 64 << 10
SMALLEST_DEFAULT = 4 << 10


def default_granularity(node: Node) -> int:
    """Bytes a bit stands for when nobody says: the cluster size, between 4 KiB and 64 KiB; 64 KiB when unknown."""
    info = node.driver.info()
    if info is None or not info.cluster_size:
        return DEFAULT_GRANULARITY
    return max(SMALLEST_DEFAULT, min(info.cluster_size, DEFAULT_GRANULARITY))


class DirtyBitmap:
    """A bitmap that a node's writes set bits in while it is attached and enabled. Any thread.

    It is one of ``node.trackers``: called after each write, zero write and discard, failed ones too.
    """

    def __init__(self, node: Node, granularity: int, name: str | None = None) -> None:
        self.node = node
        self.name = name
        self.enabled = True
        self.busy = False
        self.persistent = False
        self.inconsistent = False
        self._lock = threading.Lock()
        self._bits = HBitmap(node.length, granularity)

    def __call__(self, offset: int, length: int, /) -> None:
        if self.enabled:
            self.set(offset, length)

    def attach(self) -> None:
        """Begin to see the node's writes. Control plane; the node is drained, or what is missed does not matter."""
        self.node.trackers = (*self.node.trackers, self)

    def detach(self) -> None:
        """See them no more. Control plane."""
        self.node.trackers = tuple(tracker for tracker in self.node.trackers if tracker is not self)

    @property
    def granularity(self) -> int:
        return self._bits.granularity

    @property
    def count(self) -> int:
        """Dirty bytes."""
        with self._lock:
            return self._bits.count

    def set(self, offset: int, length: int) -> None:
        """Mark a range dirty; what lies beyond the bitmap's length is left out."""
        with self._lock:
            self._bits.set(offset, length)

    def reset(self, offset: int, length: int) -> None:
        """Mark a range clean."""
        with self._lock:
            self._bits.reset(offset, length)

    def take_area(self, offset: int, longest: int) -> tuple[int, int] | None:
        """Clear and return the first dirty area at or after *offset*, at most *longest* bytes of it."""
        with self._lock:
            area = self._bits.next_dirty_area(offset, longest=longest)
            if area is not None:
                self._bits.reset(*area)
            return area


def bitmaps_of(node: Node) -> list[DirtyBitmap]:
    """The dirty bitmaps attached to *node*, oldest first."""
    return [tracker for tracker in node.trackers if isinstance(tracker, DirtyBitmap)]
