"""Zeros without writing them, and giving space back: write_zeroes and discard."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.mapping import run_at
from engine.drivers.format.qcow2.storage import error
from engine.drivers.format.qcow2.tables import (
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    L2_OFFSET,
    UNALLOCATED,
    UNALLOCATED_OWNED,
    ZERO,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    progression,
)
from engine.graph.driver import Status, WriteFlag

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.cache import Slice
    from engine.drivers.format.qcow2.image import Image

_MAY_UNMAP, _NO_FALLBACK = int(WriteFlag.MAY_UNMAP), int(WriteFlag.NO_FALLBACK)
_ZERO_STATUS: Final = int(Status.ZERO)
_ZEROS: Final = memoryview(bytes(1 << 16))

Change = Callable[[int, int], tuple[int, int] | None]
"""(word, bitmap) of an L2 entry → new (word, bitmap), or None to leave it."""


def write_zeroes(image: Image, offset: int, length: int, flags: int) -> None:
    """Make guest range read as zeros: whole (sub)clusters by their L2 entries, the rest by writing. Errors: OSError.

    ENOTSUP for version 2 images, which have no zero flag, and with NO_FALLBACK where bytes would have to be written.
    """
    if image.header.version < 3:
        raise error(errno.ENOTSUP)
    image.prepare_modify()
    if image.header.data_file_raw and image.data_file is not None:
        image.data_file.write_zeroes(offset, length, flags)
    unit = image.subcluster_size
    end = offset + length
    first = -(-offset // unit) * unit
    last = -(-end // unit) * unit if end == image.size else end // unit * unit
    if first > last:
        _zero_part(image, offset, end, flags)
        return
    if offset < first:
        _zero_part(image, offset, first, flags)
    if first < last:
        zeroize(image, first, last, may_unmap=bool(flags & _MAY_UNMAP))
    if last < end:
        _zero_part(image, last, end, flags)


def _zero_part(image: Image, start: int, end: int, flags: int) -> None:
    """Zero a part of one (sub)cluster: nothing to write if the rest of it reads as zeros, too."""
    unit = image.subcluster_size
    base = start // unit * unit
    with image.lock:
        while image.traffic.wait_free(base & ~image.cluster_mask, (base | image.cluster_mask) + 1):
            pass
        image.check_alive()
        kind, _, _ = run_at(image, base, unit)
    if kind in (ZERO_PLAIN, ZERO_ALLOCATED):
        return
    if kind in (UNALLOCATED, UNALLOCATED_OWNED) and _below_is_zero(image, base, start, end):
        zeroize(image, base, base + unit, may_unmap=bool(flags & _MAY_UNMAP), only_empty=True)
        # Someone may have allocated it meanwhile: then the flag was not set, and the bytes are written.
        with image.lock:
            kind, _, _ = run_at(image, base, unit)
        if kind in (ZERO_PLAIN, ZERO_ALLOCATED):
            return
    if flags & _NO_FALLBACK:
        raise error(errno.ENOTSUP)
    for at in range(start, end, len(_ZEROS)):
        writing.write(image, at, _ZEROS[: min(len(_ZEROS), end - at)])


def _below_is_zero(image: Image, base: int, start: int, end: int) -> bool:
    """Whether the (sub)cluster at *base*, but for [start, end), shows zeros of the backing file."""
    backing = image.backing()
    for first, last in ((base, start), (end, base + image.subcluster_size)):
        if backing is None or first >= last or first >= backing.length:
            continue
        last = min(last, backing.length)
        while first < last:
            extent = backing.block_status(first, last - first, True)
            if not extent.flags & _ZERO_STATUS:
                return False
            first += extent.length
    return True


def zeroize(image: Image, start: int, end: int, *, may_unmap: bool, only_empty: bool = False) -> None:
    """Set zero flags for [start, end), whole (sub)clusters. only_empty: leave entries with data alone."""
    cluster_size = image.cluster_size
    punch = image.settings.discard_request
    if image.extended:
        first, last = -(-start // cluster_size) * cluster_size, end // cluster_size * cluster_size
        if first > last:
            _zero_subclusters(image, start, end, only_empty)
            return
        if start < first:
            _zero_subclusters(image, start, first, only_empty)
        if last < end:
            _zero_subclusters(image, last, end, only_empty)
        start, end = first, last
    data_file = image.data_file is not None

    def change(word: int, bitmap: int) -> tuple[int, int] | None:
        owned = bool(word & (L2_OFFSET | COMPRESSED)) or (data_file and bool(word & COPIED))
        if only_empty and owned and not word & ZERO:
            return None
        unmap = bool(word & COMPRESSED) or (may_unmap and owned)
        kept = 0 if unmap else word
        return (kept, ALL_ZERO) if image.extended else (kept | ZERO, 0)

    walk(image, start, end, change, punch)


def _zero_subclusters(image: Image, start: int, end: int, only_empty: bool) -> None:
    """Set the zero bits of some subclusters of one cluster."""
    size = image.subcluster_size
    base = start & ~image.cluster_mask
    first, last = (start - base) // size, (end - base) // size
    bits = (1 << last) - (1 << first)
    compressed = False

    def change(word: int, bitmap: int) -> tuple[int, int] | None:
        nonlocal compressed
        if word & COMPRESSED:
            compressed = True
            return None
        if only_empty and bitmap & bits:
            return None
        return word, (bitmap & ~bits) | bits << 32

    walk(image, base, base + image.cluster_size, change, False)
    if compressed:
        for at in range(start, end, len(_ZEROS)):
            writing.write(image, at, _ZEROS[: min(len(_ZEROS), end - at)])


def discard(image: Image, offset: int, length: int) -> None:
    """Give the whole clusters inside guest range back; they read as zeros then. Errors: OSError.

    ENOTSUP for version 2 with a backing file: without a zero flag the backing file's data would come back.
    """
    if image.header.version < 3 and image.backing() is not None:
        raise error(errno.ENOTSUP)
    image.prepare_modify()
    end = offset + length
    first = (offset + image.cluster_mask) & ~image.cluster_mask
    last = end & ~image.cluster_mask
    if end == image.size:
        last = (end + image.cluster_mask) & ~image.cluster_mask
    if first >= last:
        return
    if image.header.data_file_raw:
        # What reads as zeros here has to do so in the raw data file, too.
        write_zeroes(image, first, min(last, image.size) - first, _MAY_UNMAP)
    else:
        discard_clusters(image, first, last, full=False, punch=image.settings.discard_request)


def discard_clusters(image: Image, start: int, end: int, *, full: bool, punch: bool | None) -> None:
    """Unlink guest clusters [start, end). full: they become unallocated, even if the backing file shows through."""
    has_backing = image.backing() is not None
    flagged = image.header.version >= 3
    data_file = image.data_file is not None

    def change(word: int, bitmap: int) -> tuple[int, int] | None:
        owned = bool(word & (L2_OFFSET | COMPRESSED)) or (data_file and bool(word & COPIED))
        if full:
            return 0, 0
        if not owned and not has_backing:
            return None
        if image.extended:
            return 0, ALL_ZERO
        return ZERO if flagged else 0, 0

    walk(image, start, end, change, punch, only_tables=full or not has_backing)


def walk(image: Image, start: int, end: int, change: Change, punch: bool | None, *, only_tables: bool = False) -> None:
    """Apply *change* to the L2 entries of guest clusters [start, end); host clusters that lose their entry are freed.

    only_tables: there is nothing to do where there is no L2 table. The lock is let go of between slices.
    """
    if punch is None:
        punch = image.settings.discard_other
    span = image.slice_entries << image.cluster_bits
    at = start
    while at < end:
        stop = min(end, (at // span + 1) * span)
        claim = None
        with image.lock:
            image.check_alive()
            if image.traffic.wait_free(at, stop):
                continue
            index = at >> image.l1_shift
            if only_tables and not image.l2_table(index):
                at = min(end, (index + 1) << image.l1_shift)
                continue
            holes = _change_slice(image, index, at, stop, change, punch)
            if holes:
                claim = image.traffic.claim(at, stop)
        if claim is not None:
            # Host space of a data file is given by the guest offset: nobody may write there until the discard is over.
            try:
                for offset, length in holes:
                    _discard_data(image, offset, length)
            finally:
                with image.lock:
                    image.traffic.release(claim)
        if image.ordering.overdue:
            image.ordering.write_back()
        at = stop


def _discard_data(image: Image, offset: int, length: int) -> None:
    if image.data_file is not None:
        try:
            image.data_file.discard(offset, length)
        except OSError:
            # Advisory.
            return


def _change_slice(
    image: Image, index: int, start: int, stop: int, change: Change, punch: bool
) -> list[tuple[int, int]]:
    """One slice's part of walk(); returns (offset, length) runs to discard in the external data file."""
    table = image.l2_table(index)
    entry = (start >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
    at = entry & (image.slice_entries - 1)
    count = (stop - start) >> image.cluster_bits
    if not table and change(0, 0) in (None, (0, 0)):
        return []
    if table and not _changes_anything(image, image.l2_slice(table, entry).words, at, count, change):
        return []
    table = image.writable_l2_table(index)
    return _rewrite(image, image.l2_slice(table, entry), at, count, change, punch, start)


def _changes_anything(image: Image, words: array[int], at: int, count: int, change: Change) -> bool:
    width = image.entry_words
    position = at
    while position < at + count:
        word = words[position * width]
        bitmap = words[position * width + 1] if width == 2 else 0
        if change(word, bitmap) not in (None, (word, bitmap)):
            return True
        position += _alike(image, words, position, at + count - position)
    return False


def _alike(image: Image, words: array[int], at: int, count: int) -> int:
    """How many entries from *at* on are of one kind: all empty in the same way, or with adjacent host clusters."""
    word = words[at] if image.entry_words == 1 else words[2 * at]
    if word & COMPRESSED:
        return 1
    step = image.cluster_size if word & L2_OFFSET else 0
    if image.entry_words == 1:
        return progression(words, at, count, step)
    entries, bitmaps = words[2 * at : 2 * (at + count) : 2], words[2 * at + 1 : 2 * (at + count) : 2]
    return min(progression(entries, 0, count, step), progression(bitmaps, 0, count, 0))


def _rewrite(
    image: Image, slice_: Slice, at: int, count: int, change: Change, punch: bool, start: int
) -> list[tuple[int, int]]:
    words, width = slice_.words, image.entry_words
    holes: list[tuple[int, int]] = []
    position, end = at, at + count
    while position < end:
        word = words[position * width]
        bitmap = words[position * width + 1] if width == 2 else 0
        run = _alike(image, words, position, end - position)
        new = change(word, bitmap)
        if new is None or new == (word, bitmap):
            position += run
            continue
        new_word, new_bitmap = new
        step = image.cluster_size if new_word & L2_OFFSET else 0
        first, last = position * width, (position + run) * width
        values = array("Q", range(new_word, new_word + run * step, step)) if step else array("Q", [new_word]) * run
        if width == 1:
            words[first:last] = values
        else:
            both = array("Q", bytes(16 * run))
            both[0::2] = values
            both[1::2] = array("Q", [new_bitmap]) * run
            words[first:last] = both
        image.mark_slice(slice_, first, last)
        keeps_host = bool(new_word & (L2_OFFSET | COPIED))
        if image.data_file is not None:
            if punch and not keeps_host and word & (L2_OFFSET | COPIED):
                holes.append((start + ((position - at) << image.cluster_bits), run << image.cluster_bits))
        elif word & COMPRESSED or not keeps_host:
            writing.free_entry(image, word, punch, run)
        position += run
    return holes
