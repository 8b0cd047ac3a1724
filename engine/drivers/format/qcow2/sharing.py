"""Clusters shared between the active image and snapshots: counting the references of a whole tree up and down, and the
COPIED flags that say what is not shared.

All is called with both locks held while the image stands still and everything is on disk; L2 tables are therefore
read from and written to the file directly. Flags are changed in place: whichever of flag and refcount is on disk
first, a cluster whose flag is off is copied before it is written, and a flag is on only where the second reference is
not reachable, so no order of the two can hurt.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2.ordering import MAX_PENDING_RUNS, Freed
from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.storage import error, read_bytes
from engine.drivers.format.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_OFFSET,
    L2_OFFSET,
    compressed_clusters,
    from_disk,
    progression,
    to_disk,
    without_copied,
)

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image

_ANY_L2 = Area.ACTIVE_L2 | Area.INACTIVE_L2


def table_offset(image: Image, entry: int) -> int:
    """Host offset of the L2 table that an L1 entry names, 0 for none. Errors: OSError EIO when it can't be right."""
    offset = entry & L1_OFFSET
    if offset & image.cluster_mask:
        text = f"L2 table offset {offset:#x} unaligned"
        raise image.corrupt(text, fatal=True, offset=None)
    return offset


def read_table(image: Image, offset: int) -> array[int]:
    """All words of the L2 table at host *offset*. Errors: OSError."""
    return from_disk(read_bytes(image.file, offset, image.cluster_size))


def _write_table(image: Image, offset: int, words: array[int]) -> None:
    image.forget_table(offset)
    image.check_overlap(offset, image.cluster_size, int(_ANY_L2))
    image.file.write(offset, memoryview(to_disk(words)))


def host_runs(image: Image, words: array[int]) -> Iterator[tuple[int, int, int, int]]:
    """(number of the first entry, entries, first host cluster, host clusters) of all of a table that has host space.

    Compressed entries come singly. Errors: OSError EIO for an offset that can't be right.
    """
    entries = words[::2] if image.extended else words
    at, total = 0, len(entries)
    while at < total:
        word = entries[at]
        if word & COMPRESSED:
            offset, clusters = compressed_clusters(word, image.cluster_bits)
            yield at, 1, offset >> image.cluster_bits, clusters
            at += 1
            continue
        host = word & L2_OFFSET
        if not host:
            at += progression(entries, at, total - at, 0)
            continue
        if host & image.cluster_mask:
            raise image.corrupt(f"Cluster allocation offset {host:#x} unaligned", fatal=True)
        run = progression(entries, at, total - at, image.cluster_size)
        yield at, run, host >> image.cluster_bits, run
        at += run


# -- up ----------------------------------------------------------------------------------------------------------------


def share(image: Image, l1: array[int]) -> None:
    """Add a reference to everything that the tree under *l1* maps, tables included, and take its L2 tables' COPIED
    flags off: it is shared from now on. All or nothing, but for flags that are off. Errors: OSError.
    """
    raised: list[tuple[int, int]] = []
    change = image.refcounts.change

    def add(cluster: int, count: int) -> None:
        change(cluster, count, 1)
        if raised and raised[-1][0] + raised[-1][1] == cluster:
            raised[-1] = (raised[-1][0], raised[-1][1] + count)
        else:
            raised.append((cluster, count))

    try:
        for entry in l1:
            table = table_offset(image, entry)
            if not table:
                continue
            words = read_table(image, table)
            for _, _, cluster, count in host_runs(image, words):
                add(cluster, count)
            add(table >> image.cluster_bits, 1)
            private = without_copied(words, image.entry_words)
            if private != words:
                _write_table(image, table, private)
    except BaseException:
        for cluster, count in raised:
            change(cluster, count, -1)
        raise


# -- down --------------------------------------------------------------------------------------------------------------


def unshare(image: Image, l1: array[int], *, punch: bool) -> None:
    """Drop the references of the tree under *l1*, which nothing on disk leads to any more. What can't be read leaks.

    punch: tell the file below about clusters that nothing refers to then. Errors: OSError, after everything else was
    freed.
    """
    freed: list[Freed] = []
    failure: OSError | None = None
    for entry in l1:
        try:
            table = table_offset(image, entry)
            if not table:
                continue
            words = read_table(image, table)
            freed += [Freed(cluster, count, punch) for _, _, cluster, count in host_runs(image, words)]
        except OSError as exc:
            failure = exc
            continue
        freed.append(Freed(table >> image.cluster_bits, 1, punch))
        if len(freed) > MAX_PENDING_RUNS:
            image.ordering.free_now(freed)
            freed = []
    image.ordering.free_now(freed)
    if failure is not None:
        raise failure


# -- flags -------------------------------------------------------------------------------------------------------------


def refresh_copied(image: Image) -> None:
    """Set and clear the COPIED flags of the active tables as the refcounts have it. Errors: OSError."""
    image.check_alive()
    for index, entry in enumerate(image.l1):
        table = table_offset(image, entry)
        if not table:
            continue
        words = read_table(image, table)
        wanted = without_copied(words, image.entry_words)
        alone = image.refcounts.get(table >> image.cluster_bits) == 1
        if alone:
            _mark_own(image, wanted)
        if wanted != words:
            _write_table(image, table, wanted)
        flagged = table | (COPIED if alone else 0)
        if flagged != entry:
            image.l1[index] = flagged
            image.ordering.dirty_l1.add(index)


def _mark_own(image: Image, words: array[int]) -> None:
    width = image.entry_words
    for at, _, cluster, clusters in host_runs(image, words):
        if words[at * width] & COMPRESSED:
            continue
        for first, length in image.refcounts.runs_of_one(cluster, clusters):
            start = at + first - cluster
            for position in range(start * width, (start + length) * width, width):
                words[position] |= COPIED


def require_still(image: Image) -> None:
    """Errors: OSError EBUSY while a request uses host clusters: whole trees are exchanged in a still image only."""
    if image.traffic.busy:
        raise error(errno.EBUSY)
