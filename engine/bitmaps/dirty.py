"""DirtyBitmap: which parts of a node were written since."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.bitmaps.hbitmap import HBitmap
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.graph.node import Node
    from engine.graph.requests import RequestPath

DEFAULT_GRANULARITY = 64 << 10
SMALLEST_DEFAULT = 4 << 10
SMALLEST_GRANULARITY = 512
SECTOR = 512
MAX_NAME = 1023
"""Longest bitmap name, in bytes."""


class Refuse(enum.Flag):
    """What state of a bitmap an operation can't deal with."""

    BUSY = enum.auto()
    READONLY = enum.auto()
    INCONSISTENT = enum.auto()

    TO_READ = BUSY | INCONSISTENT
    """For operations that leave the bits alone (QEMU's BDRV_BITMAP_ALLOW_RO)."""
    TO_CHANGE = BUSY | READONLY | INCONSISTENT
    """QEMU's BDRV_BITMAP_DEFAULT."""


def round_up(length: int) -> int:
    """*length* in whole sectors, as the lengths of bitmaps are."""
    return -(-length // SECTOR) * SECTOR


def default_granularity(node: Node) -> int:
    """Bytes a bit stands for when nobody says: the cluster size, between 4 KiB and 64 KiB; 64 KiB when unknown."""
    info = node.driver.info()
    if info is None or not info.cluster_size:
        return DEFAULT_GRANULARITY
    return max(SMALLEST_DEFAULT, min(info.cluster_size, DEFAULT_GRANULARITY))


class DirtyBitmap:
    """A bitmap that a node's writes set bits in while it is attached and enabled.

    It is one of ``node.trackers``: called after each write, zero write and discard, failed ones too. Bits may be used
    in any thread; the state (enabled, busy, ...) is changed on the control plane.

    name: None for those of jobs. busy: a job or export uses it. readonly: its image is. persistent: it is stored in
    the image when that is closed, unless skip_store says that its removal is on the way. inconsistent: it was not
    stored properly; its bits mean nothing. successor: records instead of this one, while that is frozen.
    """

    def __init__(self, node: Node, granularity: int, name: str | None = None) -> None:
        self.node = node
        self.name = name
        self.enabled = True
        self.busy = False
        self.readonly = False
        self.persistent = False
        self.inconsistent = False
        self.skip_store = False
        self.successor: DirtyBitmap | None = None
        self.recorded = 0
        """Writes recorded so far."""
        self._lock = threading.Lock()
        self._bits = HBitmap(round_up(node.length), granularity)

    def __repr__(self) -> str:
        return f"<DirtyBitmap {self.name!r} of {self.node.name}>"

    def __call__(self, offset: int, length: int, /) -> None:
        if self.enabled:
            with self._lock:
                end = offset + length
                if end > self._bits.length:
                    # The write made a file longer.
                    self._bits.truncate(round_up(end))
                self._bits.set(offset, length)
                self.recorded += 1
        else:
            successor = self.successor
            if successor is not None:
                # This write may have begun before the successor was attached.
                successor(offset, length)

    def attach(self) -> None:
        """Begin to see the node's writes. Control plane; the node is drained, or what is missed does not matter."""
        # The newest is first: that is the order in which bitmaps are listed, and reclaim() relies on a successor
        # hearing of a write before its parent.
        self.node.trackers = (self, *self.node.trackers)

    def detach(self) -> None:
        """See them no more. Control plane."""
        self.node.trackers = tuple(tracker for tracker in self.node.trackers if tracker is not self)

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def recording(self) -> bool:
        """Whether writes are recorded, here or in the successor."""
        return self.enabled or (self.successor is not None and self.successor.enabled)

    def check(self, refuse: Refuse) -> None:
        """Errors: GenericError when the bitmap is in a state that *refuse* names."""
        if Refuse.BUSY in refuse and self.busy:
            raise GenericError(f"Bitmap '{self.name}' is currently in use by another operation and cannot be used")
        if Refuse.READONLY in refuse and self.readonly:
            raise GenericError(f"Bitmap '{self.name}' is readonly and cannot be modified")
        if Refuse.INCONSISTENT in refuse and self.inconsistent:
            raise GenericError(
                f"Bitmap '{self.name}' is inconsistent and cannot be used",
                hint="Try block-dirty-bitmap-remove to delete this bitmap from disk",
            )

    def create_successor(self) -> DirtyBitmap:
        """Freeze this bitmap for a job (busy): what is written from now on goes to an anonymous successor.

        Control plane. One of abdicate() and reclaim() ends it. Errors: GenericError when it is busy.
        """
        self.check(Refuse.BUSY)
        if self.successor is not None:
            raise GenericError("Cannot create a successor for a bitmap that already has one")
        child = DirtyBitmap(self.node, self.granularity)
        child.enabled = self.enabled
        child.attach()
        self.successor = child
        self.enabled = False
        self.busy = True
        return child

    def abdicate(self) -> DirtyBitmap:
        """The successor takes name and place of this bitmap, whose bits are done with; return it. Control plane."""
        child = self.successor
        assert child is not None
        child.name, self.name = self.name, None
        child.persistent, self.persistent = self.persistent, False
        child.skip_store = self.skip_store
        self.busy = False
        # It goes on passing what late writes tell it to the successor.
        self.detach()
        return child

    def reclaim(self) -> None:
        """Unfreeze: take over the bits of the successor and end that. Control plane."""
        child = self.successor
        assert child is not None
        # Recording begins first: a write whose call of the child comes after the merge is seen here by its next call.
        self.enabled = child.enabled
        self.merge(child)
        self.busy = False
        self.successor = None
        child.detach()

    # -- bits ------------------------------------------------------------------------------------------------

    @property
    def granularity(self) -> int:
        return self._bits.granularity

    @property
    def length(self) -> int:
        """Bytes of the disk that the bitmap stands for."""
        return self._bits.length

    @property
    def count(self) -> int:
        """Dirty bytes; the last granule counts whole."""
        with self._lock:
            return self._bits.count

    def set(self, offset: int, length: int) -> None:
        """Mark a range dirty; what lies beyond the bitmap's length is left out."""
        with self._lock:
            self._bits.set(offset, length)

    def reset(self, offset: int, length: int) -> None:
        """Mark a range clean: every granule it touches."""
        with self._lock:
            self._bits.reset(offset, length)

    def get(self, offset: int) -> bool:
        """Whether the granule at *offset* is dirty."""
        with self._lock:
            return self._bits.get(offset)

    def next_dirty(self, offset: int, end: int | None = None) -> int | None:
        """The first dirty byte at or after *offset*, below *end*."""
        with self._lock:
            return self._bits.next_dirty(offset, end)

    def next_zero(self, offset: int, end: int | None = None) -> int | None:
        """The first clean byte at or after *offset*, below *end*."""
        with self._lock:
            return self._bits.next_zero(offset, end)

    def next_area(self, offset: int, end: int | None = None, longest: int | None = None) -> tuple[int, int] | None:
        """(offset, length) of the first dirty area at or after *offset*, below *end*, at most *longest* bytes of it."""
        with self._lock:
            return self._bits.next_dirty_area(offset, end, longest)

    def areas(self) -> Iterator[tuple[int, int]]:
        """All dirty areas (offset, length) in order; bits set before the place reached meanwhile are not seen."""
        at = 0
        while (area := self.next_area(at)) is not None:
            yield area
            at = area[0] + area[1]

    def take_area(self, offset: int, longest: int) -> tuple[int, int] | None:
        """Clear and return the first dirty area at or after *offset*, at most *longest* bytes of it.

        Whole granules, one at least: clearing a part of one would forget the rest.
        """
        longest = max(longest - longest % self.granularity, self.granularity)
        with self._lock:
            area = self._bits.next_dirty_area(offset, longest=longest)
            if area is not None:
                self._bits.reset(*area)
            return area

    def clear(self) -> HBitmap:
        """Mark all clean; return the bits as they were, for restore_bits()."""
        with self._lock:
            old = self._bits
            self._bits = HBitmap(old.length, old.granularity)
            return old

    def copy_bits(self) -> HBitmap:
        """A copy of the bits as they are now."""
        with self._lock:
            return self._bits.copy()

    def replace_bits(self, bits: HBitmap) -> None:
        """Put *bits* in the place of those there are; the bitmap owns them from now on."""
        with self._lock:
            self._bits = bits

    def restore_bits(self, bits: HBitmap, recorded: int) -> None:
        """Go back to *bits*, which the bitmap had when ``recorded`` was *recorded*; later writes are not forgotten."""
        with self._lock:
            if self.recorded == recorded:
                self._bits = bits
            else:
                self._join(bits)

    def merge(self, source: DirtyBitmap) -> None:
        """Mark dirty here what is dirty in *source*; the granularities may differ, and lengths are not compared."""
        bits = source.copy_bits()
        with self._lock:
            self._join(bits)

    def _join(self, bits: HBitmap) -> None:
        # The length of a filter's node changes with the node below, which is told to the bitmaps of that node only.
        if bits.length != self._bits.length:
            bits.truncate(self._bits.length)
        self._bits.merge(bits)

    def truncate(self, length: int) -> None:
        """The disk's length has changed: new granules are clean."""
        with self._lock:
            self._bits.truncate(round_up(length))

    def sha256(self) -> str:
        """Hash of the bits in hexadecimal, as QEMU counts it: little-endian in whole words of 64 bits."""
        import hashlib

        with self._lock:
            data = self._bits.serialise(0, self._bits.length)
        return hashlib.sha256(data + bytes(-len(data) % 8 if data else 8)).hexdigest()


def bitmaps_of(node: RequestPath) -> list[DirtyBitmap]:
    """The dirty bitmaps attached to *node*, newest first, anonymous ones too."""
    return [tracker for tracker in node.trackers if isinstance(tracker, DirtyBitmap)]


def find_bitmap(node: Node, name: str) -> DirtyBitmap | None:
    """The bitmap called *name* of *node*."""
    return next((bitmap for bitmap in bitmaps_of(node) if bitmap.name == name), None)


def add_bitmap(node: Node, granularity: int, name: str) -> DirtyBitmap:
    """Attach a new named bitmap, enabled and clean. Control plane. Errors: GenericError for an unusable name."""
    if find_bitmap(node, name) is not None:
        raise GenericError(f"Bitmap already exists: {name}")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise GenericError(f"Bitmap name too long: {name}")
    bitmap = DirtyBitmap(node, granularity, name)
    bitmap.attach()
    return bitmap


def merge_checked(target: DirtyBitmap, source: DirtyBitmap) -> None:
    """target.merge(source) for a user. Errors: GenericError when the state or size of one of them forbids it."""
    target.check(Refuse.TO_CHANGE)
    source.check(Refuse.TO_READ)
    if target.length != source.length:
        raise GenericError(
            f"Bitmaps are of different sizes (destination size is {target.length}, "
            f"source size is {source.length}) and can't be merged"
        )
    target.merge(source)
