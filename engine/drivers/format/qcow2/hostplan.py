"""begin_write: host space for a caller that places the data itself, such as an in-kernel copy.

begin_writes: the same for data and zeros that take turns, all in one change of the L2 tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.tables import COPIED
from engine.drivers.format.qcow2.tables import ZERO as ZERO_FLAG
from engine.drivers.format.qcow2.writing import Allocation, InPlace
from engine.graph.runs import DATA, HOLE, ZERO

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.cache import Slice
    from engine.drivers.format.qcow2.image import Image


class Reservation:
    """Host extents for guest range [start, stop), linked by commit() or undone by abort(). Either is called once.

    extents: (host offset, length) in guest order. The whole range stays claimed until then, so overlapping requests
    wait.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._steps: list[Allocation] = []
        self._epochs: list[int] = []
        self.extents: list[tuple[int, int]] = []

    def _add(self, host: int, length: int) -> None:
        if self.extents and self.extents[-1][0] + self.extents[-1][1] == host:
            self.extents[-1] = (self.extents[-1][0], self.extents[-1][1] + length)
        else:
            self.extents.append((host, length))

    def take(self, step: InPlace | Allocation) -> None:
        """Add a step of a write plan (lock held)."""
        if isinstance(step, InPlace):
            self._epochs.append(step.epoch)
            self._add(step.host, step.stop - step.start)
        else:
            self._steps.append(step)
            self._add(step.host + step.start - step.base, step.stop - step.start)

    def commit(self) -> None:
        """The data is in place: make it visible. Errors: OSError from a write-back that had become due."""
        image = self._image
        with image.lock:
            for step in self._steps:
                writing.link(image, step)
        self._leave()
        if image.ordering.overdue:
            image.ordering.write_back()

    def abort(self) -> None:
        """Give everything back; what was in the clusters stays visible."""
        image = self._image
        with image.lock:
            for step in self._steps:
                writing.abandon(image, step)
        self._leave()

    def _leave(self) -> None:
        for epoch in self._epochs:
            self._image.traffic.leave(epoch)


def reserve(image: Image, start: int, stop: int) -> Reservation | None:
    """Host space for [start, stop); None where something would have to be copied around it. Errors: OSError."""
    mask = image.cluster_mask
    if start & mask or (stop & mask and stop != image.size) or start >= stop:
        return None
    image.prepare_modify()
    end = (stop + mask) & ~mask
    reservation = Reservation(image)
    usable = True
    try:
        with image.lock:
            image.check_alive()
            # The whole range at once: a holder never waits for another, so two callers can't block each other.
            while image.traffic.wait_free(start, end):
                pass
            at = start
            while at < stop and usable:
                step = writing.plan(image, at, stop)
                reservation.take(step)
                if isinstance(step, Allocation):
                    usable = step.copy_start == step.start and _covers(step, stop, end)
                at = step.stop
    except BaseException:
        reservation.abort()
        raise
    if not usable:
        reservation.abort()
        return None
    return reservation


def _covers(step: Allocation, stop: int, end: int) -> bool:
    """Whether nothing but bytes beyond the image's end is left of the clusters."""
    return step.copy_stop <= step.stop or (step.stop == stop and step.copy_stop <= end)


