"""snapshot-access: the state that a disk had when the copy-before-write node over it was opened."""

from __future__ import annotations

import errno
import os

from engine.drivers.filter.copy_before_write import CopyBeforeWriteDriver, cbw_of
from engine.graph.driver import Driver, Extent, Opening, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Perm, Role


@register
class SnapshotAccessDriver(Driver):
    """Reads the snapshot; a discard gives parts of it up. Not a filter: its data are not those of its child."""

    name = "snapshot-access"
    Options = BlockdevOptionsGenericFormat

    file: Edge

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.DATA | Role.PRIMARY)
        assert file is not None
        self.file = file
        self.length = file.length

    def refresh_limits(self) -> None:
        self.limits = self.file.child.driver.limits

    @property
    def own_alignment(self) -> int:
        return 1

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        # It does not go through the child's requests, so it neither needs nor forbids anything there.
        return Perm.NONE, Perm.ALL

    def exact_filename(self) -> str | None:
        return self.file.child.filename

    def _snapshot(self) -> CopyBeforeWriteDriver:
        driver = cbw_of(self.file.child)
        if driver is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return driver

    def read(self, offset: int, buffer: memoryview) -> None:
        self._snapshot().snapshot_read(offset, buffer)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return self._snapshot().snapshot_status(offset, length, want_zero)

    def discard(self, offset: int, length: int) -> None:
        self._snapshot().snapshot_discard(offset, length)
