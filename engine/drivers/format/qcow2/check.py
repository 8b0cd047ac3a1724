"""qemu-img check for qcow2: count all references to host clusters, compare them with the refcounts, optionally repair.

Every L2 table is read once, however many L1 entries and snapshots lead to it.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import bitmaps, repair
from engine.drivers.format.qcow2.findings import CHUNK, CheckResult, Counts
from engine.drivers.format.qcow2.header import MAX_L1_BYTES, Incompatible
from engine.drivers.format.qcow2.refcount import Refcounts
from engine.drivers.format.qcow2.settings import MIN_REFCOUNT_BLOCKS
from engine.drivers.format.qcow2.storage import error, io_error, read_bytes
from engine.drivers.format.qcow2.tables import (
    ALL_ALLOCATED,
    COMPRESSED,
    COPIED,
    L1_OFFSET,
    L1_RESERVED,
    L2_OFFSET,
    L2_RESERVED,
    REFTABLE_OFFSET,
    REFTABLE_RESERVED,
    ZERO,
    compressed_location,
    from_disk,
    progression,
)
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image


class Checker:
    """One run over an image whose metadata is on disk and does not change meanwhile."""

    def __init__(self, image: Image, fix: frozenset[str]) -> None:
        self.image = image
        # Requests go on in a read-only image: look at its refcounts through a cache of our own.
        self.refcounts = image.refcounts if image.writable else Refcounts(image, MIN_REFCOUNT_BLOCKS)
        self.fix_leaks = "leaks" in fix
        self.fix_errors = "errors" in fix
        self.result = CheckResult()
        self.counts = Counts()
        self.clusters = -(-image.file.length // image.cluster_size)
        self.rebuild = False
        self._next_host = 0

    # -- findings --------------------------------------------------------------------------------------------

    def corruption(self, text: str, *, fixed: bool = False) -> None:
        """Count a corruption."""
        self.result.say(("Repairing: " if fixed else "ERROR ") + text)
        if fixed:
            self.result.corruptions_fixed += 1
        else:
            self.result.corruptions += 1

    def refer(self, offset: int, size: int, weight: int = 1) -> bool:
        """Count a reference to host range; False (and a corruption) if it lies beyond the file."""
        if not size:
            return True
        image = self.image
        if offset + size - image.file.length >= image.cluster_size or offset >= 1 << 63:
            self.corruption(
                "counting reference for region exceeding the end of the file by one cluster or more: "
                f"offset {offset:#x} size {size:#x}"
            )
            return False
        first = offset >> image.cluster_bits
        last = (offset + size - 1) >> image.cluster_bits
        self.counts.add(first, last - first + 1, weight)
        return True

    # -- counting --------------------------------------------------------------------------------------------

    def count(self) -> None:
        """Count all references."""
        image, header = self.image, self.image.header
        self.counts = Counts()
        self.refer(0, image.cluster_size)
        tables: dict[int, list[int]] = {}
        self.refer(header.l1_offset, header.l1_size * 8)
        self._count_l1(image.l1, tables, active=True)
        for number, snapshot in enumerate(image.snapshots):
            if snapshot.l1_size * 8 > MAX_L1_BYTES or snapshot.l1_offset & image.cluster_mask:
                self.corruption(f"snapshot {number} ({snapshot.id!r}): L1 table too large or misaligned")
                continue
            if self.refer(snapshot.l1_offset, snapshot.l1_size * 8):
                self._count_l1(image.read_snapshot_l1(snapshot), tables, active=False)
        self._count_l2_tables(tables)
        self.refer(header.snapshots_offset, image.snapshot_table_size)
        if header.crypto is not None:
            self.refer(*header.crypto)
        self._count_bitmaps()
        self._count_refcount_structures()

    def _count_l1(self, table: array[int], tables: dict[int, list[int]], *, active: bool) -> None:
        """Collect L2 tables: host offset → [references, index in the active L1 or -1]."""
        for index, entry in enumerate(table):
            if not entry:
                continue
            if entry & L1_RESERVED:
                self.corruption(f"found L1 entry with reserved bits set: {entry:#x}")
            offset = entry & L1_OFFSET
            if not offset:
                continue
            if offset & self.image.cluster_mask:
                self.corruption(f"l2_offset={offset:#x}: Table is not cluster aligned; L1 entry corrupted")
                continue
            found = tables.setdefault(offset, [0, -1])
            found[0] += 1
            if active:
                found[1] = index

    def _count_l2_tables(self, tables: dict[int, list[int]]) -> None:
        active = sorted((found[1], offset) for offset, found in tables.items() if found[1] >= 0)
        others = [(-1, offset) for offset, found in tables.items() if found[1] < 0]
        for index, offset in active + others:
            weight = tables[offset][0]
            if self.refer(offset, self.image.cluster_size, weight):
                self._count_l2(offset, index, weight)

    def _count_l2(self, offset: int, l1_index: int, weight: int) -> None:
        image = self.image
        words = from_disk(read_bytes(image.file, offset, image.cluster_size))
        width = image.entry_words
        entries = words[::width] if width == 2 else words
        maps = words[1::2] if width == 2 else None
        at, count = 0, len(entries)
        changed = False
        self._next_host = 0
        while at < count:
            word = entries[at]
            bitmap = maps[at] if maps is not None else 0
            run = 1
            if not word & COMPRESSED:
                run = progression(entries, at, count - at, image.cluster_size if word & L2_OFFSET else 0)
                if maps is not None:
                    run = min(run, progression(maps, at, run, 0))
            if word or bitmap:
                guest = ((l1_index << image.l2_bits) + at) << image.cluster_bits if l1_index >= 0 else -1
                new = self._count_entries(word, bitmap, run, weight, guest)
                if new is not None:
                    changed = True
                    for i in range(run):
                        words[(at + i) * width] = new[0]
                        if maps is not None:
                            words[(at + i) * width + 1] = new[1]
            at += run
        if changed:
            repair.write_l2(image, offset, words)

    def _count_entries(self, word: int, bitmap: int, run: int, weight: int, guest: int) -> tuple[int, int] | None:
        """Count *run* L2 entries from *word* on; returns the entry to put in their place when they were repaired."""
        image = self.image
        if word & COMPRESSED:
            return self._count_compressed(word, bitmap, weight, guest)
        host = word & L2_OFFSET
        reserved = L2_RESERVED | (0 if image.zero_flag else ZERO)
        if word & reserved:
            for _ in range(run):
                self.corruption(f"found l2 entry with reserved bits set: {word:#x}")
        owned = bool(host) or (image.data_file is not None and bool(word & COPIED))
        allocated, zeros = bitmap & ALL_ALLOCATED, bitmap >> 32
        if image.extended and (allocated & zeros or (allocated and not owned)):
            fix = self.fix_errors
            for _ in range(run):
                self.corruption(f"{word:#x}: L2 entry with an invalid subcluster bitmap: {bitmap:#x}", fixed=fix)
            if fix and not host & image.cluster_mask:
                bitmap = bitmap & ~zeros & ALL_ALLOCATED | zeros << 32 if owned else zeros << 32
                self._count_hosts(host, run if owned else 0, weight, guest)
                return word, bitmap
        if not owned:
            return None
        if host & image.cluster_mask:
            holds_data = bool(allocated) if image.extended else not word & ZERO
            fix = self.fix_errors and not holds_data
            for _ in range(run):
                self.corruption(f"offset={host:#x}: Cluster is not properly aligned; L2 entry corrupted.", fixed=fix)
            if fix:
                return (0, zeros << 32) if image.extended else (ZERO, 0)
        self._count_hosts(host, run, weight, guest)
        return None

    def _count_hosts(self, host: int, run: int, weight: int, guest: int) -> None:
        image = self.image
        if not run:
            return
        if guest >= 0:
            self.result.allocated_clusters += run
            if self._next_host and host != self._next_host:
                self.result.fragmented_clusters += 1
            self._next_host = host + (run << image.cluster_bits)
        if image.data_file is not None:
            if guest >= 0 and host != guest:
                self.corruption(f"data file offset {host:#x} does not match guest offset {guest:#x}")
            return
        size = run << image.cluster_bits
        if host + size - image.file.length < image.cluster_size and not host & image.cluster_mask:
            self.counts.add(host >> image.cluster_bits, run, weight)
        else:
            for at in range(host, host + size, image.cluster_size):
                self.refer(at, image.cluster_size, weight)

    def _count_compressed(self, word: int, bitmap: int, weight: int, guest: int) -> tuple[int, int] | None:
        image = self.image
        offset, size = compressed_location(word, image.cluster_bits)
        fixed = None
        if word & COPIED:
            text = f"coffset={offset:#x}: copied flag must never be set for compressed clusters"
            self.corruption(text, fixed=self.fix_errors)
            if self.fix_errors:
                fixed = (word & ~COPIED, bitmap)
        if image.data_file is not None:
            self.corruption(f"compressed cluster {word:#x} in an image with an external data file")
            return fixed
        if bitmap:
            self.corruption(f"compressed cluster {word:#x} with a subcluster bitmap: {bitmap:#x}")
        self.refer(offset, size, weight)
        if guest >= 0:
            # Compressed clusters count as fragmented: none is where the one before it would have it.
            self.result.allocated_clusters += 1
            self.result.compressed_clusters += 1
            self.result.fragmented_clusters += 1
        return fixed

    def _count_bitmaps(self) -> None:
        image = self.image
        extension = image.header.bitmaps
        if extension is None:
            return
        self.refer(extension.directory_offset, extension.directory_size)
        try:
            entries = bitmaps.read_directory(image.file, image.header)
        except GenericError as exc:
            self.corruption(f"bitmap directory: {exc.desc}")
            return
        for entry in entries:
            if not self.refer(entry.table_offset, entry.table_entries * 8):
                continue
            table = from_disk(read_bytes(image.file, entry.table_offset, entry.table_entries * 8))
            for word in table:
                if word in (0, 1):
                    continue
                offset = word & bitmaps.TABLE_OFFSET
                if word != offset or offset & image.cluster_mask:
                    self.corruption(f"bitmap {entry.name!r}: invalid table entry {word:#x}")
                else:
                    self.refer(offset, image.cluster_size)

    def _count_refcount_structures(self) -> None:
        image, header = self.image, self.image.header
        self.refer(header.reftable_offset, header.reftable_clusters << image.cluster_bits)
        for index, entry in enumerate(self.refcounts.table):
            if not entry:
                continue
            if entry & REFTABLE_RESERVED:
                self.corruption(f"refcount table entry {index} has reserved bits set")
            offset = entry & REFTABLE_OFFSET
            if offset & image.cluster_mask:
                self.corruption(f"refcount block {index} is not cluster aligned; refcount table entry corrupted")
                self.rebuild = True
                continue
            if offset >> image.cluster_bits >= self.clusters:
                self.corruption(f"refcount block {index} is outside image")
                self.rebuild = True
                continue
            if offset:
                self.refer(offset, image.cluster_size)
                found = self.counts.get(offset >> image.cluster_bits)
                if found != 1:
                    self.corruption(f"refcount block {index} refcount={found}")
                    self.rebuild = True

    # -- comparing -------------------------------------------------------------------------------------------

    def compare(self, *, repair_now: bool) -> None:
        """Compare counted references with refcounts, chunk by chunk, setting the refcounts right if *repair_now*."""
        image = self.image
        step = min(CHUNK, self.refcounts.per_block)
        highest = self.counts.highest()
        for first in range(0, self.clusters, step):
            count = min(step, self.clusters - first)
            wanted = self.counts.part(first, count)
            block = self.refcounts.usable_block(first // self.refcounts.per_block)
            at = first % self.refcounts.per_block
            if block is None:
                stored: list[int] | array[int] = [0] * count
                if not any(wanted):
                    continue
            else:
                value = wanted[0]
                same = wanted == array("Q", [value]) * count
                if same and value <= self.refcounts.maximum and block.all_equal(at, count, value):
                    continue
                stored = [block.get(i) for i in range(at, at + count)]
            for i in range(count):
                if stored[i]:
                    highest = max(highest, first + i)
                if stored[i] != wanted[i]:
                    self._difference(first + i, stored[i], wanted[i], repair_now)
        self.result.image_end_offset = (highest + 1) << image.cluster_bits

    def _difference(self, cluster: int, stored: int, wanted: int, repair_now: bool) -> None:
        leak = stored > wanted
        if not stored:
            self.rebuild = True
        fix = repair_now and (self.fix_leaks if leak else self.fix_errors)
        if fix:
            fix = repair.set_refcount(self.image, cluster, wanted)
        verb = "Repairing" if fix else "Leaked" if leak else "ERROR"
        self.result.say(f"{verb} cluster {cluster} refcount={stored} reference={wanted}")
        name = ("leaks" if leak else "corruptions") + ("_fixed" if fix else "")
        setattr(self.result, name, getattr(self.result, name) + 1)

    # -- COPIED flags ----------------------------------------------------------------------------------------

    def check_copied(self) -> None:
        """COPIED must be set exactly where the refcount is one."""
        image = self.image
        for index, entry in enumerate(image.l1):
            offset = entry & L1_OFFSET
            if not offset or offset & image.cluster_mask or offset >= image.file.length:
                continue
            count = self._stored(offset >> image.cluster_bits)
            if (count == 1) != bool(entry & COPIED):
                text = f"OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:#x} refcount={count}"
                self.corruption(text, fixed=self.fix_errors)
                if self.fix_errors:
                    repair.write_l1_entry(image, index, offset | (COPIED if count == 1 else 0))
            self._check_copied_l2(offset)

    def _stored(self, cluster: int) -> int:
        refcounts = self.refcounts
        block = refcounts.usable_block(cluster // refcounts.per_block)
        return block.get(cluster % refcounts.per_block) if block is not None else 0

    def _all_one(self, cluster: int, count: int) -> bool:
        """Whether the refcounts of *count* clusters are all 1."""
        per_block = self.refcounts.per_block
        while count:
            index, at = divmod(cluster, per_block)
            run = min(count, per_block - at)
            block = self.refcounts.usable_block(index)
            if block is None or not block.all_equal(at, run, 1):
                return False
            cluster += run
            count -= run
        return True

    def _check_copied_l2(self, table: int) -> None:
        image = self.image
        words = from_disk(read_bytes(image.file, table, image.cluster_size))
        entries = words[::2] if image.extended else words
        at, total = 0, len(entries)
        changed = False
        while at < total:
            word = entries[at]
            host = word & L2_OFFSET
            if word & COMPRESSED or host & image.cluster_mask:
                at += 1
                continue
            if not host and (image.data_file is None or not word & COPIED):
                at += progression(entries, at, total - at, 0)
                continue
            run = progression(entries, at, total - at, image.cluster_size)
            first = host >> image.cluster_bits
            if word & COPIED and (image.data_file is not None or self._all_one(first, run)):
                at += run
                continue
            for i in range(run):
                count = 1 if image.data_file is not None else self._stored(first + i)
                if (count == 1) == bool(word & COPIED):
                    continue
                text = f"OFLAG_COPIED data cluster: l2_entry={entries[at + i]:#x} refcount={count}"
                self.corruption(text, fixed=self.fix_errors)
                if self.fix_errors:
                    words[(at + i) * image.entry_words] ^= COPIED
                    changed = True
            at += run
        if changed:
            repair.write_l2(image, table, words)

    def run(self) -> CheckResult:
        """The whole check. Errors: OSError when metadata can't be read."""
        image = self.image
        self.result.total_clusters = -(-image.size // image.cluster_size)
        self.count()
        wants_fix = self.fix_leaks or self.fix_errors
        if self.rebuild and self.fix_errors:
            self._rebuild()
        else:
            before = self.rebuild
            self.rebuild = False
            self.compare(repair_now=wants_fix and not before)
            if self.rebuild and self.fix_errors:
                self._rebuild()
        if wants_fix:
            repair.write_refcounts(image)
        self.check_copied()
        if self.fix_errors and not self.result.corruptions and not self.result.check_errors:
            repair.mark_good(image)
        return self.result

    def _rebuild(self) -> None:
        """Make new refcount structures from the counts; what was wrong with the old ones is repaired thereby."""
        result = self.result
        if not result.image_end_offset:
            self.compare(repair_now=False)
        repair.rebuild(self.image, self.counts)
        result.corruptions_fixed += result.corruptions
        result.leaks_fixed += result.leaks
        result.corruptions = result.leaks = 0
        self.rebuild = False
        again = Checker(self.image, frozenset())
        again.count()
        again.compare(repair_now=False)
        result.corruptions, result.leaks = again.result.corruptions, again.result.leaks
        result.image_end_offset = again.result.image_end_offset


def check(image: Image, fix: frozenset[str]) -> CheckResult:
    """Check *image*, repairing what *fix* names ("leaks", "errors"). Nothing is written without *fix*.

    A writable image writes its caches back first and stands still meanwhile. Errors: OSError (EPERM: a repair of a
    read-only image).
    """
    if fix and not image.writable:
        raise error(errno.EPERM)
    if fix - {"leaks", "errors"}:
        raise error(errno.EINVAL)
    if not image.writable:
        return Checker(image, fix).run()
    if fix:
        image.prepare_modify()
    with image.flush_lock, image.lock:
        image.check_alive()
        image.wait_all()
        lazy, image.lazy = image.lazy, False
        try:
            image.ordering.write_back_locked()
            image.refcounts.write_blocks()
            result = Checker(image, fix).run()
        finally:
            image.lazy = lazy
    return result


def repair_dirty(image: Image) -> None:
    """After a crash with lazy refcounts: set the refcounts right and clear the dirty bit. Errors: OSError."""
    result = check(image, frozenset({"leaks", "errors"}))
    if result.check_errors or image.header.incompatible & Incompatible.DIRTY:
        raise io_error()
