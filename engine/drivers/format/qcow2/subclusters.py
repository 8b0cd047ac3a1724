"""Allocating writes to images with extended L2 entries: 32 subclusters a cluster, each with a state of its own.

A cluster that is ours alone takes new subclusters in place; another gets a new host cluster, into which only the
subclusters touched are copied if it was unallocated, else (shared with a snapshot, or compressed) all of it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.mapping import check_extended, subcluster_kind
from engine.drivers.format.qcow2.tables import (
    ALL_ALLOCATED,
    COMPRESSED,
    COPIED,
    L2_OFFSET,
    NORMAL,
    UNALLOCATED,
    UNALLOCATED_OWNED,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    progression,
)

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image


def mask(first: int, last: int) -> int:
    """Bits of subclusters *first* up to, not including, *last*."""
    return (1 << last) - (1 << first)


def allocate_bits(bitmap: int, bits: int) -> int:
    """*bitmap* with the subclusters in *bits* allocated, hence not reading as zeros."""
    return (bitmap | bits) & ~(bits << 32)


def plan(image: Image, start: int, end: int, table: int, entry: int, count: int) -> writing.Allocation:
    """The allocation for a beginning of guest range [start, end), *count* clusters of one L2 slice."""
    slice_ = image.l2_slice(table, entry)
    at = entry & (image.slice_entries - 1)
    word, bitmap = slice_.words[2 * at], slice_.words[2 * at + 1]
    check_extended(image, word, bitmap, table, entry, start)
    step = writing.Allocation()
    step.taken = (0, 0)
    step.fresh = False
    step.base = start & ~image.cluster_mask
    step.start = start
    if word & COPIED and not word & COMPRESSED and (word & L2_OFFSET or image.data_file is not None):
        _reuse(image, step, end, word, bitmap)
    else:
        entries = slice_.words[2 * at : 2 * (at + count) : 2]
        bitmaps = slice_.words[2 * at + 1 : 2 * (at + count) : 2]
        _replace(image, step, end, entries, bitmaps)
    writing.begin(image, step, slice_, at)
    return step


def _edges(image: Image, step: writing.Allocation) -> tuple[int, int]:
    """Subclusters that the write touches, in its first and in its last cluster: (first, past the last)."""
    first = (step.start & image.cluster_mask) // image.subcluster_size
    last = ((step.stop - 1) & image.cluster_mask) // image.subcluster_size + 1
    return first, last


def _reuse(image: Image, step: writing.Allocation, end: int, word: int, bitmap: int) -> None:
    """Allocate more subclusters in the cluster's own host cluster."""
    size = image.subcluster_size
    step.count = 1
    step.host = word & L2_OFFSET
    step.stop = min(end, step.base + image.cluster_size)
    first, last = _edges(image, step)
    if image.data_file is None:
        image.check_overlap(step.host, image.cluster_size)
    head = subcluster_kind(image, word, bitmap, first)
    tail = subcluster_kind(image, word, bitmap, last - 1)
    # A subcluster with data keeps what surrounds the write; others are filled up from what shows through.
    step.copy_start = step.start if head == NORMAL else step.base + first * size
    step.copy_stop = step.stop if tail == NORMAL else step.base + last * size
    step.zero = _zero(image, step, head, tail)
    step.words = array("Q", (word, allocate_bits(bitmap, mask(first, last))))


def _zero(image: Image, step: writing.Allocation, head: int, tail: int) -> bool:
    """Whether what is copied around the write is known to be zeros."""
    shown = writing.shows_zeros(image, step.base)
    for kind, used in ((head, step.copy_start < step.start), (tail, step.copy_stop > step.stop)):
        if not used or kind in (ZERO_PLAIN, ZERO_ALLOCATED):
            continue
        if kind not in (UNALLOCATED, UNALLOCATED_OWNED) or not shown:
            return False
    return True


def _replace(image: Image, step: writing.Allocation, end: int, entries: array[int], bitmaps: array[int]) -> None:
    """New host clusters for clusters that have none, or one that is shared or compressed."""
    cluster_size, size = image.cluster_size, image.subcluster_size
    word = entries[0]
    whole = bool(word & (COMPRESSED | L2_OFFSET))
    count = 1 if whole else progression(entries, 0, len(entries), 0)
    step.host, step.count = writing.take_clusters(image, step, step.base, count)
    past = step.base + step.count * cluster_size
    step.stop = min(end, past)
    count = step.count
    if whole:
        step.copy_start, step.copy_stop = step.base, past
        step.zero = False
        new = [ALL_ALLOCATED]
    else:
        first, last = _edges(image, step)
        final = step.base + (count - 1) * cluster_size
        step.copy_start = step.base + first * size
        step.copy_stop = final + last * size
        head = subcluster_kind(image, word, bitmaps[0], first)
        tail = subcluster_kind(image, word, bitmaps[count - 1], last - 1)
        step.zero = _zero(image, step, head, tail)
        new = [ALL_ALLOCATED] * count
        new[0] = allocate_bits(bitmaps[0], mask(first, last if count == 1 else 32))
        if count > 1:
            new[-1] = allocate_bits(bitmaps[count - 1], mask(0, last))
    words = array("Q")
    for index, bitmap in enumerate(new):
        words.extend(((step.host + index * cluster_size) | COPIED, bitmap))
    step.words = words
