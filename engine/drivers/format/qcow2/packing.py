"""Compressed writes: whole clusters go through the compressor, and what comes out is packed back to back into host
clusters.

The piece is written before its L2 entry changes in memory, as all guest data is. A host cluster that holds several
pieces has one reference for each; it takes further pieces only as long as none of its references is on its way out
(``Packing.forget``): so no piece ever lands in a cluster that is being punched or handed out again.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.compress import compress
from engine.drivers.format.qcow2.mapping import run_at
from engine.drivers.format.qcow2.storage import error, io_error, round_up
from engine.drivers.format.qcow2.tables import COMPRESSED, L2_OFFSET

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image


class Packing:
    """Where the next compressed piece goes. Called with the image's lock held. position: host offset, 0 for none."""

    __slots__ = ("_image", "position")

    def __init__(self, image: Image) -> None:
        self._image = image
        self.position = 0

    def forget(self, cluster: int, count: int) -> None:
        """References to these host clusters go away: they take no more pieces."""
        if self.position and cluster <= self.position >> self._image.cluster_bits < cluster + count:
            self.position = 0

    def take(self, size: int) -> tuple[int, tuple[int, int]]:
        """(host offset, (cluster, clusters)) for a piece of *size* bytes, less than a cluster; the clusters have got
        a reference for it. Errors: OSError.
        """
        image = self._image
        image.announce("cluster_alloc_bytes")
        refcounts = image.refcounts
        offset = self.position
        if offset and not 0 < refcounts.get(offset >> image.cluster_bits) < refcounts.maximum:
            offset = 0
        room = -offset & image.cluster_mask
        if offset and room >= size:
            image.check_overlap(offset, size)
            refcounts.change(offset >> image.cluster_bits, 1, 1)
            taken = offset >> image.cluster_bits, 1
        else:
            cluster, _ = refcounts.allocate(1, "compressed cluster")
            taken = cluster, 1
            if room and offset + room == cluster << image.cluster_bits:
                try:
                    refcounts.change(cluster - 1, 1, 1)
                except OSError:
                    image.undo_allocation(cluster, 1)
                    raise
                taken = cluster - 1, 2
            else:
                offset = cluster << image.cluster_bits
        end = offset + size
        self.position = end if end & image.cluster_mask else 0
        return offset, taken


def write(image: Image, offset: int, data: memoryview) -> None:
    """Write *data* compressed: whole clusters that have no host space yet, or up to the image's end. Errors: OSError.

    ENOTSUP with an external data file, EINVAL for parts of clusters, EIO where a cluster has data already (as in
    QEMU). What does not get smaller is written as it is. Without data the file is filled up to a sector's end.
    """
    if image.data_file is not None:
        raise error(errno.ENOTSUP)
    end = offset + len(data)
    if not len(data):
        image.file.truncate(round_up(image.file.length, 512), exact=False)
        return
    if offset & image.cluster_mask or (len(data) & image.cluster_mask and end != image.size):
        raise error(errno.EINVAL)
    image.prepare_modify()
    for at in range(offset, end, image.cluster_size):
        _write_cluster(image, at, data[at - offset : at - offset + image.cluster_size])


def _write_cluster(image: Image, offset: int, data: memoryview) -> None:
    whole: bytes | memoryview = data
    if len(data) < image.cluster_size:
        whole = bytes(data) + bytes(image.cluster_size - len(data))
    packed = compress(whole, image.header.compression_type)
    if len(packed) >= image.cluster_size:
        writing.write(image, offset, data)
        return
    with image.lock:
        step = _plan(image, offset, len(packed))
    try:
        image.announce("write_compressed")
        image.file.write(step.host, memoryview(packed))
    except BaseException:
        with image.lock:
            writing.abandon(image, step)
        raise
    with image.lock:
        image.announce("l2_update_compressed")
        writing.link(image, step)


def _plan(image: Image, offset: int, size: int) -> writing.Allocation:
    end = offset + image.cluster_size
    while image.traffic.wait_free(offset, end):
        pass
    image.check_alive()
    # Validates the entry, too.
    run_at(image, offset, 1)
    index = offset >> image.l1_shift
    entry = (offset >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
    at = entry & (image.slice_entries - 1)
    old = image.l2_table(index)
    if old and image.l2_slice(old, entry).words[at * image.entry_words] & (COMPRESSED | L2_OFFSET):
        raise io_error()
    slice_ = image.l2_slice(image.writable_l2_table(index), entry)
    host, taken = image.packing.take(size)
    shift = 62 - (image.cluster_bits - 8)
    if host >> shift:
        image.undo_allocation(*taken)
        raise error(errno.EFBIG)
    sectors = (host + size - 1 >> 9) - (host >> 9)
    step = writing.Allocation()
    step.base, step.count, step.host, step.taken = offset, 1, host, taken
    step.start, step.stop = step.copy_start, step.copy_stop = offset, end
    step.fresh = step.zero = False
    word = COMPRESSED | sectors << shift | host
    step.words = array("Q", (word, 0)[: image.entry_words])
    writing.begin(image, step, slice_, at)
    return step
