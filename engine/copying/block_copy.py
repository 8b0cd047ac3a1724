"""Block copy: bring the state that a source had at one moment into a target, while the source is being written to.

The copy-before-write filter and the backup job share one BlockCopy. Its bitmap says which clusters the target still
lacks. Whoever needs clusters there (a guest about to overwrite them, the job in the background) takes them out of the
bitmap as a task in flight and copies them; who finds them in flight waits. A failed task puts its clusters back.

As every writer of the source goes through the filter, and the filter lets no write, zero write or discard into a
cluster before that is copied, the host clusters of a task stay where block_status found them: they may be copied from
host file to host file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from engine.bitmaps.dirty import DirtyBitmap, merge_checked
from engine.copying.copier import Copier, CopyError
from engine.errors import GenericError
from engine.graph.driver import Status, WriteFlag, WritePlan
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.ranges import Readers
from engine.graph.status import backing_chain_next, in_chain, is_allocated, skip_filters, status_above

log = logging.getLogger("engine.jobs")

SMALLEST_CLUSTER = 64 << 10
LARGEST_CHUNK = 4 << 20
"""Data bytes of one task: large enough for full speed, small enough that a guest waits little for it."""
BACKGROUND_CHUNK = 8 << 20
"""The same for a task that no guest has asked for: enough to have many pieces in flight to a server."""
LONGEST_RUN = 1 << 30
"""Bytes that one question about zeros and holes may cover."""
_SHORT = 1 << 20
"""A run of data or zeros of fewer bytes has no task of its own."""

_DATA, _ZERO, _ALLOCATED = int(Status.DATA), int(Status.ZERO), int(Status.ALLOCATED)
_COMPRESSED, _MAY_UNMAP = int(WriteFlag.COMPRESSED), int(WriteFlag.MAY_UNMAP)


class Meter(Protocol):
    """Who follows the progress of a BlockCopy (its job). Called in any thread, with the lock of the BlockCopy held."""

    def copied(self, size: int) -> None:
        """*size* bytes are done."""

    def left(self, size: int) -> None:
        """*size* bytes are to be done, those in flight included."""

    def used(self, size: int) -> None:
        """*size* bytes count against the speed limit."""


class Round:
    """Some threads that copy in the background until the first of them fails or somebody stops them.

    error: what failed, set before anybody else may take the clusters.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None


class _Task:
    __slots__ = ("offset", "length", "round")

    def __init__(self, offset: int, length: int, part_of: Round | None) -> None:
        self.offset = offset
        self.length = length
        self.round = part_of


class _EdgeTarget:
    """The target child of a filter, as a Copier writes to it."""

    def __init__(self, edge: Edge, kernel: bool) -> None:
        self._edge = edge
        self._kernel = kernel

    @property
    def node(self) -> Node:
        return self._edge.child

    def write(self, offset: int, data: memoryview) -> None:
        self._edge.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        node = self._edge.child
        # What an image lacks reads as zeros only until it gets a backing image: after an incremental backup, say.
        trusted = _ALLOCATED if skip_filters(node).driver.supports_backing else 0
        end = offset + length
        while offset < end:
            extent = node.block_status(offset, end - offset)
            if not extent.flags & _ZERO or extent.flags & trusted != trusted:
                node.write_zeroes(offset, extent.length, _MAY_UNMAP)
            offset += extent.length

    def plan(self, offset: int, length: int) -> WritePlan | None:
        node = self._edge.child
        if not self._kernel or node.read_only or node.detect_zeroes != "off":
            return None
        if (offset | length) & (node.limits.request_alignment - 1) or offset + length > node.length:
            return None
        return node.driver.begin_write(offset, length)

    def plan_runs(self, offset: int, runs: Sequence[tuple[int, int]]) -> WritePlan | None:
        node = self._edge.child
        length = sum(run for run, _ in runs)
        if not self._kernel or node.read_only or node.detect_zeroes != "off" or offset + length > node.length:
            return None
        if node.limits.request_alignment > 1:
            return None
        return node.driver.begin_writes(offset, runs, skip_filters(node).driver.supports_backing)

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        return self._edge.child.ranges.hold(offset, length)

    def placed(self, offset: int, length: int) -> None:
        self._edge.child.after_host_write(offset, length)


