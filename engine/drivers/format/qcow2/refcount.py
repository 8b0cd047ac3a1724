"""Reference counts of host clusters, and the allocator that lives on them.

All methods are called with the image's lock held. Nothing here reaches the disk in an order that could hurt: blocks
are written whenever convenient (a count that is too high is a leak, and counts are lowered only after the last
reference is gone from the disk), a new block becomes visible through the refcount table only after it was written and
flushed, and a moved refcount table through the header only after that. ordering.py tells the whole story.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2.cache import TableCache
from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.refblock import RefcountBlock, load_block
from engine.drivers.format.qcow2.storage import c_hex, error, io_error, read_bytes, round_up
from engine.drivers.format.qcow2.tables import (
    MAX_HOST_OFFSET,
    REFTABLE_OFFSET,
    from_disk,
    to_disk,
)

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image


class Refcounts:
    """The refcount table, the cached blocks, and the search for free clusters. Positions are cluster numbers."""

    def __init__(self, image: Image, capacity: int) -> None:
        header = image.header
        self._image = image
        self.order = header.refcount_order
        self.maximum = (1 << (1 << self.order)) - 1
        self.per_block = (header.cluster_size * 8) >> self.order
        self.cache: TableCache[RefcountBlock] = TableCache(capacity, self._write_block)
        self.hint = 0
        """No cluster before this one is free."""
        self._dirty_entries: set[int] = set()
        self._homeless = False
        """The table in memory outgrew its place on disk and has no new one yet."""
        self._moved = False
        """The table has a new place on disk to which it has not been written yet."""
        entries = header.reftable_clusters << (header.cluster_bits - 3)
        self.table = from_disk(read_bytes(image.file, header.reftable_offset, entries * 8)) if entries else array("Q")
        self.last_cluster = MAX_HOST_OFFSET >> header.cluster_bits

    # -- blocks ----------------------------------------------------------------------------------------------

    def block(self, index: int) -> RefcountBlock | None:
        """Block *index* of the table, None where there is none. Errors: OSError."""
        if index >= len(self.table):
            return None
        offset = self.table[index] & REFTABLE_OFFSET
        if not offset:
            return None
        found = self.cache.get(offset)
        if found is None:
            image = self._image
            if offset & image.cluster_mask:
                text = f"Refblock offset {offset:#x} unaligned (reftable index: {c_hex(index)})"
                raise image.corrupt(text, fatal=True)
            self.cache.make_room()
            image.announce("refblock_load")
            found = load_block(offset, read_bytes(image.file, offset, image.cluster_size), self.order)
            self.cache.insert(found)
        return found

    def usable_block(self, index: int) -> RefcountBlock | None:
        """As block(), but None also where the table's entry can't be right (for check). Errors: OSError."""
        offset = self.table[index] & REFTABLE_OFFSET if index < len(self.table) else 0
        if offset & self._image.cluster_mask or offset >= self._image.file.length:
            return None
        return self.block(index)

    def _write_block(self, block: RefcountBlock) -> None:
        self._image.announce("refblock_update_part")
        self._image.write_metadata(block.offset, block.to_disk(), Area.REFCOUNT_BLOCK)
        block.dirty = False

    def _mark(self, block: RefcountBlock) -> None:
        block.dirty = True
        self.cache.touch(block)

    def get(self, cluster: int) -> int:
        """Refcount of *cluster*. Errors: OSError."""
        index, at = divmod(cluster, self.per_block)
        block = self.block(index)
        return block.get(at) if block is not None else 0

    def change(self, cluster: int, count: int, delta: int) -> None:
        """Add *delta* to the refcounts of *count* clusters; all or nothing. Errors: OSError EINVAL when one leaves
        its range.
        """
        self._image.before_refcounts()
        if delta < 0:
            self._image.packing.forget(cluster, count)
        done = 0
        try:
            while done < count:
                index, at = divmod(cluster + done, self.per_block)
                run = min(count - done, self.per_block - at)
                block = self.block(index)
                if block is None:
                    raise error(errno.EINVAL)
                done += self._change_in_block(block, index, at, run, delta)
        except OSError:
            if done:
                self.change(cluster, done, -delta)
            raise

    def _change_in_block(self, block: RefcountBlock, index: int, at: int, run: int, delta: int) -> int:
        old = block.get(at)
        if block.all_equal(at, run, old):
            if not 0 <= old + delta <= self.maximum:
                raise error(errno.EINVAL)
            block.fill(at, run, old + delta)
        else:
            values = [block.get(i) + delta for i in range(at, at + run)]
            if min(values) < 0 or max(values) > self.maximum:
                raise error(errno.EINVAL)
            for i, value in enumerate(values, at):
                block.fill(i, 1, value)
        self._mark(block)
        if delta < 0:
            first = index * self.per_block + at
            self.hint = min(self.hint, first)
        return run

    # -- allocation ------------------------------------------------------------------------------------------

    def allocate(self, wanted: int, what: str, *, exact: bool = False, start: int | None = None) -> tuple[int, int]:
        """Take up to *wanted* (exactly, if *exact*) adjacent free clusters; (first, count), refcount 1 each.

        what: the purpose, for error texts. start: do not look before this cluster. Errors: OSError.
        """
        image = self._image
        image.announce("cluster_alloc")
        image.before_refcounts()
        if self._homeless:
            self._find_home()
        while True:
            first, count = self._search(wanted, exact, self.hint if start is None else start)
            if not self._cover(first, count):
                continue
            offset = first << image.cluster_bits
            if first or what == "data cluster":
                image.check_overlap(offset, count << image.cluster_bits)
            if not first:
                raise image.corrupt(f"Preventing invalid allocation of {what} at offset 0", fatal=True)
            self._set_run(first, count, 1)
            if start is None and not exact:
                self.hint = first + count
            image.high_water = max(image.high_water, (first + count) << image.cluster_bits)
            return first, count

    def _search(self, wanted: int, exact: bool, position: int) -> tuple[int, int]:
        """(first, count): free clusters, whether or not there is a block for them yet."""
        per_block = self.per_block
        first, count = position, 0
        while count < wanted:
            index, at = divmod(position, per_block)
            if position > self.last_cluster:
                raise error(errno.EFBIG)
            block = self.block(index)
            if block is None:
                free = min(per_block - at, wanted - count)
            elif count:
                free = block.free_run(at, min(per_block - at, wanted - count))
            else:
                skip = block.find_free(at)
                if skip < 0:
                    position = first = (index + 1) * per_block
                    continue
                first = position = index * per_block + skip
                free = block.free_run(skip, min(per_block - skip, wanted))
            if not free:
                if not exact:
                    break
                first, count = position, 0
                continue
            count += free
            position += free
            if count < wanted and position % per_block:
                if not exact:
                    break
                first, count = position, 0
        if first + count - 1 > self.last_cluster:
            raise error(errno.EFBIG)
        return first, count

    def _set_run(self, first: int, count: int, value: int) -> None:
        done = 0
        while done < count:
            index, at = divmod(first + done, self.per_block)
            run = min(count - done, self.per_block - at)
            block = self.block(index)
            if block is None:
                raise io_error()
            block.fill(at, run, value)
            self._mark(block)
            done += run

    def _cover(self, first: int, count: int) -> bool:
        """Whether blocks exist for all of the run; if not, make them at its beginning: then search again."""
        low, high = first // self.per_block, (first + count - 1) // self.per_block
        if high >= len(self.table):
            self._grow_table(high + 1)
            return False
        missing = [i for i in range(low, high + 1) if not self.table[i] & REFTABLE_OFFSET]
        if not missing:
            return True
        image = self._image
        if not first:
            raise image.corrupt("Preventing invalid allocation of refcount block at offset 0", fatal=True)
        # A block that describes itself comes first; with it in place the others are ordinary clusters.
        index = missing[0]
        offset = first << image.cluster_bits
        image.check_overlap(offset, image.cluster_size)
        image.announce("refblock_alloc")
        self.cache.make_room()
        home, at = divmod(first, self.per_block)
        fresh = load_block(offset, bytes(image.cluster_size), self.order)
        if home == index:
            fresh.fill(at, 1, 1)
        else:
            self._set_run(first, 1, 1)
        image.forget_table(offset)
        self._mark(self.cache.insert(fresh))
        self.table[index] = offset
        self._dirty_entries.add(index)
        image.overlap_add(Area.REFCOUNT_BLOCK, offset)
        image.high_water = max(image.high_water, offset + image.cluster_size)
        return False

    # -- the table -------------------------------------------------------------------------------------------

    def _grow_table(self, needed: int) -> None:
        """Make room for *needed* blocks. The table gets a new place; the old one is freed after the header points
        away.
        """
        image = self._image
        per_cluster = image.cluster_size // 8
        if needed * 8 > hdr.MAX_REFTABLE_BYTES:
            raise error(errno.EFBIG)
        image.announce("reftable_grow")
        # Half as much again, so that growing stays rare; room for what describes the table itself.
        entries = max(needed + (needed >> 1), needed + 2 + needed * 8 // image.cluster_size // self.per_block)
        entries = min(round_up(entries, per_cluster), hdr.MAX_REFTABLE_BYTES // 8)
        old = len(self.table)
        self.table.extend(array("Q", bytes(8 * (entries - old))))
        self._homeless = True
        try:
            self._find_home()
        except OSError:
            if not any(self.table[old:]):
                del self.table[old:]
                self._homeless = False
            raise

    def _find_home(self) -> None:
        image = self._image
        header = image.header
        self._homeless = False
        clusters = len(self.table) * 8 // image.cluster_size
        try:
            first, _ = self.allocate(clusters, "refcount table", exact=True)
        except OSError:
            self._homeless = True
            raise
        if clusters < len(self.table) * 8 // image.cluster_size:
            # Another growth happened underneath: its place is the one that counts.
            image.defer_free(first, clusters)
            return
        if header.reftable_clusters:
            image.defer_free(header.reftable_offset >> image.cluster_bits, header.reftable_clusters)
        header.reftable_offset = first << image.cluster_bits
        header.reftable_clusters = clusters
        self._moved = True
        image.overlap_areas_changed()

    # -- writing back ----------------------------------------------------------------------------------------

    @property
    def table_dirty(self) -> bool:
        """Whether the refcount table (not just blocks) has to be written."""
        return bool(self._dirty_entries) or self._moved or self._homeless

    def write_blocks(self) -> bool:
        """Write dirty blocks; True if there were any. No flush. Errors: OSError."""
        dirty = self.cache.dirty_tables()
        for block in dirty:
            self._write_block(block)
        return bool(dirty)

    def write_table(self) -> None:
        """Make new blocks and a moved table visible on disk. Blocks are written and flushed first. Errors: OSError."""
        image = self._image
        if self._homeless:
            self._find_home()
        if not self._dirty_entries and not self._moved:
            return
        image.announce("refblock_alloc_write_blocks" if self._moved else "refblock_alloc_write")
        self.write_blocks()
        image.sync()
        offset = image.header.reftable_offset
        if self._moved:
            image.announce("refblock_alloc_write_table")
            image.write_metadata(offset, to_disk(self.table), Area.REFCOUNT_TABLE)
            image.sync()
            image.announce("refblock_alloc_switch_table")
            image.write_header_field(*hdr.encode_reftable_location(image.header))
            image.sync()
            self._moved = False
            self._dirty_entries.clear()
            return
        # A block may be described by one before it in the table: rising order, one atomic sector at a time.
        for sector in sorted({index // 64 for index in self._dirty_entries}):
            words = self.table[sector * 64 : sector * 64 + 64]
            image.announce("refblock_alloc_hookup")
            image.write_metadata(offset + sector * 512, to_disk(words), Area.REFCOUNT_TABLE)
            image.sync()
            self._dirty_entries.difference_update(range(sector * 64, sector * 64 + 64))

    def last_used(self) -> int:
        """The last cluster with a refcount, or -1. Errors: OSError."""
        for index in range(len(self.table) - 1, -1, -1):
            if self.table[index] & REFTABLE_OFFSET:
                block = self.block(index)
                last = block.last_used() if block is not None else -1
                if last >= 0:
                    return index * self.per_block + last
        return -1

    def replace_table(self, table: array[int]) -> None:
        """A new table, on disk already, with new blocks: forget everything known of the old ones."""
        self.table = table
        self.cache.clear()
        self._dirty_entries.clear()
        self._moved = self._homeless = False
        self.hint = 0
        self._image.packing.position = 0

    def runs_of_one(self, cluster: int, count: int) -> Iterator[tuple[int, int]]:
        """(first, length) of the clusters among *count* whose refcount is 1. Errors: OSError."""
        while count:
            index, at = divmod(cluster, self.per_block)
            run = min(count, self.per_block - at)
            block = self.block(index)
            if block is not None:
                if block.all_equal(at, run, 1):
                    yield cluster, run
                else:
                    yield from ((cluster + i, 1) for i in range(run) if block.get(at + i) == 1)
            cluster += run
            count -= run

    def count_used(self, limit: int) -> int:
        """How many clusters have a refcount; counting stops at *limit*. Errors: OSError."""
        used = 0
        for index in range(len(self.table)):
            block = self.block(index)
            if block is not None:
                used += block.count_used()
                if used >= limit:
                    break
        return used

    def drop_empty_block(self, index: int) -> None:
        """Give up block *index* if it counts nothing but itself, its entry in the table first. Errors: OSError."""
        offset = self.table[index] & REFTABLE_OFFSET
        block = self.block(index) if offset else None
        if block is None or block.dirty:
            return
        image = self._image
        home, at = divmod(offset >> image.cluster_bits, self.per_block)
        last = block.last_used()
        described_here = home == index
        if last >= 0 and not (described_here and last == at and block.get(at) == 1 and block.is_lone(at)):
            return
        self.table[index] = 0
        sector = index // 64
        words = self.table[sector * 64 : sector * 64 + 64]
        image.write_metadata(image.header.reftable_offset + sector * 512, to_disk(words), Area.REFCOUNT_TABLE)
        image.sync()
        self.cache.drop(offset)
        image.overlap.remove(Area.REFCOUNT_BLOCK, offset)
        if not described_here:
            self.change(offset >> image.cluster_bits, 1, -1)
            self.write_blocks()
        self.hint = min(self.hint, index * self.per_block)
