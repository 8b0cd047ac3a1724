"""begin_write: host space for a caller that places the data itself, such as an in-kernel copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.drivers.format.qcow2 import writing
from engine.drivers.format.qcow2.writing import Allocation, InPlace

if TYPE_CHECKING:
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
