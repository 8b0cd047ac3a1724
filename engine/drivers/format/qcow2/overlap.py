"""The overlap check: no write may land on metadata it is not meant for.

All areas that are known without reading the disk are kept in sorted arrays, so one look-up costs a bisection. Only the
``inactive-l2`` class has to be read from the image each time, as QEMU does; it is off unless asked for.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import Final


class Area(enum.IntFlag):
    """Classes of metadata, with QEMU's numbering."""

    MAIN_HEADER = 1 << 0
    ACTIVE_L1 = 1 << 1
    ACTIVE_L2 = 1 << 2
    REFCOUNT_BLOCK = 1 << 3
    REFCOUNT_TABLE = 1 << 4
    SNAPSHOT_TABLE = 1 << 5
    INACTIVE_L1 = 1 << 6
    INACTIVE_L2 = 1 << 7
    BITMAP_DIRECTORY = 1 << 8

    CONSTANT = MAIN_HEADER | ACTIVE_L1 | REFCOUNT_TABLE | SNAPSHOT_TABLE | BITMAP_DIRECTORY
    CACHED = CONSTANT | ACTIVE_L2 | REFCOUNT_BLOCK | INACTIVE_L1
    ALL = CACHED | INACTIVE_L2


NAMES: Final = {
    Area.MAIN_HEADER: "qcow2_header",
    Area.ACTIVE_L1: "active L1 table",
    Area.ACTIVE_L2: "active L2 table",
    Area.REFCOUNT_BLOCK: "refcount block",
    Area.REFCOUNT_TABLE: "refcount table",
    Area.SNAPSHOT_TABLE: "snapshot table",
    Area.INACTIVE_L1: "inactive L1 table",
    Area.INACTIVE_L2: "inactive L2 table",
    Area.BITMAP_DIRECTORY: "bitmap directory",
}
"""Names in error texts."""
_CLASS_BITS: Final = 0x1FF


class OverlapIndex:
    """Where the metadata is. *mask* selects the classes that are looked for.

    Single clusters (L2 tables, refcount blocks) are one word each, offset | class bit number; larger areas are
    intervals.
    """

    def __init__(self, mask: int, cluster_size: int) -> None:
        self.mask = mask
        self.inactive_l2 = bool(mask & int(Area.INACTIVE_L2))
        """Whether the L2 tables of snapshots are to be looked for, too."""
        self._cluster_size = cluster_size
        self._points = array("Q")
        self._starts: list[int] = []
        self._reach: list[int] = []
        self._areas: list[tuple[int, int, Area]] = []

    def set_points(self, l2_tables: Iterable[int], refcount_blocks: Iterable[int]) -> None:
        """Replace all known L2 tables and refcount blocks (host offsets, 0 for none)."""
        low = self._cluster_size - 1
        points = array("Q")
        for area, offsets in ((Area.ACTIVE_L2, l2_tables), (Area.REFCOUNT_BLOCK, refcount_blocks)):
            number = area.bit_length() - 1
            if self.mask & area:
                points.extend(o | number for o in offsets if o and not o & low)
        self._points = array("Q", sorted(points))

    def set_areas(self, areas: Iterable[tuple[int, int, Area]]) -> None:
        """Replace all larger areas: (start, end, class), in any order, overlapping or not."""
        self._areas = sorted(a for a in areas if a[2] & self.mask and a[1] > a[0])
        self._starts = [start for start, _, _ in self._areas]
        self._reach = []
        reach = 0
        for _, end, _ in self._areas:
            reach = max(reach, end)
            self._reach.append(reach)

    def add(self, area: Area, offset: int) -> None:
        """A cluster became an L2 table or refcount block."""
        if self.mask & area:
            insort(self._points, offset | (area.bit_length() - 1))

    def remove(self, area: Area, offset: int) -> None:
        """The cluster is no longer one."""
        word = offset | (area.bit_length() - 1)
        at = bisect_left(self._points, word)
        if at < len(self._points) and self._points[at] == word:
            del self._points[at]

    def find(self, offset: int, size: int, ignore: int = 0) -> Area | None:
        """The class of metadata that [offset, offset + size) touches, other than the *ignore* classes; None if none."""
        end = offset + size
        points = self._points
        if points:
            at = bisect_left(points, offset & -self._cluster_size)
            while at < len(points) and points[at] < end:
                area = 1 << (points[at] & _CLASS_BITS)
                if not area & ignore:
                    return Area(area)
                at += 1
        last = bisect_right(self._starts, end - 1)
        if last and self._reach[last - 1] > offset:
            for start, stop, found in self._areas[:last]:
                if stop > offset and start < end and not found & ignore:
                    return found
        return None
