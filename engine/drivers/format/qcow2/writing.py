"""Writing guest data: in place where a cluster is ours alone, else into new clusters with copy-on-write around the
edges.

An allocating write claims its guest clusters (others that overlap wait), writes data and copied edges outside the
lock, and only then links the new clusters in the L2 slice, which it keeps pinned meanwhile.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2 import subclusters
from engine.drivers.format.qcow2.mapping import run_at
from engine.drivers.format.qcow2.reading import read_for_copy
from engine.drivers.format.qcow2.storage import c_hex
from engine.drivers.format.qcow2.tables import (
    COMPRESSED,
    COMPRESSED_DATA,
    COPIED,
    L2_OFFSET,
    NORMAL,
    UNALLOCATED,
    ZERO,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    compressed_clusters,
    progression,
)

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.cache import Slice
    from engine.drivers.format.qcow2.image import Image

MERGE_LIMIT: Final = 1 << 20
"""Data and edges up to this many bytes together are put into one buffer and written at once."""
ZERO_LIMIT: Final = 64 << 10
"""Edges of zeros longer than this are written with write_zeroes."""


class InPlace:
    """Guest bytes [start, stop) go to host offset *host* as they are."""

    __slots__ = ("epoch", "host", "start", "stop")

    def __init__(self, start: int, stop: int, host: int, epoch: int) -> None:
        self.start = start
        self.stop = stop
        self.host = host
        self.epoch = epoch


class Allocation:
    """Clusters being allocated for a write of guest bytes [start, stop).

    base: guest offset of the first cluster; count: clusters; host: where they are. [copy_start, copy_stop): what has
    to be written so that the clusters may be linked. fresh: the host space is a hole. zero: what is copied is known
    to be zeros. words: L2 words to store at index *at* of *table*. taken: clusters allocated for it. claim: its entry
    in the traffic.
    """

    __slots__ = (
        "at",
        "base",
        "claim",
        "copy_start",
        "copy_stop",
        "count",
        "fresh",
        "host",
        "start",
        "stop",
        "table",
        "taken",
        "words",
        "zero",
    )

    base: int
    count: int
    host: int
    start: int
    stop: int
    copy_start: int
    copy_stop: int
    fresh: bool
    zero: bool
    table: Slice
    at: int
    words: array[int]
    taken: tuple[int, int]
    claim: tuple[int, int]


def write(image: Image, offset: int, data: memoryview) -> None:
    """Write *data* at guest *offset*, within the image. Errors: OSError."""
    image.prepare_modify()
    end = offset + len(data)
    at = offset
    while at < end:
        with image.lock:
            step = plan(image, at, end)
        part = data[at - offset : step.stop - offset]
        if isinstance(step, InPlace):
            try:
                image.announce("write_aio")
                image.data.write(step.host, part)
            finally:
                image.traffic.leave(step.epoch)
        else:
            _write_allocation(image, step, part)
        at = step.stop
    if image.ordering.overdue:
        image.ordering.write_back()


def _write_allocation(image: Image, step: Allocation, data: memoryview) -> None:
    try:
        _fill(image, step, data)
    except BaseException:
        with image.lock:
            abandon(image, step)
        raise
    with image.lock:
        link(image, step)


def _fill(image: Image, step: Allocation, data: memoryview) -> None:
    """Write the data and what surrounds it in the new clusters."""
    head = step.start - step.copy_start
    tail = step.copy_stop - step.stop
    where = step.host + (step.start - step.base)
    if not (head or tail) or (step.zero and step.fresh):
        image.announce("write_aio")
        image.data.write(where, data)
    elif step.zero and head + tail > ZERO_LIMIT:
        for start, length in ((where - head, head), (where + len(data), tail)):
            if length:
                image.announce("cluster_alloc_space")
                image.data.write_zeroes(start, length)
        image.announce("write_aio")
        image.data.write(where, data)
    elif head + len(data) + tail <= MERGE_LIMIT:
        whole = memoryview(bytearray(head + len(data) + tail))
        if not step.zero:
            read_for_copy(image, step.copy_start, whole[:head])
            read_for_copy(image, step.stop, whole[len(whole) - tail :])
        whole[head : head + len(data)] = data
        image.announce("write_aio")
        image.data.write(where - head, whole)
    else:
        for start, length, target in (
            (step.copy_start, head, where - head),
            (step.stop, tail, where + len(data)),
        ):
            if length:
                edge = memoryview(bytearray(length))
                if not step.zero:
                    read_for_copy(image, start, edge)
                image.announce("cow_write")
                image.data.write(target, edge)
        image.announce("write_aio")
        image.data.write(where, data)


# -- under the lock ----------------------------------------------------------------------------------------------------


def plan(image: Image, start: int, end: int) -> InPlace | Allocation:
    """The next step of a write to [start, end): covers a beginning of it. Waits for others. Errors: OSError."""
    first = start & ~image.cluster_mask
    last = (end + image.cluster_mask) & ~image.cluster_mask
    while True:
        image.check_alive()
        free = image.traffic.free_until(first, last)
        if free > first:
            break
        image.traffic.wait()
    end = min(end, free)
    index = start >> image.l1_shift
    entry = (start >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
    at = entry & (image.slice_entries - 1)
    count = min((end - first + image.cluster_mask) >> image.cluster_bits, image.slice_entries - at)
    end = min(end, first + (count << image.cluster_bits))
    table = image.l2_table(index)
    if table and image.l1[index] & COPIED:
        step = _in_place(image, start, end, table, entry, at, count)
        if step is not None:
            return step
    table = image.writable_l2_table(index)
    if image.extended:
        return subclusters.plan(image, start, end, table, entry, count)
    return _allocate(image, start, end, table, entry, at, count)


def _in_place(image: Image, start: int, end: int, table: int, entry: int, at: int, count: int) -> InPlace | None:
    """The step for a beginning of [start, end) whose clusters are written where they are; None if the first is not."""
    words = image.l2_slice(table, entry).words
    word = words[at * image.entry_words]
    if not word & COPIED or word & (COMPRESSED | ZERO):
        return None
    host = word & L2_OFFSET
    if host & image.cluster_mask:
        raise image.corrupt(f"Data cluster offset {host:#x} unaligned (guest offset: {c_hex(start)})", fatal=True)
    if image.extended or image.data_file is not None or not host:
        kind, length, host = run_at(image, start, end - start)
        if kind != NORMAL:
            return None
    else:
        inside = start & image.cluster_mask
        length = min((progression(words, at, count, image.cluster_size) << image.cluster_bits) - inside, end - start)
        host += inside
    if image.data_file is None:
        image.check_overlap(host, length)
    return InPlace(start, start + length, host, image.traffic.enter())


def _allocate(image: Image, start: int, end: int, table: int, entry: int, at: int, count: int) -> Allocation:
    cluster_size = image.cluster_size
    slice_ = image.l2_slice(table, entry)
    words = slice_.words
    base = start & ~image.cluster_mask
    # Validates the entry, too.
    kind, _, host = run_at(image, base, cluster_size)
    word = words[at]
    step = Allocation()
    step.fresh = False
    step.taken = (0, 0)
    if kind == ZERO_ALLOCATED and word & COPIED:
        count = progression(words, at, count, cluster_size)
        if image.data_file is None:
            image.check_overlap(host, count << image.cluster_bits)
    else:
        if kind == COMPRESSED_DATA:
            count = 1
        else:
            count = progression(words, at, count, cluster_size if word & L2_OFFSET else 0)
        host, count = take_clusters(image, step, base, count)
    step.base = base
    step.count = count
    step.host = host
    step.start = start
    step.stop = min(end, base + (count << image.cluster_bits))
    step.copy_start = base
    step.copy_stop = base + (count << image.cluster_bits)
    step.zero = kind in (ZERO_PLAIN, ZERO_ALLOCATED) or (kind == UNALLOCATED and shows_zeros(image, base))
    step.words = array("Q", range(host | COPIED, (host | COPIED) + count * cluster_size, cluster_size))
    begin(image, step, slice_, at)
    return step


def take_clusters(image: Image, step: Allocation, base: int, count: int) -> tuple[int, int]:
    """(host offset, clusters) for up to *count* clusters at guest offset *base*; sets taken and fresh. Errors:
    OSError.
    """
    if image.data_file is not None:
        return base, count
    fresh_from = image.high_water
    cluster, count = image.refcounts.allocate(count, "data cluster")
    step.taken = (cluster, count)
    step.fresh = cluster << image.cluster_bits >= fresh_from
    return cluster << image.cluster_bits, count


def shows_zeros(image: Image, offset: int) -> bool:
    """Whether unallocated clusters from *offset* on read as zeros for want of anything below them."""
    backing = image.backing()
    return backing is None or offset >= backing.length


def begin(image: Image, step: Allocation, table: Slice, at: int) -> None:
    """The allocation is under way: nobody else may touch its guest clusters, and its L2 slice stays in memory."""
    step.table = table
    step.at = at
    step.claim = image.traffic.claim(step.base, step.base + (step.count << image.cluster_bits))
    table.pins += 1


def abandon(image: Image, step: Allocation) -> None:
    """Undo an allocation that was not linked."""
    cluster, count = step.taken
    if count:
        image.undo_allocation(cluster, count)
    step.table.pins -= 1
    image.traffic.release(step.claim)


def link(image: Image, step: Allocation) -> None:
    """Put the clusters, now filled, into the L2 slice; what was there loses its references."""
    table = step.table
    width = image.entry_words
    start, stop = step.at * width, (step.at + step.count) * width
    if step.taken[1]:
        # The run is of one kind: all compressed (one cluster), all with adjacent host clusters, or all without.
        free_entry(image, table.words[start], None, step.count)
    table.words[start:stop] = step.words
    image.mark_slice(table, start, stop)
    table.generation = image.ordering.bump()
    table.pins -= 1
    image.traffic.release(step.claim)


def free_entry(image: Image, word: int, punch: bool | None, count: int = 1) -> None:
    """*count* L2 entries from *word* on, in steps of a cluster, go away: their host clusters lose a reference.

    punch: see Image.defer_free.
    """
    if word & COMPRESSED:
        offset, clusters = compressed_clusters(word, image.cluster_bits)
        image.defer_free(offset >> image.cluster_bits, clusters, punch=punch)
    elif word & L2_OFFSET and image.data_file is None:
        image.defer_free((word & L2_OFFSET) >> image.cluster_bits, count, punch=punch)
