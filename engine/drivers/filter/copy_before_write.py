"""copy-before-write: what a write is about to overwrite is copied to a target first.

Target and source together hold the state that the source had when the filter was opened; the driver snapshot-access
shows it, and the backup job brings the rest of it to the target.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.bitmaps.dirty import DirtyBitmap, find_bitmap
from engine.copying.block_copy import BlockCopy
from engine.copying.copier import CopyError
from engine.errors import GenericError
from engine.graph.drain import drained
from engine.graph.driver import Extent, FilterDriver, Opening, Status, WriteFlag, register
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.options import BlockdevOptionsGenericFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.graph.ranges import Readers
from engine.qapi import Enum, Struct, UInt32

_UNCHANGED = int(WriteFlag.UNCHANGED)
_VALID = int(Status.OFFSET_VALID)


class OnCbwError(Enum):
    """What suffers when a copy before a write fails: the write, or the snapshot.

    break-guest-write: the guest's write fails
    break-snapshot: the guest's write succeeds, later reads of the snapshot fail
    """

    BREAK_GUEST_WRITE = "break-guest-write"
    BREAK_SNAPSHOT = "break-snapshot"


class BlockDirtyBitmapRef(Struct):
    """A dirty bitmap: the node it belongs to, and its name."""

    node: str
    name: str


class BlockdevOptionsCbw(BlockdevOptionsGenericFormat):
    """Options of the filter.

    target: takes the old data
    bitmap: what may be copied, and seen through snapshot-access; all by default
    on_cbw_error: what suffers when a copy fails; the write by default
    cbw_timeout: seconds after which a copy counts as failed; 0, the default, for none
    """

    target: BlockdevRef
    bitmap: BlockDirtyBitmapRef | None = None
    on_cbw_error: OnCbwError | None = None
    cbw_timeout: UInt32 | None = None


@register
class CopyBeforeWriteDriver(FilterDriver):
    """The filter. Its children: ``file`` is written to by its users, ``target`` by itself."""

    name = "copy-before-write"
    Options = BlockdevOptionsCbw
    child_options = frozenset({"file", "target"})

    file: Edge
    target: Edge
    copy: BlockCopy

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._state = threading.Condition()
        self._late = 0
        """Copies that go on although the write they were made for has given up."""
        self._broken: OSError | None = None
        self._readers = Readers()

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsCbw = opening.options
        file = opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        target = opening.open_child("target", Role.DATA)
        assert file is not None
        assert target is not None
        self.file, self.target = file, target
        only = self._find(options.bitmap) if options.bitmap is not None else None
        self._break_snapshot = options.on_cbw_error is OnCbwError.BREAK_SNAPSHOT
        self._timeout = options.cbw_timeout or 0
        with drained([target.child]):
            try:
                self.copy = BlockCopy(file, target, only)
            except GenericError as exc:
                raise GenericError(f"Cannot create block-copy-state: {exc.desc}") from exc
        node = self.node
        # Guests' writes have these clusters in the target.
        self._done = DirtyBitmap(node, self.copy.cluster_size)
        self._visible = DirtyBitmap(node, self.copy.cluster_size)
        """What snapshot-access may look at."""
        for bitmap in (self._done, self._visible):
            bitmap.enabled = False
            bitmap.attach()
        self._visible.merge(self.copy.bitmap)

    def _find(self, reference: BlockDirtyBitmapRef) -> DirtyBitmap:
        graph = self.node.graph
        try:
            node = graph.find_either(reference.node)
        except GenericError as exc:
            raise GenericError(f"Node '{reference.node}' not found") from exc
        bitmap = find_bitmap(node, reference.name)
        if bitmap is None:
            raise GenericError(f"Dirty bitmap '{reference.name}' not found")
        return bitmap

    def close(self) -> None:
        self.drained_wait()
        with drained([self.target.child]):
            self.copy.close()
        for bitmap in (self._done, self._visible):
            bitmap.detach()

    def drained_wait(self) -> None:
        with self._state:
            while self._late:
                self._state.wait()

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        if not edge.role & Role.FILTERED:
            # The guest may write to its disk even where that is in the backing chain of the target; the length counts.
            return Perm.WRITE, Perm.ALL & ~Perm.RESIZE
        if self.node.parents:
            if perm & Perm.WRITE:
                perm |= Perm.CONSISTENT_READ
            # Nobody gets past the filter.
            shared &= ~(Perm.WRITE | Perm.RESIZE)
        return Perm(perm), Perm(shared)

    def exact_filename(self) -> str | None:
        return self.file.child.filename

    def allocated_size(self) -> int | None:
        return self.file.child.driver.allocated_size()

    # -- what users write ------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if not flags & _UNCHANGED:
            self._copy_before(offset, len(data))
        self.file.write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if not flags & _UNCHANGED:
            self._copy_before(offset, length)
        self.file.write_zeroes(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        self._copy_before(offset, length)
        self.file.discard(offset, length)

    def flushed_children(self) -> list[Edge]:
        # A guest that flushes means its own disk; what was saved before its writes is for the user of the target.
        return [self.filtered]

    def _copy_before(self, offset: int, length: int) -> None:
        if self._broken is not None:
            return
        cluster = self.copy.cluster_size
        start = offset - offset % cluster
        size = -(-(offset + length) // cluster) * cluster - start
        try:
            if not self.copy.is_copied(start, size):
                if self._timeout:
                    self._copy_within(start, size)
                else:
                    self.copy.copy_range(start, size)
        except (CopyError, OSError) as exc:
            error = exc.error if isinstance(exc, CopyError) else exc
            if not self._break_snapshot:
                raise error from exc
            with self._state:
                self._broken = self._broken or error
        else:
            with self._state:
                self._done.set(start, size)
        # Who looks at the snapshot from now on is sent to the target; who looks at the source already is waited for.
        self._readers.wait(start, size)

    def _copy_within(self, offset: int, length: int) -> None:
        """Copy in another thread, which goes on when the time is up. Errors: CopyError, OSError ETIMEDOUT."""
        over, cancelled = threading.Event(), threading.Event()
        errors: list[Exception] = []

        def run() -> None:
            try:
                self.copy.copy_range(offset, length, cancelled)
            except Exception as exc:
                errors.append(exc)
            finally:
                over.set()
                with self._state:
                    self._late -= 1
                    self._state.notify_all()

        with self._state:
            self._late += 1
        threading.Thread(target=run, name=f"cbw-{self.node.name}", daemon=True).start()
        if not over.wait(self._timeout):
            cancelled.set()
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if errors:
            raise errors[0]

    # -- the snapshot ----------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot_part(self, offset: int, length: int) -> Iterator[tuple[Edge, int]]:
        """(child, bytes): where the beginning of a range of the snapshot is found, for as long as the block lasts.

        Errors: OSError EACCES when the snapshot is broken or the range is not part of it.
        """
        end = offset + length
        with self._readers.reading(offset, length):
            # The look comes after the entry: a writer that has not seen the reader has set its bits before.
            with self._state:
                if self._broken is not None or self._visible.next_zero(offset, end) is not None:
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
                if self._done.get(offset):
                    stop = self._done.next_zero(offset, end)
                    edge = self.target
                else:
                    stop = self._done.next_dirty(offset, end)
                    edge = self.file
            yield edge, (end if stop is None else stop) - offset

    def snapshot_read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with what was there when the filter was opened. Errors: OSError, EACCES: not accessible."""
        at, end = 0, len(buffer)
        while at < end:
            with self._snapshot_part(offset + at, end - at) as (edge, run):
                edge.read(offset + at, buffer[at : at + run])
            at += run

    def snapshot_status(self, offset: int, length: int, want_zero: bool) -> Extent:
        """block_status of the snapshot; never with a host offset, as that is not for long. Errors: as snapshot_read."""
        with self._snapshot_part(offset, length) as (edge, run):
            extent = edge.block_status(offset, run, want_zero)
        return Extent(extent.length, extent.flags & ~_VALID)

    def snapshot_discard(self, offset: int, length: int) -> None:
        """Part with whole clusters of the snapshot: they are readable no more, need no copy, and take no space."""
        cluster = self.copy.cluster_size
        start = -(-offset // cluster) * cluster
        end = offset + length
        end = end - end % cluster if end < self.length else end
        if start >= end:
            return
        with self._state:
            self._visible.reset(start, end - start)
        self.copy.reset(start, end - start)
        self.target.discard(start, end - start)


def cbw_of(node: Node) -> CopyBeforeWriteDriver | None:
    """The copy-before-write driver of *node*, if that is its driver."""
    return node.driver if isinstance(node.driver, CopyBeforeWriteDriver) else None
