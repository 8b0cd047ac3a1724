"""Image: the state of one open qcow2 image, and access to its metadata. Requests are in reading.py, writing.py and so
on.

Methods whose docstring says nothing about the lock are called with ``lock`` held.
"""

from __future__ import annotations

import errno
import threading
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2.cache import Slice, TableCache, janitor
from engine.drivers.format.qcow2.compress import ClusterCache
from engine.drivers.format.qcow2.header import Autoclear, Header, Incompatible
from engine.drivers.format.qcow2.ordering import Ordering
from engine.drivers.format.qcow2.overlap import NAMES, Area, OverlapIndex
from engine.drivers.format.qcow2.packing import Packing
from engine.drivers.format.qcow2.refcount import Refcounts
from engine.drivers.format.qcow2.settings import Settings
from engine.drivers.format.qcow2.snapshots import Snapshot
from engine.drivers.format.qcow2.storage import Child, c_hex, error, io_error, read_bytes
from engine.drivers.format.qcow2.tables import COPIED, L1_OFFSET, REFTABLE_OFFSET, from_disk
from engine.drivers.format.qcow2.traffic import Traffic

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Reporter


class Image:
    """One open qcow2 image over *file* (and *data_file*, where guest data lies outside).

    backing: returns the backing child, or None. report: told of broken metadata. writable: whether requests may
    change it.
    """

    def __init__(
        self,
        file: Child,
        header: Header,
        settings: Settings,
        *,
        data_file: Child | None = None,
        backing: Callable[[], Child | None] = lambda: None,
        report: Reporter | None = None,
        writable: bool = False,
        snapshots: list[Snapshot] | None = None,
    ) -> None:
        self.file = file
        self.header = header
        self.data_file = data_file
        self.data: Child = data_file if data_file is not None else file
        self.backing = backing
        self.writable = writable
        self.snapshots = snapshots or []
        self._report = report
        self.announce: Callable[[str], None] = lambda event: None
        """Tells blkdebug below that a request has got to a place (a BlkdebugEvent)."""
        self._signalled = False
        self.dead = False
        """Fatal corruption was found: nothing may be read or written any more."""
        self.keeps_bitmaps = False
        """Somebody sees to it that persistent bitmaps are marked in use on disk while the image may be written."""
        self.bitmaps_stuck = False
        """Persistent bitmaps could not be marked in use: nothing may be written."""

        self.lock = threading.Lock()
        self.flush_lock = threading.Lock()
        self.resize_lock = threading.Lock()
        """Held by truncate and make_empty, before the other locks."""
        self.traffic = Traffic(self.lock)

        self.size = header.size
        """Virtual size in bytes."""
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.cluster_mask = self.cluster_size - 1
        self.extended = header.extended_l2
        self.subcluster_size = self.cluster_size // hdr.SUBCLUSTERS if self.extended else self.cluster_size
        self.entry_words = 2 if self.extended else 1
        l2_entries = self.cluster_size // header.l2_entry_size
        self.l2_bits = l2_entries.bit_length() - 1
        self.l1_shift = self.cluster_bits + self.l2_bits
        self.zero_flag = 0 if header.version < 3 or self.extended else 1
        self.compressed = ClusterCache(self.cluster_size, header.compression_type)

        self.l1 = array("Q")
        self.ordering = Ordering(self)
        self.lazy = False
        """Lazy refcounts are in use: the dirty bit stands for the refcounts' order."""
        self._marked_dirty = False
        self._prepared = False
        self._prepare_lock = threading.RLock()
        self._repairing = False
        self.broken_off = False
        """A change of the metadata failed half-way: only a repair clears the dirty bit."""
        self.overlap = OverlapIndex(0, self.cluster_size)
        self.high_water = file.length
        """Host bytes from here on have never been written nor allocated, so they read as zeros."""
        self.allocated_size: Callable[[], int | None] = lambda: None
        """Tells how many bytes the file takes on the host."""
        self._sparse: bool | None = None
        self._janitor_key = 0
        self._use_settings(settings)
        self.packing = Packing(self)
        self.refcounts = Refcounts(self, settings.refcount_blocks)
        self.load_l1()

    # -- settings and caches ---------------------------------------------------------------------------------

    def _use_settings(self, settings: Settings) -> None:
        self.settings = settings
        self.slice_size = settings.l2_slice_size
        self.slice_entries = self.slice_size // self.header.l2_entry_size
        self.slice_bits = self.slice_entries.bit_length() - 1
        self.l2_cache: TableCache[Slice] = TableCache(settings.l2_slices, self.ordering.write_slice)
        janitor.unregister(self._janitor_key)
        self._janitor_key = 0
        if settings.clean_interval:
            self._janitor_key = janitor.register(settings.clean_interval, self.clean_caches)

    def change_settings(self, settings: Settings) -> None:
        """Put new settings in force; the caches start empty. Takes the locks. No request is in flight; all was
        flushed.
        """
        with self.flush_lock, self.lock:
            self._use_settings(settings)
            self.refcounts.cache.capacity = settings.refcount_blocks
            self.overlap = OverlapIndex(0, self.cluster_size)
            self._prepared = False

    def clean_caches(self) -> None:
        """Drop tables that have not been used for an interval. Takes the lock."""
        with self.lock:
            self.l2_cache.drop_unused()
            self.refcounts.cache.drop_unused()

    def forget_compressed(self) -> None:
        """Host clusters are being freed: decompressed copies of what was in them are void."""
        self.compressed.clear()

    # -- trouble ---------------------------------------------------------------------------------------------

    def corrupt(self, message: str, *, fatal: bool, offset: int | None = None, size: int | None = None) -> OSError:
        """Report broken metadata and return the EIO to raise. Fatal on a writable image: mark it corrupt, shut it.

        Only the first non-fatal finding is reported, as in QEMU. The lock may be held or not.
        """
        fatal = fatal and self.writable
        if self._signalled and (not fatal or self.header.incompatible & Incompatible.CORRUPT):
            return io_error()
        self._signalled = True
        if fatal:
            self.dead = True
            self.header.incompatible |= Incompatible.CORRUPT
            try:
                self.write_header_field(*hdr.encode_features(self.header))
                self.file.flush()
            except OSError:
                # The event tells what is wrong; a storage that can't even take the mark has its own errors.
                pass
        if self._report is not None:
            self._report(message, offset, size, fatal)
        return io_error()

    def check_alive(self) -> None:
        """Errors: OSError ENOMEDIUM once fatal corruption was found (as a node without medium). Lock not needed."""
        if self.dead:
            raise error(errno.ENOMEDIUM)

    # -- raw metadata I/O ------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Flush what is below: guest data and metadata written so far become durable. Errors: OSError."""
        if self.data_file is not None:
            self.data_file.flush()
        self.file.flush()

    def write_header_field(self, offset: int, data: bytes) -> None:
        """Write a field of the header, inside one sector."""
        self.file.write(offset, memoryview(data))

    def rewrite_header(self) -> None:
        """Write the whole header with its extensions, and sync. Errors: OSError (ENOSPC: it exceeds a cluster)."""
        data = hdr.encode(self.header)
        padded = data + bytes(-len(data) % min(512, self.cluster_size))
        self.file.write(0, memoryview(padded))
        self.sync()

    def write_metadata(self, offset: int, data: bytes, area: Area) -> None:
        """Write metadata of class *area* unless it would hit other metadata. Errors: OSError."""
        self.check_overlap(offset, len(data), area)
        self.file.write(offset, memoryview(data))

    # -- overlap check ---------------------------------------------------------------------------------------

    def check_overlap(self, offset: int, size: int, ignore: int = 0) -> None:
        """Refuse a write to host range that hits metadata: fatal corruption. Errors: OSError EIO."""
        found = self.overlap.find(offset, size, ignore)
        if found is None and self.overlap.inactive_l2:
            found = self._find_inactive_l2(offset, size)
        if found is not None:
            text = f"Preventing invalid write on metadata (overlaps with {NAMES[found]})"
            raise self.corrupt(text, fatal=True, offset=offset, size=size)

    def _find_inactive_l2(self, offset: int, size: int) -> Area | None:
        first, last = offset & -self.cluster_size, offset + size
        for snapshot in self.snapshots:
            for entry in self.read_snapshot_l1(snapshot):
                if first <= entry & L1_OFFSET < last and entry & L1_OFFSET:
                    return Area.INACTIVE_L2
        return None

    def read_snapshot_l1(self, snapshot: Snapshot) -> array[int]:
        """The L1 table of *snapshot*. Errors: OSError, also for an impossible table."""
        if snapshot.l1_size * 8 > hdr.MAX_L1_BYTES:
            raise error(errno.EFBIG)
        if snapshot.l1_offset & self.cluster_mask or snapshot.l1_offset >= 1 << 63:
            raise io_error()
        return from_disk(read_bytes(self.file, snapshot.l1_offset, snapshot.l1_size * 8))

    def overlap_add(self, area: Area, offset: int) -> None:
        """A cluster has become an L2 table or refcount block."""
        self.overlap.add(area, offset)

    def overlap_areas_changed(self) -> None:
        """Tables moved: learn the larger areas anew."""
        self.overlap.set_areas(self._areas())

    def _areas(self) -> Iterable[tuple[int, int, Area]]:
        header = self.header
        yield 0, self.cluster_size, Area.MAIN_HEADER
        yield header.l1_offset, header.l1_offset + header.l1_size * 8, Area.ACTIVE_L1
        reftable = header.reftable_offset
        yield reftable, reftable + (header.reftable_clusters << self.cluster_bits), Area.REFCOUNT_TABLE
        if self.snapshots:
            yield header.snapshots_offset, header.snapshots_offset + self.snapshot_table_size, Area.SNAPSHOT_TABLE
        for snapshot in self.snapshots:
            yield snapshot.l1_offset, snapshot.l1_offset + snapshot.l1_size * 8, Area.INACTIVE_L1
        if header.bitmaps is not None:
            directory = header.bitmaps.directory_offset
            yield directory, directory + header.bitmaps.directory_size, Area.BITMAP_DIRECTORY

    @property
    def snapshot_table_size(self) -> int:
        """Bytes of the snapshot table."""
        return sum(snapshot.table_bytes for snapshot in self.snapshots)

    # -- getting ready to write ------------------------------------------------------------------------------

    def prepare_modify(self) -> None:
        """Call before changing anything; cheap after the first time. Takes the locks. Errors: OSError.

        A dirty image (crashed with lazy refcounts) is repaired. Unknown autoclear bits are cleared on disk, as the
        format demands, and, unless ``keeps_bitmaps``, the one that vouches for persistent bitmaps. Then the overlap
        check learns where the metadata is.
        """
        if self._prepared:
            return
        with self._prepare_lock:
            if self._prepared or self._repairing:
                return
            if not self.writable:
                raise error(errno.EPERM)
            self.check_alive()
            if self.bitmaps_stuck:
                raise error(errno.EPERM)
            with self.flush_lock, self.lock:
                self._clear_autoclear_bits()
                self.overlap = OverlapIndex(self.settings.overlap, self.cluster_size)
                self.overlap.set_points(
                    (entry & L1_OFFSET for entry in self.l1),
                    (entry & REFTABLE_OFFSET for entry in self.refcounts.table),
                )
                self.overlap_areas_changed()
            if self.header.incompatible & Incompatible.DIRTY and not self._marked_dirty:
                from engine.drivers.format.qcow2.check import repair_dirty

                self._repairing = True
                try:
                    repair_dirty(self)
                    self.broken_off = False
                finally:
                    self._repairing = False
            self.lazy = self.settings.lazy_refcounts
            self._prepared = True

    def _clear_autoclear_bits(self) -> None:
        header = self.header
        kept = int(Autoclear.ALL)
        if not self.keeps_bitmaps:
            kept &= ~int(Autoclear.BITMAPS)
            if header.bitmaps is not None:
                header.stale_bitmaps = hdr.encode_bitmaps(header.bitmaps)
                header.bitmaps = None
        left = header.autoclear & kept
        if left != header.autoclear:
            header.autoclear = left
            self.write_header_field(*hdr.encode_features(header))
            self.sync()

    def before_refcounts(self) -> None:
        """With lazy refcounts: set the dirty bit on disk before the first refcount changes."""
        if self.lazy and not self._marked_dirty:
            self._marked_dirty = True
            self.header.incompatible |= Incompatible.DIRTY
            self.write_header_field(*hdr.encode_features(self.header))
            self.sync()

    def mark_dirty(self) -> None:
        """Have the dirty bit on disk. Errors: OSError."""
        self.header.incompatible |= Incompatible.DIRTY
        self.write_header_field(*hdr.encode_features(self.header))
        self.sync()

    def mark_repaired(self) -> None:
        """Bring the refcounts to disk; then the dirty bit goes. Errors: OSError."""
        self.refcounts.write_blocks()
        self.refcounts.write_table()
        self.sync()
        if self.header.incompatible & Incompatible.DIRTY:
            self.header.incompatible &= ~int(Incompatible.DIRTY)
            self.write_header_field(*hdr.encode_features(self.header))
            self.sync()

    def require_repair(self) -> None:
        """A change of the metadata broke off: the image stays dirty, and is repaired before it is changed again."""
        if self.header.version >= 3:
            self.header.incompatible |= Incompatible.DIRTY
            self.broken_off = True
            self._prepared = self._marked_dirty = False

    def mark_clean(self) -> None:
        """Write everything back, refcounts included, and clear the dirty bit. Takes the locks. Errors: OSError."""
        self.lazy = False
        self.ordering.write_back()
        if self.header.incompatible & Incompatible.DIRTY and not self.broken_off:
            with self.flush_lock, self.lock:
                self.refcounts.write_blocks()
                self.sync()
                self.header.incompatible &= ~int(Incompatible.DIRTY)
                self.write_header_field(*hdr.encode_features(self.header))
                self.sync()
        self._marked_dirty = False
        self._prepared = False

    # -- L1 and L2 -------------------------------------------------------------------------------------------

    def load_l1(self) -> None:
        """Read the L1 table as the header has it. Lock not needed while opening. Errors: OSError."""
        header = self.header
        self.l1 = from_disk(read_bytes(self.file, header.l1_offset, header.l1_size * 8))

    def l2_table(self, index: int) -> int:
        """Host offset of the L2 table that L1 entry *index* names; 0 for none. Errors: OSError EIO when it is
        misaligned.
        """
        if index >= len(self.l1):
            return 0
        offset = self.l1[index] & L1_OFFSET
        if offset & self.cluster_mask:
            text = f"L2 table offset {offset:#x} unaligned (L1 index: {c_hex(index)})"
            raise self.corrupt(text, fatal=True, offset=None)
        return offset

    def l2_slice(self, table: int, entry: int) -> Slice:
        """The slice of the L2 table at host offset *table* that holds entry number *entry*. Errors: OSError."""
        offset = table + (entry >> self.slice_bits) * self.slice_size
        cache = self.l2_cache
        found = cache.tables.get(offset)
        if found is None:
            cache.make_room()
            self.announce("l2_load")
            found = cache.insert(Slice(offset, from_disk(read_bytes(self.file, offset, self.slice_size))))
        found.used = True
        return found

    def mark_slice(self, table: Slice, start: int, stop: int) -> None:
        """Words [start, stop) of *table* were changed."""
        table.mark(start, stop)
        self.l2_cache.touch(table)

    def writable_l2_table(self, index: int) -> int:
        """As l2_table(), but the table is ours alone: made if missing, copied if shared with a snapshot. Errors:
        OSError.
        """
        old = self.l2_table(index)
        if old and self.l1[index] & COPIED:
            return old
        fresh_from = self.high_water
        cluster, _ = self.refcounts.allocate(1, "L2 table", exact=True)
        offset = cluster << self.cluster_bits
        try:
            self._fill_new_table(offset, old, fresh_from)
        except BaseException:
            self.undo_allocation(cluster, 1)
            raise
        self.forget_table(offset)
        self.l1[index] = offset | COPIED
        self.ordering.dirty_l1.add(index)
        self.ordering.bump()
        self.overlap_add(Area.ACTIVE_L2, offset)
        if old:
            self.overlap.remove(Area.ACTIVE_L2, old)
            self.forget_table(old)
            self.defer_free(old >> self.cluster_bits, 1)
        return offset

    def _fill_new_table(self, offset: int, old: int, fresh_from: int) -> None:
        """Write all of a new L2 table: a copy of *old*, or zeros where the space is not a hole anyway."""
        if old:
            for at in range(0, self.cluster_size, self.slice_size):
                cached = self.l2_cache.tables.get(old + at)
                if cached is not None and cached.dirty:
                    self.ordering.write_slice(cached)
            self.announce("l2_alloc_cow_read")
            words = read_bytes(self.file, old, self.cluster_size)
            self.announce("l2_alloc_write")
            self.file.write(offset, memoryview(words))
        elif offset < fresh_from:
            self.announce("l2_alloc_write")
            self.file.write_zeroes(offset, self.cluster_size)

    def forget_table(self, offset: int) -> None:
        """The cluster at host *offset* is no L2 table any more, or not the one that is cached."""
        self.l2_cache.drop_range(offset, self.cluster_size, self.slice_size)

    # -- clusters --------------------------------------------------------------------------------------------

    def undo_allocation(self, cluster: int, count: int) -> None:
        """Give back clusters that nothing refers to, neither in memory nor on disk; what fails is a leak."""
        try:
            self.refcounts.change(cluster, count, -1)
        except OSError:
            pass

    def defer_free(self, cluster: int, count: int, *, punch: bool | None = None) -> None:
        """Clusters were unlinked in memory; ordering.py sees to the rest. punch: None stands for pass-discard-other."""
        self.ordering.defer_free(cluster, count, self.settings.discard_other if punch is None else punch)

    def sparse_data(self) -> bool:
        """Whether clusters in use are holes in the file in any number (preallocated metadata): data may be zeros
        then.

        Takes the lock. The answer is found once, and again after the image was resized; wrong, it costs time, not
        truth.
        """
        if self._sparse is None:
            try:
                with self.lock:
                    self._sparse = self._detect_sparse()
            except OSError:
                self._sparse = False
        return self._sparse

    def _detect_sparse(self) -> bool:
        taken = self.allocated_size()
        if taken is None:
            return False
        total = self.file.length >> self.cluster_bits
        real = taken >> self.cluster_bits
        threshold = max(real * 10 // 9, real + 2)
        return threshold <= total and self.refcounts.count_used(threshold) >= threshold

    def size_changed(self) -> None:
        """The image was resized or preallocated."""
        self._sparse = None

    def wait_all(self) -> None:
        """Wait until no allocating write is in flight at all."""
        while self.traffic.wait_free(0, 1 << 64):
            pass

    def close(self) -> None:
        """Stop the cache cleaner. Whoever closes has written back before. Takes no lock."""
        janitor.unregister(self._janitor_key)
        self._janitor_key = 0
