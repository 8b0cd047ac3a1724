"""Internal snapshots: taking, deleting, and going back to one.

Each stands still for the whole operation and follows the rules of ordering.py; what is published with one write of
the header is the snapshot table (create, delete) or the size together with the L1 table (goto). Before, all that will
be referred to is on disk and counted; afterwards, what lost its last reference is freed. In between refcounts and
COPIED flags of the active tables disagree: harmless (see sharing.py), but a finding of a check. So version 3 images
are marked dirty meanwhile, and a power cut is followed by the same repair as with lazy refcounts. Version 2 has no
such mark: there a check has flags and leaks to repair.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2 import sharing
from engine.drivers.format.qcow2 import snapshots as table_of
from engine.drivers.format.qcow2.ordering import Freed
from engine.drivers.format.qcow2.snapshots import Snapshot
from engine.drivers.format.qcow2.storage import error
from engine.drivers.format.qcow2.tables import COPIED, L1_OFFSET, REFTABLE_OFFSET, to_disk
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.header import Header
    from engine.drivers.format.qcow2.image import Image

_NOT_REMOVED: Final = "Failed to remove snapshot from snapshot list"


@dataclass(frozen=True, slots=True)
class Moment:
    """What a new snapshot is told besides its name: the time, the guest's clock, and instructions executed."""

    date_sec: int
    date_nsec: int
    vm_clock_nsec: int = 0
    icount: int | None = None


# -- standing still ----------------------------------------------------------------------------------------------------


@contextmanager
def _still(image: Image) -> Iterator[None]:
    """Hold all locks of an image that may be written, with everything on disk and no request in flight."""
    if image.data_file is not None:
        raise error(errno.ENOTSUP)
    image.prepare_modify()
    with image.resize_lock, image.flush_lock, image.lock:
        image.check_alive()
        image.wait_all()
        sharing.require_still(image)
        image.ordering.write_back_locked()
        yield


def _begin(image: Image) -> None:
    """Refcounts and flags are going to disagree for a while. Errors: OSError."""
    if image.lazy:
        image.before_refcounts()
    elif image.header.version >= 3:
        image.mark_dirty()


def _end(image: Image) -> None:
    """They agree again; if that can't be brought to disk, the next modification repairs the image."""
    try:
        image.ordering.write_back_locked()
        if not image.lazy:
            image.mark_repaired()
    except OSError:
        image.require_repair()


def _recover(image: Image) -> None:
    """After a failure all references are as before: set the flags right."""
    try:
        sharing.refresh_copied(image)
    except OSError:
        image.require_repair()
        return
    _end(image)


def _write_refcounts(image: Image) -> None:
    """All counts and tables on disk; with lazy refcounts the dirty bit stands for them."""
    if not image.lazy:
        image.refcounts.write_blocks()
        image.refcounts.write_table()
    image.sync()


