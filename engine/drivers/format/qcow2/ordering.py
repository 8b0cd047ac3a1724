"""The order in which qcow2 metadata reaches the disk, so that a crash at any instant leaves at worst leaked clusters.

References point from the header to the L1 and refcount tables, from those to L2 tables and refcount blocks, and from
L2 tables to data. Two rules keep every prefix of what reached the disk consistent: *a target is on disk before what
points to it*, and *a pointer is gone from the disk before its target's refcount is lowered, its space punched or
handed out again*. Changes are made in memory and written back in phases; "sync" flushes the file below (and the data
file):

1.  Guest data is written by the request itself, before the L2 entry changes in memory. Contents of new L2 tables
    (zeros, or the copy of a shared table) are written when they are allocated.
2.  Refcount blocks are written. If the refcount table has new entries: sync, then the entries in rising order, a
    sector at a time with a sync after each (a block may be described by an earlier one). If the table moved: blocks,
    new table, sync, header, sync.
3.  Sync. Now every cluster that an L2 slice in memory points to holds its data and is counted.
4.  Changed parts of L2 slices are written.
5.  If L1 entries changed: sync, write them.
6.  Sync. What was unlinked (discarded, replaced by a copy, freed tables) has now lost its last pointer on disk.
7.  Freed space is punched where pass-discard asks for it, and only then the refcounts are lowered, in memory; from
    that moment the clusters may be allocated again. The lowered counts are written but need no sync: stale ones are
    leaks.

A dirty L2 slice evicted from its cache between write-backs does phases 2 to 4 for itself; syncs are skipped when
nothing that needs one happened since the last (``generation`` counts such changes, ``durable`` is how far a sync has
reached). New L1 entries, hence new tables, become visible in phase 5 only. With lazy refcounts phase 2 is left out:
the dirty bit in the header is set and synced before the first refcount changes, and refcounts are rebuilt after a
crash.

*Readers.* Requests look clusters up under the lock and do their I/O outside. A cluster unlinked meanwhile stays
allocated until phase 6 is over **and** all requests that began before it was unlinked are done (traffic.py), so no
reader ever sees another cluster's bytes and no in-place write hits a reused cluster.

Compressed pieces share host clusters, with a reference for each piece. A cluster takes no more of them once one of its
references waits to be dropped (packing.py), so phase 7 never punches what was just written.

Internal snapshots (snapshotting.py) exchange whole trees, while no request is in flight at all: what will be referred
to is counted and on disk, one write of the header publishes it, and then what was let go of is freed. Refcounts and
COPIED flags of the active tables can't change together; version 3 images bear the dirty bit meanwhile.

Whole-structure changes (growing L1, shrinking, emptying) hold ``flush_lock`` and ``lock``, begin with a complete
write-back, and then follow the same two rules with explicit syncs.

Locks, in this order: ``flush_lock`` (one write-back at a time), ``lock`` (all metadata in memory), then those of the
nodes below.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.tables import to_disk

if TYPE_CHECKING:
    from array import array

    from engine.drivers.format.qcow2.cache import Slice
    from engine.drivers.format.qcow2.image import Image

MAX_PENDING_RUNS = 4096
"""Runs of unlinked clusters that may wait for a write-back before one is forced."""
MAX_PENDING_BYTES = 256 << 20


class Freed(NamedTuple):
    """Host clusters that lost a reference. punch: tell the file below when nothing refers to them any more."""

    cluster: int
    clusters: int
    punch: bool


class Ordering:
    """Dirty L1 entries, generations, and clusters on their way to being free."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.generation = 0
        self.durable = 0
        self.dirty_l1: set[int] = set()
        self._pending: list[Freed] = []
        self._pending_bytes = 0
        self._limbo: deque[tuple[int, list[Freed]]] = deque()

    # -- under the lock --------------------------------------------------------------------------------------

    def bump(self) -> int:
        """A change was made that must not be pointed to on disk before a sync; return its generation."""
        self.generation += 1
        return self.generation

    def defer_free(self, cluster: int, count: int, punch: bool) -> None:
        """Clusters were unlinked in memory: lower their refcounts when that is on disk."""
        self._image.packing.forget(cluster, count)
        pending = self._pending
        if pending:
            last = pending[-1]
            if last.cluster + last.clusters == cluster and last.punch == punch:
                pending[-1] = Freed(last.cluster, last.clusters + count, punch)
                self._pending_bytes += count << self._image.cluster_bits
                return
        pending.append(Freed(cluster, count, punch))
        self._pending_bytes += count << self._image.cluster_bits

    @property
    def overdue(self) -> bool:
        """Whether so much waits to be freed that a write-back should be forced."""
        return len(self._pending) > MAX_PENDING_RUNS or self._pending_bytes > MAX_PENDING_BYTES

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be freed."""
        return not self._pending and not self._limbo

    def write_slice(self, table: Slice) -> None:
        """Write one L2 slice back (eviction): phases 2 to 4 for it alone. Errors: OSError; it stays dirty then."""
        image = self._image
        if table.generation > self.durable:
            reached = self.generation
            if not image.lazy:
                image.refcounts.write_blocks()
                image.refcounts.write_table()
            image.sync()
            self.durable = reached
        start, stop = table.dirty_from, table.dirty_to
        offset, words = table.take_dirty()
        try:
            image.announce("l2_update")
            image.write_metadata(offset, to_disk(words), Area.ACTIVE_L2)
        except OSError:
            table.mark(start, stop)
            raise

    # -- write-back ------------------------------------------------------------------------------------------

    def write_back(self) -> None:
        """Phases 2 to 7. Takes the locks. Errors: OSError; everything not written stays dirty."""
        image = self._image
        with image.flush_lock:
            with image.lock:
                image.check_alive()
                batch = self._collect()
            try:
                self._write(batch)
            except BaseException:
                with image.lock:
                    self._restore(batch)
                raise
            with image.lock:
                self._finish(batch)
            self._settle()

    def write_back_locked(self) -> None:
        """write_back() for a caller that holds both locks and has waited for all allocating writes."""
        batch = self._collect()
        try:
            self._write(batch)
        except BaseException:
            self._restore(batch)
            raise
        self._finish(batch)
        self._settle_locked()

    def _collect(self) -> _Batch:
        image = self._image
        if not image.lazy:
            image.refcounts.write_blocks()
            if image.refcounts.table_dirty:
                image.refcounts.write_table()
        batch = _Batch(self.generation, image.traffic.new_epoch(), self._pending)
        self._pending = []
        self._pending_bytes = 0
        for table in image.l2_cache.dirty_tables():
            span = (table.dirty_from, table.dirty_to)
            offset, words = table.take_dirty()
            table.pins += 1
            batch.slices.append((table, span, offset, words))
            image.check_overlap(offset, len(words) * 8, Area.ACTIVE_L2)
        for sector in sorted({index // 64 for index in self.dirty_l1}):
            words = image.l1[sector * 64 : sector * 64 + 64]
            offset = image.header.l1_offset + sector * 512
            batch.l1.append((offset, words))
            image.check_overlap(offset, len(words) * 8, Area.ACTIVE_L1)
        batch.l1_entries = self.dirty_l1
        self.dirty_l1 = set()
        return batch

    def _write(self, batch: _Batch) -> None:
        image = self._image
        if (batch.slices or batch.l1) and batch.generation > self.durable:
            image.sync()
            self.durable = max(self.durable, batch.generation)
        write = image.file.write
        for _, _, offset, words in batch.slices:
            image.announce("l2_update")
            write(offset, memoryview(to_disk(words)))
        if batch.l1:
            image.sync()
            for offset, words in batch.l1:
                image.announce("l1_update")
                write(offset, memoryview(to_disk(words)))
        image.sync()

    def _restore(self, batch: _Batch) -> None:
        for table, (start, stop), _, _ in batch.slices:
            self._image.mark_slice(table, start, stop)
            table.pins -= 1
        self.dirty_l1 |= batch.l1_entries
        self._pending = batch.freed + self._pending
        self._pending_bytes = sum(freed.clusters for freed in self._pending) << self._image.cluster_bits

    def _finish(self, batch: _Batch) -> None:
        self.durable = max(self.durable, batch.generation)
        for table, *_ in batch.slices:
            table.pins -= 1
        if batch.freed:
            self._limbo.append((batch.epoch, batch.freed))

    # -- phase 7 ---------------------------------------------------------------------------------------------

    def _ready(self) -> list[Freed]:
        """Take what no request uses any more (lock held)."""
        ready: list[Freed] = []
        while self._limbo and self._image.traffic.idle_since(self._limbo[0][0]):
            ready += self._limbo.popleft()[1]
        return ready

    def _settle(self) -> None:
        """Punch and free what is ready. Only flush_lock is held: nobody can get the clusters meanwhile."""
        image = self._image
        with image.lock:
            ready = self._ready()
            holes = self._holes(ready)
        self._punch(holes)
        if ready:
            with image.lock:
                self._lower(ready)

    def _settle_locked(self) -> None:
        ready = self._ready()
        self._punch(self._holes(ready))
        if ready:
            self._lower(ready)

    def free_now(self, freed: list[Freed]) -> None:
        """Punch and free clusters that no request uses and nothing on disk leads to; both locks are held."""
        for cluster, count, _ in freed:
            self._image.packing.forget(cluster, count)
        self._punch(self._holes(freed))
        if freed:
            try:
                self._lower(freed)
            except OSError:
                # They are free; that the disk has not been told yet is what the next write-back will try again.
                return

    def _holes(self, ready: list[Freed]) -> list[tuple[int, int]]:
        """(cluster, count) runs that will be free and are to be punched."""
        holes: list[tuple[int, int]] = []
        for cluster, count, punch in ready:
            if not punch:
                continue
            try:
                for first, length in self._image.refcounts.runs_of_one(cluster, count):
                    if holes and holes[-1][0] + holes[-1][1] == first:
                        holes[-1] = (holes[-1][0], holes[-1][1] + length)
                    else:
                        holes.append((first, length))
            except OSError:
                # The clusters whose refcounts can't be read stay as they are.
                continue
        return holes

    def _punch(self, holes: list[tuple[int, int]]) -> None:
        image = self._image
        for cluster, count in holes:
            try:
                image.file.discard(cluster << image.cluster_bits, count << image.cluster_bits)
            except OSError:
                # Advisory: the space stays taken on the host, which is no reason to fail anything.
                return

    def _lower(self, ready: list[Freed]) -> None:
        image = self._image
        image.forget_compressed()
        if ready:
            image.announce("cluster_free")
        for cluster, count, _ in ready:
            try:
                image.refcounts.change(cluster, count, -1)
            except OSError:
                self._lower_singly(cluster, count)
        if not image.lazy:
            image.refcounts.write_blocks()

    def _lower_singly(self, cluster: int, count: int) -> None:
        """After a failure: free what can be freed, leak the rest, and say so where counts were wrong."""
        image = self._image
        for at in range(cluster, cluster + count):
            try:
                image.refcounts.change(at, 1, -1)
            except OSError:
                offset = at << image.cluster_bits
                image.corrupt(
                    f"Freeing a cluster failed: refcount of host offset {offset:#x} is wrong or unreadable",
                    fatal=False,
                    offset=offset,
                    size=image.cluster_size,
                )


class _Batch:
    """What one write-back has taken out of the caches."""

    def __init__(self, generation: int, epoch: int, freed: list[Freed]) -> None:
        self.generation = generation
        self.epoch = epoch
        self.freed = freed
        self.slices: list[tuple[Slice, tuple[int, int], int, array[int]]] = []
        self.l1: list[tuple[int, array[int]]] = []
        self.l1_entries: set[int] = set()
