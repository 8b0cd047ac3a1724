"""raw: the child's bytes as they are, or a window of them (offset, size).

Without offset and size raw is a filter in everything but name: it takes no permission nobody asked of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from engine.errors import GenericError
from engine.graph.driver import (
    Driver,
    DriverInfo,
    Extent,
    Opening,
    Prealloc,
    ReopenState,
    Status,
    WritePlan,
    register,
)
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Perm, Role, default_child_permissions
from engine.qapi import Int

SECTOR = 512
_PASS_ON = int(Status.RAW | Status.OFFSET_VALID)
_PROBE_SPAN = 512
"""Bytes at the start that decide what a probed image is taken for."""


class BlockdevOptionsRaw(BlockdevOptionsGenericFormat):
    """offset: where the window starts in the child, bytes. size: its length, bytes; to the child's end if absent."""

    offset: Int | None = None
    size: Int | None = None


def _check_window(offset: int, size: int | None, total: int) -> None:
    """Check that the window lies inside a child of *total* bytes. Errors: GenericError."""
    if offset > total:
        raise GenericError(f"Offset ({offset}) cannot be greater than size of the containing file ({total})")
    if size is not None and total - offset < size:
        raise GenericError(
            f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the "
            f" actual size of the containing file ({total})"
        )
    if size is not None and size % SECTOR:
        raise GenericError(f"Specified size is not multiple of {SECTOR}")


@register
class RawDriver(Driver):
    """The raw format."""

    name = "raw"
    Options = BlockdevOptionsRaw
    strong_options = ("offset", "size")
    mutable_options = frozenset({"offset", "size"})
    supports_fua = True  # the child sees to it

    file: Edge
    offset: int
    size: int | None

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 1

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsRaw = opening.options
        if (options.offset or 0) < 0 or (options.size or 0) < 0:
            bad = "offset" if (options.offset or 0) < 0 else "size"
            raise GenericError(f"Parameter '{bad}' expects a non-negative number below 2^64")
        self.offset = options.offset or 0
        self.size = options.size
        windowed = bool(self.offset) or self.size is not None
        # With a window the node is not its child's equal, hence no filter (QEMU's raw_open).
        role = (Role.DATA if windowed else Role.FILTERED) | Role.PRIMARY
        file = opening.open_child("file", role)
        assert file is not None
        self.file = file
        if file.child.ejected:
            raise GenericError(f"Could not get image size: {os.strerror(errno.ENOMEDIUM)}")
        _check_window(self.offset, self.size, file.length)

    @property
    def length(self) -> int:
        if self.size is not None:
            return self.size
        return -(-max(self.file.length - self.offset, 0) // SECTOR) * SECTOR

    @length.setter
    def length(self, value: int) -> None:
        """The length follows from the child and the options."""

    def refresh_limits(self) -> None:
        self.limits = self.file.child.driver.limits
        if self.node.probed_raw:
            self.limits = type(self.limits)(
                request_alignment=max(self.limits.request_alignment, SECTOR),
                max_transfer=self.limits.max_transfer,
                opt_transfer=self.limits.opt_transfer,
            )

    @property
    def own_alignment(self) -> int:
        return SECTOR if self.node.probed_raw else 1

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        taken, given = default_child_permissions(edge.role, perm, shared, writable=writable)
        # Raw data has no metadata to keep: take writing and resizing only when a user really wants them.
        taken &= ~((Perm.WRITE | Perm.RESIZE) & ~perm)
        return Perm(taken), given

    def reopen_prepare(self, state: ReopenState) -> None:
        if state.options is not None:
            offset, size = state.options.offset or 0, state.options.size
            _check_window(offset, size, self.file.length)
            state.prepared = (offset, size)

    def reopen_commit(self, state: ReopenState) -> None:
        if state.prepared is not None:
            self.offset, self.size = state.prepared

    def read(self, offset: int, buffer: memoryview) -> None:
        child = self.file.child
        child.driver.debug_event("read_aio")
        child.read(offset + self.offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if self.node.probed_raw and offset < _PROBE_SPAN:
            self._refuse_disguise(offset, data)
        if self.size is not None and offset + len(data) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        child = self.file.child
        child.driver.debug_event("write_aio")
        child.write(offset + self.offset, data, flags)

    def _refuse_disguise(self, offset: int, data: memoryview) -> None:
        """Refuse a write that would make the probed image be taken for another format (CVE-2008-2004)."""
        from engine.graph.probing import format_of

        head = bytearray(min(_PROBE_SPAN, self.length))
        self.file.child.read(self.offset, memoryview(head))
        part = data[: len(head) - offset]
        head[offset : offset + len(part)] = part
        if format_of(bytes(head), "").name != "raw":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.file.child.write_zeroes(offset + self.offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        self.file.child.discard(offset + self.offset, length)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return Extent(length, _PASS_ON, self.file.child, offset + self.offset)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        if self.size is not None:
            raise GenericError("Cannot resize fixed-size raw disks")
        if length > (1 << 63) - 1 - self.offset:
            raise GenericError("Disk size too large for the chosen offset")
        self.file.child.truncate(length + self.offset, exact=exact, prealloc=prealloc)

    def begin_write(self, offset: int, length: int) -> WritePlan | None:
        if self.node.probed_raw and offset < _PROBE_SPAN:
            return None
        return self.file.child.driver.begin_write(offset + self.offset, length)

    def begin_writes(self, offset: int, runs: Sequence[tuple[int, int]], settle: bool) -> WritePlan | None:
        if self.node.probed_raw and offset < _PROBE_SPAN:
            return None
        return self.file.child.driver.begin_writes(offset + self.offset, runs, settle)

    def info(self) -> DriverInfo | None:
        return self.file.child.driver.info()

    def has_zero_init(self) -> bool:
        return self.file.child.driver.has_zero_init()

    def unmaps_zeroes(self) -> bool:
        return self.file.child.driver.unmaps_zeroes()