def _write_new(image: Image, data: bytes, what: str) -> tuple[int, int]:
    """(first cluster, clusters) where *data* was put. Errors: OSError; nothing is left then."""
    count = -(-len(data) // image.cluster_size)
    first, _ = image.refcounts.allocate(count, what, exact=True)
    offset = first << image.cluster_bits
    try:
        image.file.write(offset, memoryview(data + bytes(-len(data) % 512)))
    except BaseException:
        image.undo_allocation(first, count)
        raise
    return first, count


def _publish(image: Image, snapshots: list[Snapshot]) -> None:
    """Write the table of *snapshots* to a new place, and let the header point to it. Errors: OSError; the old table
    is in force then.
    """
    header = image.header
    snapshots = [table_of.with_full_extra(item) for item in snapshots]
    data = table_of.encode(snapshots)
    first, count = _write_new(image, data, "snapshot table") if data else (0, 0)
    old = header.nb_snapshots, header.snapshots_offset
    old_bytes = image.snapshot_table_size
    try:
        _write_refcounts(image)
        header.nb_snapshots, header.snapshots_offset = len(snapshots), first << image.cluster_bits
        _switch(image, hdr.encode_snapshots_location)
    except BaseException:
        if (header.nb_snapshots, header.snapshots_offset) != old:
            header.nb_snapshots, header.snapshots_offset = old
            _switch_back(image, hdr.encode_snapshots_location)
        if count:
            image.undo_allocation(first, count)
        raise
    image.snapshots = snapshots
    image.overlap_areas_changed()
    if old_bytes:
        clusters = -(-old_bytes // image.cluster_size)
        image.ordering.free_now([Freed(old[1] >> image.cluster_bits, clusters, image.settings.discard_snapshot)])


def _switch(image: Image, field: Callable[[Header], tuple[int, bytes]]) -> None:
    image.write_header_field(*field(image.header))
    image.sync()


def _switch_back(image: Image, field: Callable[[Header], tuple[int, bytes]]) -> None:
    """The header in memory has the old values again; whether the disk has the new ones is not known."""
    try:
        _switch(image, field)
    except OSError:
        # Nothing may be freed nor written by either state of the header. Opening it anew will tell which it is.
        image.dead = True


# -- finding -----------------------------------------------------------------------------------------------------------


def find(image: Image, snapshot_id: str | None, name: str | None) -> Snapshot | None:
    """The first snapshot with this id and this name, as far as they are given."""
    for item in image.snapshots:
        if (snapshot_id is None or item.id == snapshot_id) and (name is None or item.name == name):
            return item
    return None


def find_any(image: Image, id_or_name: str) -> Snapshot | None:
    """The snapshot with this id, else the one of this name."""
    return find(image, id_or_name, None) or find(image, None, id_or_name)


def _next_id(image: Image) -> str:
    highest = 0
    for item in image.snapshots:
        digits = item.id[: len(item.id) - len(item.id.lstrip("0123456789"))]
        highest = max(highest, int(digits or 0))
    return str(highest + 1)


# -- creating ----------------------------------------------------------------------------------------------------------


def create(image: Image, name: str, moment: Moment) -> Snapshot:
    """Take a snapshot of the disk as it is now. Errors: OSError (EFBIG: there are too many; ENOTSUP: external data
    file; EINVAL: the refcounts are too narrow for one more).
    """
    with _still(image):
        if len(image.snapshots) >= hdr.MAX_SNAPSHOTS:
            raise error(errno.EFBIG)
        _begin(image)
        try:
            _share_active(image, name, moment)
        except OSError:
            _recover(image)
            raise
        _end(image)
        return image.snapshots[-1]


def _share_active(image: Image, name: str, moment: Moment) -> None:
    # A VM state, beyond the disk, is none of its.
    size = image.header.l1_entries_for(image.size)
    copy = array("Q", (entry & ~COPIED for entry in image.l1[:size]))
    sharing.share(image, copy)
    first = count = 0
    try:
        image.ordering.dirty_l1.update(i for i, entry in enumerate(image.l1[:size]) if entry & COPIED)
        image.l1[:size] = copy
        image.ordering.write_back_locked()
        if copy:
            first, count = _write_new(image, to_disk(copy), "snapshot L1 table")
        snapshot = Snapshot(
            id=_next_id(image),
            name=name,
            l1_offset=first << image.cluster_bits,
            l1_size=len(copy),
            date_sec=moment.date_sec,
            date_nsec=moment.date_nsec,
            vm_clock_nsec=moment.vm_clock_nsec,
            vm_state_size=0,
            disk_size=image.size,
            icount=moment.icount,
        )
        _publish(image, [*image.snapshots, snapshot])
    except OSError:
        if not image.dead:
            sharing.unshare(image, copy, punch=False)
            if count:
                image.undo_allocation(first, count)
        raise


# -- deleting ----------------------------------------------------------------------------------------------------------


def delete(image: Image, snapshot: Snapshot) -> None:
    """Delete *snapshot*. Errors: GenericError with QEMU's texts, OSError."""
    punch = image.settings.discard_snapshot
    if not image.writable:
        raise GenericError(f"{_NOT_REMOVED}: {os.strerror(errno.EPERM)}")
    with _still(image):
        l1 = image.read_snapshot_l1(snapshot)
        _begin(image)
        try:
            _publish(image, [item for item in image.snapshots if item is not snapshot])
        except OSError as exc:
            _end(image)
            raise GenericError(f"{_NOT_REMOVED}: {os_error_text(exc)}") from exc
        _drop(image, l1, snapshot.l1_offset, punch)


def _drop(image: Image, l1: array[int], offset: int, punch: bool) -> None:
    """Free the tree under *l1*, and that table itself at host *offset*; nothing on disk leads there any more."""
    try:
        sharing.unshare(image, l1, punch=punch)
        if l1:
            clusters = -(-len(l1) * 8 // image.cluster_size)
            image.ordering.free_now([Freed(offset >> image.cluster_bits, clusters, punch)])
    except OSError as exc:
        image.require_repair()
        raise GenericError(f"Failed to free the cluster and L1 table: {os_error_text(exc)}") from exc
    try:
        sharing.refresh_copied(image)
    except OSError as exc:
        image.require_repair()
        raise GenericError(f"Failed to update snapshot status in disk: {os_error_text(exc)}") from exc
    _end(image)


# -- going back --------------------------------------------------------------------------------------------------------


def go_back(image: Image, snapshot: Snapshot) -> None:
    """Make the disk what it was when *snapshot* was taken, its size included; what it is now is lost, unless it is in
    a snapshot, too. A VM state is left alone. Errors: OSError (ENOTSUP: version 2 can't change the size), GenericError.
    """
    header = image.header
    size = snapshot.disk_size
    with _still(image):
        if size != image.size and header.version < 3:
            raise error(errno.ENOTSUP)
        needed = header.l1_entries_for(size)
        if size % 512 or needed * 8 > hdr.MAX_L1_BYTES:
            raise error(errno.EINVAL)
        kept = image.read_snapshot_l1(snapshot)[:needed]
        l1 = array("Q", (entry & ~COPIED for entry in kept)) + array("Q", bytes(8 * (needed - len(kept))))
        old_l1, old_offset = image.l1, header.l1_offset
        _begin(image)
        try:
            _exchange(image, l1, size)
        except OSError:
            _recover(image)
            raise
        image.size_changed()
        _drop(image, old_l1, old_offset, image.settings.discard_snapshot)


def _exchange(image: Image, l1: array[int], size: int) -> None:
    """Put a copy of the table *l1* and *size* in force. Errors: OSError; all references are as before then."""
    header = image.header
    old = header.size, header.l1_size, header.l1_offset
    sharing.share(image, l1)
    first = count = 0
    try:
        if l1:
            first, count = _write_new(image, to_disk(l1), "L1 table")
        _write_refcounts(image)
        header.size, header.l1_size, header.l1_offset = size, len(l1), first << image.cluster_bits
        _switch(image, hdr.encode_size_and_l1)
    except OSError:
        if (header.size, header.l1_size, header.l1_offset) != old:
            header.size, header.l1_size, header.l1_offset = old
            _switch_back(image, hdr.encode_size_and_l1)
        if not image.dead:
            sharing.unshare(image, l1, punch=False)
            if count:
                image.undo_allocation(first, count)
        raise
    image.l1 = l1
    image.size = size
    image.l2_cache.clear()
    image.overlap.set_points(
        (entry & L1_OFFSET for entry in l1), (entry & REFTABLE_OFFSET for entry in image.refcounts.table)
    )
    image.overlap_areas_changed()