class Filling:
    """Words for the L2 entries of a range that had no host clusters, stored by commit() or dropped by abort()."""

    def __init__(self, image: Image, start: int, stop: int) -> None:
        """The range is claimed (lock held)."""
        self._image = image
        self._claim = image.traffic.claim(start, stop)
        self.parts: list[tuple[Slice, int, array[int]]] = []
        self._taken: list[tuple[int, int]] = []
        self.extents: list[tuple[int, int]] = []

    def pin(self, table: Slice, at: int, words: array[int]) -> None:
        """*words* are to be stored at index *at* of *table* (lock held)."""
        table.pins += 1
        self.parts.append((table, at, words))

    def take(self, length: int) -> list[int]:
        """L2 entries of clusters for *length* bytes of data, one after the other (lock held). Errors: OSError."""
        image = self._image
        size, wanted = image.cluster_size, (length + image.cluster_mask) >> image.cluster_bits
        found: list[int] = []
        while wanted:
            first, count = image.refcounts.allocate(wanted, "data cluster")
            self._taken.append((first, count))
            host = first << image.cluster_bits
            found += range(host | COPIED, (host | COPIED) + count * size, size)
            wanted -= count
            part = min(count * size, length)
            length -= part
            self.extents.append((host, part))
        return found

    def commit(self) -> None:
        """The data is in place: make it, and the zeros, visible. Errors: OSError from a write-back that was due."""
        image = self._image
        with image.lock:
            for table, at, words in self.parts:
                table.words[at : at + len(words)] = words
                image.mark_slice(table, at, at + len(words))
                table.generation = image.ordering.bump()
                table.pins -= 1
            image.traffic.release(self._claim)
        if image.ordering.overdue:
            image.ordering.write_back()

    def abort(self) -> None:
        """Give everything back."""
        image = self._image
        with image.lock:
            self.drop()

    def drop(self) -> None:
        """abort() with the lock held."""
        image = self._image
        for first, count in self._taken:
            image.undo_allocation(first, count)
        for table, _, _ in self.parts:
            table.pins -= 1
        image.traffic.release(self._claim)


def fill(image: Image, start: int, runs: Sequence[tuple[int, int]], settle: bool) -> Filling | None:
    """Host space for the data among *runs* (see Driver.begin_writes), which follow one another from *start* on.

    settle: zeros get their flag even where nothing lies below. None where that is not all: clusters with host space
    that are to change, subclusters, parts of clusters. Errors: OSError.
    """
    mask = image.cluster_mask
    stop = start + sum(run for run, _ in runs)
    if image.extended or image.data_file is not None or image.header.version < 3 or start & mask:
        return None
    at = start
    for run, _ in runs:
        at += run
        if at & mask and at != image.size:
            return None
    image.prepare_modify()
    end = (stop + mask) & ~mask
    with image.lock:
        image.check_alive()
        while image.traffic.wait_free(start, end):
            pass
        # Nothing below an image without a backing file: then zeros are there already.
        flag_zeros = settle or not writing.shows_zeros(image, start)
        filling = Filling(image, start, end)
        try:
            _find_slices(image, filling, start, end)
            usable = _choose_words(image, filling, runs, flag_zeros)
        except BaseException:
            filling.drop()
            raise
        if not usable:
            filling.drop()
            return None
    return filling


def _find_slices(image: Image, filling: Filling, start: int, end: int) -> None:
    """Pin the slices of [start, end)."""
    at = start
    while at < end:
        table = image.writable_l2_table(at >> image.l1_shift)
        entry = (at >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
        slice_ = image.l2_slice(table, entry)
        index = entry & (image.slice_entries - 1)
        count = min((end - at) >> image.cluster_bits, image.slice_entries - index)
        filling.pin(slice_, index, slice_.words[index : index + count])
        at += count << image.cluster_bits


_PLAIN: Final = frozenset((0, ZERO_FLAG))
"""L2 entries without host space."""


def _choose_words(image: Image, filling: Filling, runs: Sequence[tuple[int, int]], flag_zeros: bool) -> bool:
    """Replace the words by what they are to become; False where one that would change has host space."""
    words = array("Q")
    for _, _, part in filling.parts:
        words += part
    bits, mask = image.cluster_bits, image.cluster_mask
    hosts = array("Q", filling.take(sum(run for run, kind in runs if kind == DATA)))
    at = taken = 0
    for run, kind in runs:
        stop = at + ((run + mask) >> bits)
        if kind != HOLE and not _PLAIN.issuperset(words[at:stop]):
            return False
        if kind == DATA:
            words[at:stop] = hosts[taken : taken + stop - at]
            taken += stop - at
        elif kind == ZERO and flag_zeros:
            words[at:stop] = array("Q", [ZERO_FLAG]) * (stop - at)
        at = stop
    at = 0
    for _, _, part in filling.parts:
        stop = at + len(part)
        part[:] = words[at:stop]
        at = stop
    return True
