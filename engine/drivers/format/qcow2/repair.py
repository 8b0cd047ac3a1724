"""Repairs that check makes: single refcounts, L1 and L2 entries, or all refcount structures anew.

The caller holds both locks of an image that stands still; all of it is on disk.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2.findings import CHUNK, CHUNK_BITS, Counts
from engine.drivers.format.qcow2.header import Incompatible
from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.refblock import RefcountBlock, load_block
from engine.drivers.format.qcow2.storage import error, round_up
from engine.drivers.format.qcow2.tables import L1_OFFSET, REFTABLE_OFFSET, to_disk

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image


def write_l2(image: Image, offset: int, words: array[int]) -> None:
    """Write a repaired L2 table. Errors: OSError."""
    image.forget_table(offset)
    image.write_metadata(offset, to_disk(words), Area.ACTIVE_L2)


def write_l1_entry(image: Image, index: int, entry: int) -> None:
    """Write a repaired L1 entry. Errors: OSError."""
    image.l1[index] = entry
    image.write_metadata(image.header.l1_offset + index * 8, entry.to_bytes(8, "big"), Area.ACTIVE_L1)


def set_refcount(image: Image, cluster: int, value: int) -> bool:
    """Set the refcount of *cluster*; False where it does not fit or there is no block for it."""
    refcounts = image.refcounts
    block = refcounts.usable_block(cluster // refcounts.per_block)
    if block is None or value > refcounts.maximum:
        return False
    block.fill(cluster % refcounts.per_block, 1, value)
    block.dirty = True
    refcounts.cache.touch(block)
    refcounts.hint = min(refcounts.hint, cluster)
    image.packing.forget(cluster, 1)
    return True


def write_refcounts(image: Image) -> None:
    """Bring repaired refcounts to disk. Errors: OSError."""
    image.refcounts.write_blocks()
    image.refcounts.write_table()
    image.sync()


def mark_good(image: Image) -> None:
    """Everything is right now: neither dirty nor corrupt. Errors: OSError."""
    header = image.header
    if header.incompatible & (Incompatible.DIRTY | Incompatible.CORRUPT):
        header.incompatible &= ~int(Incompatible.DIRTY | Incompatible.CORRUPT)
        image.write_header_field(*hdr.encode_features(header))
        image.sync()


def rebuild(image: Image, counts: Counts) -> None:
    """New refcount table and blocks from *counts*, behind everything in the file; then the header points to them.

    Until the header is switched, the old structures stay as they are. Errors: OSError.
    """
    refcounts, header = image.refcounts, image.header
    size, per_block = image.cluster_size, refcounts.per_block
    _forget_old_structures(image, counts)
    first = max(counts.highest() + 1, -(-image.file.length // size))
    # Blocks and table lie at the end and count themselves: add until nothing more is needed.
    blocks = table_clusters = 0
    while True:
        end = first + blocks + table_clusters
        used = {
            number for number in range(-(-end // per_block)) if _any_in_block(counts, number, per_block, first, end)
        }
        new_table = round_up((max(used) + 1) * 8, size) // size
        if len(used) == blocks and new_table == table_clusters:
            break
        blocks, table_clusters = len(used), new_table
    if table_clusters * size > hdr.MAX_REFTABLE_BYTES:
        raise error(errno.EFBIG)
    counts.add(first, blocks + table_clusters, 1)
    table = array("Q", bytes(table_clusters * size))
    for place, number in enumerate(sorted(used), first):
        table[number] = place * size
        image.file.write(place * size, memoryview(_block_of(image, counts, number, place * size).to_disk()))
    offset = (first + blocks) * size
    image.file.write(offset, memoryview(to_disk(table)))
    image.sync()
    header.reftable_offset, header.reftable_clusters = offset, table_clusters
    image.write_header_field(*hdr.encode_reftable_location(header))
    image.sync()
    refcounts.replace_table(table)
    image.high_water = max(image.high_water, offset + table_clusters * size)
    image.overlap.set_points((e & L1_OFFSET for e in image.l1), (e & REFTABLE_OFFSET for e in table))
    image.overlap_areas_changed()


def _forget_old_structures(image: Image, counts: Counts) -> None:
    """Take the old table and blocks out of the counts: nothing will point to them."""
    header, size = image.header, image.cluster_size
    old = {header.reftable_offset // size + i for i in range(header.reftable_clusters)}
    for entry in image.refcounts.table:
        offset = entry & REFTABLE_OFFSET
        if offset and not offset & image.cluster_mask:
            old.add(offset // size)
    for cluster in old:
        if counts.get(cluster):
            counts.add(cluster, 1, -1)


def _any_in_block(counts: Counts, number: int, per_block: int, first: int, end: int) -> bool:
    low, high = number * per_block, (number + 1) * per_block
    if low < end and first < high:
        return True
    step = min(per_block, CHUNK)
    return any(any(counts.part(at, step)) for at in range(low, high, step) if at >> CHUNK_BITS in counts.chunks)


def _block_of(image: Image, counts: Counts, number: int, offset: int) -> RefcountBlock:
    refcounts = image.refcounts
    block = load_block(offset, bytes(image.cluster_size), refcounts.order)
    step = min(refcounts.per_block, CHUNK)
    base = number * refcounts.per_block
    for at in range(base, base + refcounts.per_block, step):
        if at >> CHUNK_BITS not in counts.chunks:
            continue
        for i, value in enumerate(counts.part(at, step)):
            if value:
                block.fill(at - base + i, 1, min(value, refcounts.maximum))
    return block