def copy_cluster_size(target: Node) -> int:
    """Bytes that are copied as a whole: the target's cluster size, 64 KiB at least.

    Clusters of the target must not be filled by halves: where it has no backing image the rest would be lost.
    """
    info = target.driver.info()
    if info is None:
        if backing_chain_next(target) is None:
            log.warning(
                "node '%s' tells no cluster size and has no backing image: backing up in units of %d bytes",
                target.name,
                SMALLEST_CLUSTER,
            )
        return SMALLEST_CLUSTER
    return max(SMALLEST_CLUSTER, info.cluster_size)


class BlockCopy:
    """Copies clusters of *source* to *target*, two children of one filter. Construction and close(): control plane.

    bitmap: what is still to be copied, all at first or, with *only*, what that bitmap says. meter: see there.
    skip_unallocated: clusters that the source's own layer does not decide are left out (sync=top).
    """

    def __init__(self, source: Edge, target: Edge, only: DirtyBitmap | None) -> None:
        """Errors: GenericError when *only* can't be used. The caller drains the target."""
        self._source = source
        self._target = target
        self.cluster_size = copy_cluster_size(target.child)
        self.bitmap = DirtyBitmap(source.child, self.cluster_size)
        self.bitmap.enabled = False
        self.length = self.bitmap.length
        if only is not None:
            try:
                merge_checked(self.bitmap, only)
            except GenericError as exc:
                text = f"Failed to merge bitmap '{only.name}' to internal copy-bitmap: {exc.desc}"
                raise GenericError(text) from exc
        else:
            self.bitmap.set(0, self.length)
        self.bitmap.attach()
        self.skip_unallocated = False
        self.meter: Meter | None = None
        self._compress = False
        self._kernel = True
        self._longest = 0
        self._changed = threading.Condition()
        self._tasks: list[_Task] = []
        self._in_flight = 0
        # Background tasks begin here, and are of one cluster each up to there: some of those have failed.
        self._cursor = self._careful = 0
        self._copiers: list[tuple[Node, Copier]] = []
        # Who reads the target (fleecing) gets from the source what the target lacks: see _copy().
        self._readers: Readers | None = None
        self._tracked: Node | None = None
        if in_chain(target.child, skip_filters(source.child)):
            self._tracked = target.child
            self._readers = target.child.track_reads()

    def set_options(self, *, compress: bool, kernel: bool, longest: int) -> None:
        """compress: write compressed clusters. kernel: let the kernel copy where it can. longest: bytes of a task."""
        self._compress = compress
        self._kernel = kernel and not compress
        self._longest = longest - longest % self.cluster_size

    def close(self) -> None:
        """Stop. The target is drained."""
        self.bitmap.detach()
        self._copiers.clear()
        node, self._tracked = self._tracked, None
        if node is not None:
            node.untrack_reads()

    # -- before a write --------------------------------------------------------------------------------------

    def is_copied(self, offset: int, length: int) -> bool:
        """Whether nothing of the range is left to copy or in flight."""
        with self._changed:
            return not self._overlaps(offset, length) and self.bitmap.next_dirty(offset, offset + length) is None

    def copy_range(self, offset: int, length: int, cancelled: threading.Event | None = None) -> None:
        """Return when nothing of the range (whole clusters) is left to copy. Any thread. Errors: CopyError."""
        while cancelled is None or not cancelled.is_set():
            with self._changed:
                task = self._take(offset, offset + length, self._chunk(LARGEST_CHUNK))
                if task is None:
                    if not self._overlaps(offset, length):
                        return
                    self._changed.wait()
                    continue
            self._perform(task, LARGEST_CHUNK)

    # -- in the background -----------------------------------------------------------------------------------

    def copy_next(self, part_of: Round, most: int = 0) -> bool:
        """Copy what comes next, *most* bytes (0: as much as is good). Any thread; several may share one Round.

        False when all is copied, or when the round has an error: a CopyError, as a rule. The clusters that failed are
        the next ones again then, unless pass_over() is called.
        """
        with self._changed:
            while part_of.error is None:
                if self._cursor >= self._careful:
                    self._careful = 0
                longest = self.cluster_size if self._careful else self._chunk(most or LONGEST_RUN)
                task = self._take(self._cursor, self.length, longest, part_of)
                if task is not None:
                    break
                self._careful = 0
                if self._cursor:
                    self._cursor = 0
                elif not self._tasks:
                    return False
                else:
                    self._changed.wait()
            else:
                return False
            self._cursor = task.offset + task.length
        try:
            self._perform(task, most or BACKGROUND_CHUNK)
        except Exception:
            return False  # part_of has it
        return True

    def pass_over(self) -> None:
        """After a failure: begin with what follows the clusters that failed, to come back to them later."""
        with self._changed:
            at = self.bitmap.next_dirty(self._cursor, self.length)
            self._cursor = 0 if at is None else at + self.cluster_size

    def reset(self, offset: int, length: int) -> None:
        """Copy these clusters no more. What is copied just now is waited for."""
        length = -(-length // self.cluster_size) * self.cluster_size
        with self._changed:
            while self._overlaps(offset, length):
                self._changed.wait()
            self.bitmap.reset(offset, length)
            self._tell_left()

    def reset_unallocated(self, offset: int) -> int:
        """Leave out the clusters at *offset* if the source's own layer has nothing in them; returns how many bytes.

        Errors: OSError.
        """
        here, run = is_allocated(self._source.child, offset, self.length - offset)
        cluster = self.cluster_size
        if here:
            return -(-run // cluster) * cluster
        if offset + run < self.length:
            run -= run % cluster
        if not run:
            return self._mixed(offset)
        run = -(-run // cluster) * cluster
        with self._changed:
            self.bitmap.reset(offset, run)
            self._tell_left()
        return run

    def _mixed(self, offset: int) -> int:
        """A cluster that begins with a hole: does it hold anything at all? Returns its length."""
        at, end = offset, min(offset + self.cluster_size, self.length)
        while at < end:
            here, run = is_allocated(self._source.child, at, end - at)
            if here:
                return self.cluster_size
            at += run
        self.reset(offset, self.cluster_size)
        return self.cluster_size

    # -- tasks -----------------------------------------------------------------------------------------------

    def _chunk(self, most: int) -> int:
        if self._longest:
            most = min(most, self._longest)
        return max(most - most % self.cluster_size, self.cluster_size)

    def _overlaps(self, offset: int, length: int) -> bool:
        end = offset + length
        return any(task.offset < end and offset < task.offset + task.length for task in self._tasks)

    def _take(self, offset: int, end: int, longest: int, part_of: Round | None = None) -> _Task | None:
        area = self.bitmap.next_area(offset, min(end, self.length), longest)
        if area is None:
            return None
        self.bitmap.reset(*area)
        # In whole clusters, as the bitmap counts them.
        task = _Task(area[0], -(-area[1] // self.cluster_size) * self.cluster_size, part_of)
        self._tasks.append(task)
        self._in_flight += task.length
        return task

    def _shrink(self, task: _Task, length: int) -> None:
        with self._changed:
            self._in_flight -= task.length - length
            end = task.offset + length
            self.bitmap.set(end, task.length - length)
            task.length = length
            self._cursor = min(self._cursor, end)
            self._changed.notify_all()

    def _end(self, task: _Task, *, failed: BaseException | None = None, copied: bool = False) -> None:
        with self._changed:
            self._tasks.remove(task)
            self._in_flight -= task.length
            if failed is not None:
                if task.round is not None:
                    task.round.error = task.round.error or failed
                self.bitmap.set(task.offset, task.length)
                self._cursor = min(self._cursor, task.offset)
                if task.length > self.cluster_size:
                    self._careful = max(self._careful, task.offset + task.length)
            if copied and self.meter is not None:
                self.meter.copied(task.length)
            self._tell_left()
            self._changed.notify_all()

    def tell_left(self) -> None:
        """Tell the meter how much there is to do."""
        with self._changed:
            self._tell_left()

    def _tell_left(self) -> None:
        if self.meter is not None:
            self.meter.left(self.bitmap.count + self._in_flight)

    def _perform(self, task: _Task, most: int) -> None:
        try:
            flags, run = self._look(task.offset, task.length)
            wanted = bool(flags & _ALLOCATED) or not self.skip_unallocated
            if run < task.length and run < _SHORT and not self.skip_unallocated and not self._compress:
                # Data and holes take turns: a copier goes through them faster than tasks of their own would.
                flags, run = _DATA, task.length
            if wanted and not flags & _ZERO:
                run = min(run, self._chunk(most))
            if run < task.length:
                self._shrink(task, run)
            if wanted:
                if self.meter is not None:
                    self.meter.used(task.length)
                self._copy(task, flags)
        except BaseException as exc:
            self._end(task, failed=exc)
            raise
        self._end(task, copied=wanted)

    def _look(self, offset: int, length: int) -> tuple[int, int]:
        """(flags, bytes in whole clusters); without _DATA and _ZERO: a cluster to be read whole."""
        top = self._source.child
        cluster = self.cluster_size
        base = backing_chain_next(top) if self.skip_unallocated else None
        try:
            extent, _ = status_above(top, base, offset, min(length, self.length - offset))
        except OSError:
            return _ALLOCATED, cluster  # the read will tell
        run = extent.length
        if offset + run >= self.length:
            return extent.flags, -(-run // cluster) * cluster
        run -= run % cluster
        return (extent.flags, run) if run else (_ALLOCATED, cluster)

    def _copy(self, task: _Task, flags: int) -> None:
        offset = task.offset
        length = min(task.length, self.length - offset)
        if flags & _ZERO:
            try:
                self._zeros(offset, length)
            except OSError as exc:
                raise CopyError(exc, False) from exc
        elif self._compress:
            for at in range(offset, offset + length, self.cluster_size):
                self._by_buffer(at, min(self.cluster_size, offset + length - at), _COMPRESSED)
        elif flags & _DATA:
            with self._copier() as copier:
                copier.copy(offset, length)
        else:
            self._by_buffer(offset, length, 0)
        if self._readers is not None:
            # A reader of the target that found nothing there yet may be reading the source; no guest writes to that
            # until the reader is done.
            self._readers.wait(offset, length)

    def _zeros(self, offset: int, length: int) -> None:
        _EdgeTarget(self._target, False).write_zeroes(offset, length)

    def _by_buffer(self, offset: int, length: int, flags: int) -> None:
        buffer = memoryview(bytearray(length))
        try:
            self._source.read(offset, buffer)
        except OSError as exc:
            raise CopyError(exc, True) from exc
        try:
            self._target.write(offset, buffer, flags)
        except OSError as exc:
            raise CopyError(exc, False) from exc

    @contextmanager
    def _copier(self) -> Iterator[Copier]:
        """A Copier for this thread: one range at a time, and its buffer is worth keeping."""
        node = self._source.child
        try:
            made_for, copier = self._copiers.pop()
        except IndexError:
            made_for, copier = None, None
        if copier is None or made_for is not node:
            copier = Copier(node, _EdgeTarget(self._target, self._kernel))
        yield copier
        self._copiers.append((node, copier))
