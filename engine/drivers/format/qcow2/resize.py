"""Changing the virtual size, preallocating, and emptying an image.

Growing: the L1 table grows first (new table written, synced, then the header points to it), then space is
preallocated beyond the old end, and the new size is written last. Shrinking: what lies beyond the new end is unlinked
and that brought to disk, then the size is written, then refcount blocks and the file's tail without use are given up.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.mapping import run_at
from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.storage import error, round_up
from engine.drivers.format.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L2_OFFSET,
    UNALLOCATED,
    progression,
    to_disk,
)
from engine.drivers.format.qcow2.unmap import discard_clusters
from engine.errors import GenericError, os_error_text
from engine.graph.driver import Prealloc

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image

MIN_SIZE_UNIT = 512


def truncate(image: Image, size: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
    """Change the virtual size to *size* bytes; new bytes read as zeros. Errors: GenericError with QEMU's texts,
    OSError.
    """
    if size % MIN_SIZE_UNIT:
        raise GenericError(f"The new size must be a multiple of {MIN_SIZE_UNIT}")
    if image.snapshots and image.header.version < 3:
        raise GenericError("Can't resize a v2 image which has snapshots")
    image.prepare_modify()
    with image.resize_lock:
        if size < image.size:
            if prealloc != Prealloc.OFF:
                raise GenericError("Preallocation can't be used for shrinking an image")
            _shrink(image, size)
        elif size > image.size:
            _grow(image, size, prealloc)
        if image.data_file is not None:
            image.data_file.truncate(size, exact=exact, prealloc=_data_prealloc(prealloc))
        image.size_changed()


def _data_prealloc(prealloc: Prealloc) -> Prealloc:
    return Prealloc.OFF if prealloc == Prealloc.METADATA else prealloc


def _write_size(image: Image, size: int) -> None:
    """Publish the new size (both locks held)."""
    image.header.size = size
    image.write_header_field(*hdr.encode_size(image.header))
    image.sync()
    image.size = size


# -- growing ---------------------------------------------------------------------------------------------------------


def _grow(image: Image, size: int, prealloc: Prealloc) -> None:
    old = image.size
    entries = image.header.l1_entries_for(size)
    if entries > image.header.l1_size:
        try:
            _grow_l1(image, entries)
        except OSError as exc:
            raise GenericError(f"Failed to grow the L1 table: {os_error_text(exc)}") from exc
    _drop_vm_state(image)
    # The last cluster may hold bytes beyond the old end, from before an earlier shrink.
    edge = min(round_up(old, image.cluster_size), size)
    if edge > old:
        _clear_tail(image, old, edge)
    if prealloc != Prealloc.OFF or image.header.data_file_raw:
        try:
            preallocate(image, round_up(old, image.cluster_size), size, prealloc)
        except OSError as exc:
            raise GenericError(f"Failed to preallocate: {os_error_text(exc)}") from exc
    image.ordering.write_back()
    with image.flush_lock, image.lock:
        _write_size(image, size)


def _drop_vm_state(image: Image) -> None:
    """Unlink what lies beyond the disk's end, as the VM state of a snapshot gone back to does: it is to be disk now."""
    with image.flush_lock, image.lock:
        first = image.header.l1_entries_for(image.size)
        if any(image.l1[first:]):
            image.wait_all()
            _drop_tables(image, first, punch=image.settings.discard_snapshot)
            image.ordering.write_back_locked()


def _clear_tail(image: Image, start: int, stop: int) -> None:
    with image.lock:
        kind, _, _ = run_at(image, start, stop - start)
    backing = image.backing()
    if kind != UNALLOCATED or (backing is not None and backing.length > start):
        zeros = memoryview(bytes(min(stop - start, 1 << 20)))
        for at in range(start, stop, len(zeros)):
            writing.write(image, at, zeros[: stop - at])


def _grow_l1(image: Image, entries: int) -> None:
    """Move the L1 table to a place where it has *entries* entries. Takes the locks."""
    if entries > hdr.MAX_L1_BYTES // 8:
        raise error(errno.EFBIG)
    header = image.header
    with image.flush_lock, image.lock:
        image.wait_all()
        image.ordering.write_back_locked()
        clusters = -(-entries * 8 // image.cluster_size)
        image.announce("l1_grow_alloc_table")
        first, _ = image.refcounts.allocate(clusters, "L1 table", exact=True)
        grown = image.l1 + array("Q", bytes(8 * (entries - len(image.l1))))
        offset = first << image.cluster_bits
        try:
            if not image.lazy:
                image.refcounts.write_blocks()
                image.refcounts.write_table()
            image.announce("l1_grow_write_table")
            image.write_metadata(offset, to_disk(grown), Area.ACTIVE_L1)
            image.sync()
        except OSError:
            image.undo_allocation(first, clusters)
            raise
        old_offset, old_entries = header.l1_offset, header.l1_size
        header.l1_offset, header.l1_size = offset, entries
        image.l1 = grown
        image.overlap_areas_changed()
        image.announce("l1_grow_activate_table")
        image.write_header_field(*hdr.encode_l1_location(header))
        image.sync()
        old_clusters = -(-old_entries * 8 // image.cluster_size)
        if old_clusters:
            image.undo_allocation(old_offset >> image.cluster_bits, old_clusters)


def preallocate(image: Image, start: int, end: int, mode: Prealloc) -> None:
    """Give guest clusters from *start* (aligned) up to *end* host clusters where they have none. Errors: OSError.

    New clusters lie beyond everything ever written to the file, so they read as zeros without being written, and, but
    for refcount blocks, side by side. The file is lengthened to hold them, with space taken as *mode* says.
    """
    end = round_up(end, image.cluster_size)
    runs = list(_unallocated(image, start, end))
    pool = _Pool(image, sum(length for _, length in runs) >> image.cluster_bits, mode)
    try:
        for offset, length in runs:
            _link_preallocated(image, pool, offset, length)
    finally:
        pool.close()
    if image.data_file is None and image.high_water > image.file.length:
        image.file.truncate(image.high_water, exact=False)


def _unallocated(image: Image, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of unallocated guest clusters, a slice at a time; makes their L2 tables."""
    span = image.slice_entries << image.cluster_bits
    at = start
    while at < end:
        stop = min(end, (at // span + 1) * span)
        with image.lock:
            image.check_alive()
            if image.traffic.wait_free(at, stop):
                continue
            kind, length, _ = run_at(image, at, stop - at)
            length = round_up(length, image.cluster_size)
            if kind == UNALLOCATED:
                length = min(length, stop - at)
                image.writable_l2_table(at >> image.l1_shift)
        if kind == UNALLOCATED:
            yield at, length
        at += length


class _Pool:
    """Host clusters taken for preallocation: *wanted* in all, as few runs as possible."""

    def __init__(self, image: Image, wanted: int, mode: Prealloc) -> None:
        self._image = image
        self._wanted = wanted
        self._mode = mode
        self._first = self._count = 0

    def take(self, count: int) -> tuple[int, int]:
        """(host offset, clusters) for up to *count* clusters (lock held). Errors: OSError."""
        image = self._image
        if not self._count:
            past = round_up(image.high_water, image.cluster_size) >> image.cluster_bits
            self._first, self._count = image.refcounts.allocate(self._wanted, "data cluster", start=past)
            if self._mode in (Prealloc.FALLOC, Prealloc.FULL) and image.high_water > image.file.length:
                image.file.truncate(image.high_water, exact=False, prealloc=self._mode)
        count = min(count, self._count)
        host = self._first << image.cluster_bits
        self._first += count
        self._count -= count
        self._wanted -= count
        return host, count

    def close(self) -> None:
        """Give back what was not used (after an error)."""
        if self._count:
            with self._image.lock:
                self._image.undo_allocation(self._first, self._count)


def _link_preallocated(image: Image, pool: _Pool, offset: int, length: int) -> None:
    """Link host clusters for a run of guest clusters inside one L2 slice, unless somebody has allocated them
    meanwhile.
    """
    end = offset + length
    width = image.entry_words
    while offset < end:
        with image.lock:
            image.check_alive()
            if image.traffic.wait_free(offset, end):
                continue
            kind, length, _ = run_at(image, offset, end - offset)
            length = round_up(length, image.cluster_size)
            if kind == UNALLOCATED:
                count = length >> image.cluster_bits
                host, count = (offset, count) if image.data_file is not None else pool.take(count)
                table = image.writable_l2_table(offset >> image.l1_shift)
                entry = (offset >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
                slice_ = image.l2_slice(table, entry)
                first = (entry & (image.slice_entries - 1)) * width
                last = first + count * width
                start, step = host | COPIED, image.cluster_size
                # In extended entries only the first word changes: the subclusters go on showing what they showed.
                slice_.words[first:last:width] = array("Q", range(start, start + count * step, step))
                image.mark_slice(slice_, first, last)
                slice_.generation = image.ordering.bump()
                length = count << image.cluster_bits
        offset += length


# -- shrinking ---------------------------------------------------------------------------------------------------------


def _shrink(image: Image, size: int) -> None:
    keep = image.header.l1_entries_for(size)
    first = round_up(size, image.cluster_size)
    last = min(round_up(image.size, image.cluster_size), keep << image.l1_shift)
    try:
        if first < last:
            discard_clusters(image, first, last, full=True, punch=True)
        with image.flush_lock, image.lock:
            image.wait_all()
            image.announce("l1_shrink_write_table")
            _drop_tables(image, keep, punch=True)
            image.announce("l1_shrink_free_l2_clusters")
            image.ordering.write_back_locked()
            _write_size(image, size)
            give_up_tail(image)
    except OSError as exc:
        raise GenericError(f"Failed to discard cropped clusters: {os_error_text(exc)}") from exc


def _drop_tables(image: Image, first: int, *, punch: bool) -> None:
    """Unlink all L2 tables from L1 entry *first* on, with what they map (both locks held, no allocation in flight)."""
    for index in range(first, len(image.l1)):
        if not image.l1[index]:
            continue
        table = image.l2_table(index)
        if table:
            for entry in range(0, 1 << image.l2_bits, image.slice_entries):
                words = image.l2_slice(table, entry).words
                _free_entries(image, words, ((index << image.l2_bits) + entry) << image.cluster_bits, punch)
            image.forget_table(table)
            image.defer_free(table >> image.cluster_bits, 1)
            image.overlap.remove(Area.ACTIVE_L2, table)
        image.l1[index] = 0
        image.ordering.dirty_l1.add(index)
        if image.ordering.overdue:
            image.ordering.write_back_locked()


def _free_entries(image: Image, words: array[int], offset: int, punch: bool) -> None:
    """Drop the references of all entries of one slice, which maps guest *offset* on."""
    entries = words[:: image.entry_words] if image.extended else words
    at, count = 0, len(entries)
    while at < count:
        word = entries[at]
        owned = bool(word & (COMPRESSED | L2_OFFSET))
        run = 1
        if not word & COMPRESSED:
            run = progression(entries, at, count - at, image.cluster_size if word & L2_OFFSET else 0)
        if owned and image.data_file is None:
            writing.free_entry(image, word, punch, run)
        elif punch and image.data_file is not None and (owned or word & COPIED):
            try:
                image.data_file.discard(offset + (at << image.cluster_bits), run << image.cluster_bits)
            except OSError:
                # Advisory.
                pass
        at += run


def give_up_tail(image: Image) -> None:
    """Drop refcount blocks that count nothing but themselves, and cut the file behind the last cluster in use."""
    refcounts = image.refcounts
    image.ordering.write_back_locked()
    if not image.lazy:
        # Counts lowered just now must be on disk before blocks that hold them go: they would be lost otherwise.
        image.sync()
        for index in range(len(refcounts.table) - 1, -1, -1):
            refcounts.drop_empty_block(index)
        image.sync()
    end = (refcounts.last_used() + 1) << image.cluster_bits
    if 0 < end < image.file.length:
        try:
            image.file.truncate(end, exact=False)
        except (OSError, GenericError):
            # The tail stays: unused space, which is no reason to fail what was asked for.
            return


def make_empty(image: Image) -> None:
    """Drop all guest data, so that the backing file shows everywhere; snapshots keep theirs. Errors: OSError."""
    image.prepare_modify()
    with image.resize_lock, image.flush_lock, image.lock:
        image.wait_all()
        image.announce("empty_image_prepare")
        _drop_tables(image, 0, punch=image.settings.discard_snapshot)
        image.ordering.write_back_locked()
        give_up_tail(image)
