"""The mirror engine: keep a target equal to a source that is being written to, until told to stop or to switch over.

A dirty bitmap on the source says what is to be copied. Once all is, the job is READY and goes on following the guest's
writes, by copying again what they mark (background) or by having the filter send them to both (write-blocking). A write
made during a copy marks its range afterwards, whatever the copy got of it; the last look happens while the source is
drained, and it stays so until the graph has changed. So nothing is lost.

MirrorJob is blockdev-mirror's and drive-mirror's job; active commit (engine.jobs.active_commit) is another.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from engine.bitmaps.dirty import DirtyBitmap, default_granularity
from engine.copying.copier import BackendTarget, Copier, CopyError
from engine.drivers.filter.internal import MirrorTopDriver
from engine.errors import GenericError
from engine.graph.change import freeze_chain, loosen, thaw
from engine.graph.drain import drained
from engine.graph.driver import Status, WriteFlag
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.graph.status import backing_chain_next, chain, find_overlay, in_chain, skip_filters, status_above
from engine.jobs.blockjob import BlockJob
from engine.jobs.chain import drop_filter, find_base
from engine.jobs.mirror_active import ActiveWrites
from engine.jobs.mirror_end import give_backing, switch_over
from engine.jobs.mirror_settings import DEFAULT_BUFFER, MirrorSettings, TargetBacking
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BlockdevOnError, BlockErrorAction, JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

log = logging.getLogger("engine.jobs")

_ALLOCATED = int(Status.ALLOCATED)
_MAY_UNMAP = int(WriteFlag.MAY_UNMAP)
IDLE = 0.1
"""Seconds a ready job sleeps before it looks for new writes."""
CATCH_UP = 16 << 20
"""Dirty bytes that may be left when guests are kept waiting for the rest."""
RETRY_DELAY = 0.1
"""Seconds before a range whose error is ignored is tried again."""
ZERO_STEP = 256 << 20
"""Bytes zeroed between two checkpoints while the whole target is."""


class MirrorJob(BlockJob):
    """One mirror of *source* into *target*, between the filter *filter_node* above the source and its users."""

    job_type = JobType.MIRROR
    completable = True

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        source: Node,
        target: Node,
        filter_node: Node,
        settings: MirrorSettings,
        *,
        speed: int,
        transaction: JobTransaction | None,
        auto_finalize: bool,
        auto_dismiss: bool,
    ) -> None:
        """Errors: GenericError; the filter is the caller's to remove then."""
        super().__init__(
            manager,
            job_id,
            filter_node,
            Perm.CONSISTENT_READ,
            Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED | Perm.WRITE,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        self._source = source
        self._target_node = target
        self._filter = filter_node
        driver = filter_node.driver
        assert isinstance(driver, MirrorTopDriver)
        self._driver = driver
        self._settings = settings
        self._in_chain = in_chain(source, target)
        """The target is one of the layers that are mirrored."""
        self._frozen: list[Edge] = []
        self._to_replace: Node | None = None
        self._should_complete = False
        self._drained = False
        self._exited = False
        self._active: ActiveWrites | None = None
        self._active_error: OSError | None = None
        self._base_overlay = self._find_base_overlay()
        try:
            self._hold_nodes()
        except BaseException:
            thaw(self._frozen)
            self.release()
            self.fail_early()
            raise
        granularity = settings.granularity or default_granularity(target)
        self._largest = -(-(settings.buf_size or DEFAULT_BUFFER) // granularity) * granularity
        self._bitmap = DirtyBitmap(source, granularity)
        self._bitmap.attach()
        self._whole_clusters = self._find_whole_clusters()
        if settings.write_blocking:
            self._bitmap.enabled = False
            self._active = ActiveWrites(
                source, self._target, self._bitmap, self._whole_clusters, self._actively_moved, self._actively_failed
            )
            self._active.attach()
            self._driver.active = self._active
        self._unmaps = target.discard_unmap and target.driver.unmaps_zeroes()
        self._one_by_one = 0
        """Areas that begin before this are copied one by one."""
        self._held = [source, target, filter_node]
        if settings.base is not None:
            self._held.append(settings.base)
        for node in self._held:
            node.pins += 1

    def _find_base_overlay(self) -> Node:
        """The lowest layer that is copied."""
        base = self._settings.base
        overlay = find_base(self._source) if base is None else find_overlay(self._source, base)
        assert overlay is not None
        return overlay

    def _hold_nodes(self) -> None:
        source, target = self._source, self._target_node
        perm, shared = Perm.WRITE, Perm.WRITE_UNCHANGED
        if self._in_chain:
            # Others may read and write it: a populated image in use, unlike the target of other mirrors.
            if target.length < source.length:
                perm |= Perm.RESIZE
            shared |= Perm.CONSISTENT_READ | Perm.WRITE
        elif in_chain(source, skip_filters(target)):
            raise GenericError("Cannot mirror to a filter on top of a node in the source's backing chain")
        self._target = self.add_backend(target, perm, shared)
        self.add_node("source", source, Perm.NONE, Perm.WRITE_UNCHANGED | Perm.WRITE | Perm.CONSISTENT_READ)
        self.add_node("target", target, Perm.NONE, Perm.ALL)
        if self._in_chain:
            self._hold_intermediate()
            self._frozen = freeze_chain(self._filter, target)

    def _hold_intermediate(self) -> None:
        """The layers above the target: those on their way out of the chain, but for filters on the target itself."""
        overlay = find_overlay(self._source, self._target_node)
        assert overlay is not None
        below_overlay = overlay.backing
        assert below_overlay is not None
        shared = Perm.WRITE_UNCHANGED | Perm.WRITE
        for node in chain(self._source):
            if node is self._source:
                continue
            if node is self._target_node:
                break
            if node is below_overlay.child:
                shared |= Perm.CONSISTENT_READ
            self.add_node("intermediate node", node, Perm.NONE, shared)

    def _find_whole_clusters(self) -> int:
        """Bytes that have to be written to the target at once, 1 for any.

        Where not everything is copied, a target that gets a backing image in the end, and has none yet, would fill up
        clusters with zeros that hide it.
        """
        image, settings = skip_filters(self._target_node), self._settings
        if not self._covering or not image.driver.supports_backing or (settings.base is None and not settings.only_new):
            return 1
        info = image.driver.info()
        return info.cluster_size if info is not None and info.cluster_size else 1

    @property
    def _covering(self) -> bool:
        """Whether the target may get a backing image that it has not now."""
        if self._in_chain or backing_chain_next(self._target_node) is not None:
            return False
        settings = self._settings
        return settings.backing is not TargetBacking.SOURCE_CHAIN or settings.base is not None or settings.only_new

    # -- work ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        length = self._source.length
        self._fit_target(length)
        if not length:
            self.become_ready()
        elif not self._settings.only_new:
            self._mark_initial(length)
        if self._active is not None:
            self._active.begin()
        copier = Copier(self._source, self._make_target())
        cursor = 0
        while True:
            self.pace()
            if self._active_error is not None:
                raise self._active_error
            area = self._bitmap.take_area(cursor, self._copy_size)
            if area is not None:
                together = self._copy_together(copier, *area, length)
                cursor = self._copy(copier, *area, length) if together is None else together
                continue
            # A pass is over: nothing is left, or only what was written behind the cursor.
            passed, cursor, self._one_by_one = cursor > 0, 0, 0
            left = self._bitmap.count
            ending = self._should_complete or self.cancel_requested
            if (ending or not self.is_ready) and left <= CATCH_UP:
                if not self.is_ready:
                    self._reach_ready(copier, length)
                elif self._synchronise(copier, length):
                    return
            elif not passed:
                self.checkpoint(IDLE)

    def _make_target(self) -> BackendTarget:
        settings = self._settings
        # Where guests write to the target, too, zeros that come early might undo that; and where not everything is
        # copied, the rest has to stay as it is.
        alone = not settings.write_blocking and settings.base is None and not settings.only_new
        return BackendTarget(
            self._target, unmap=settings.unmap, covering=self._covering, ahead=ZERO_STEP if alone else 0
        )

    def _fit_target(self, length: int) -> None:
        target = self._target_node
        if self._settings.base is target:
            if target.length < length:
                self._target.truncate(length, exact=False)
        elif target.length != length:
            raise GenericError("Source and target image have different sizes")

    @property
    def _copy_size(self) -> int:
        return max(min(self.step, self._largest), self._bitmap.granularity)

    def _mark_initial(self, length: int) -> None:
        """Mark what the layers above the base hold; or everything, where the target isn't known to be all zeros."""
        if self._settings.zero_target:
            if not self._unmaps:
                self._bitmap.set(0, length)
                return
            self._zero_target(length)
        offset = 0
        while offset < length:
            self.checkpoint()
            extent, _ = status_above(
                self._source, self._base_overlay, offset, length - offset, False, include_base=True
            )
            if extent.flags & _ALLOCATED:
                self._bitmap.set(offset, extent.length)
            offset += extent.length

    def _zero_target(self, length: int) -> None:
        flags = _MAY_UNMAP if self._settings.unmap else 0
        for offset in range(0, length, ZERO_STEP):
            self.pace()
            size = min(ZERO_STEP, length - offset)
            try:
                self._target.write_zeroes(offset, size, flags)
            except OSError as exc:
                self._failed(exc, reading=False)
                self._bitmap.set(offset, size)

    def _copy(self, copier: Copier, offset: int, size: int, length: int) -> int:
        """Copy an area that take_area() gave; returns where to look for the next."""
        self.set_remaining(size + self._bitmap.count)
        try:
            moved = self._copy_area(copier, offset, size, length)
        except CopyError as exc:
            self._bitmap.set(offset, size)
            self._failed(exc.error, reading=exc.reading)
            return offset
        self.progress(min(size, length - offset))
        # Zeros cost nothing where they become holes.
        self.account(moved if self._unmaps else size)
        return offset + size

    def _copy_together(self, copier: Copier, offset: int, size: int, length: int) -> int | None:
        """Copy the area and those that follow it closely in one go; returns where to look for the next.

        None: nothing was copied. Not where areas have to be rounded, or where guests write to the target, too.
        """
        end = offset + self._copy_size
        if size == self._copy_size or offset < self._one_by_one or self._whole_clusters > 1 or self._active is not None:
            return None
        areas, at = [(offset, min(size, length - offset))], offset + size
        while at < end and (area := self._bitmap.take_area(at, end - at)) is not None:
            at = area[0] + area[1]
            if at > end:
                self._bitmap.set(*area)
                break
            areas.append((area[0], min(area[1], length - area[0])))
        try:
            moved = copier.copy_areas(areas) if len(areas) > 1 else None
        except CopyError:
            moved = None  # the areas by themselves will tell which of them it is
        if moved is None:
            self._one_by_one = end
            for area in areas[1:]:
                self._bitmap.set(*area)
            return None
        done = sum(each for _, each in areas)
        self.set_remaining(done + self._bitmap.count)
        self.progress(done)
        self.account(moved if self._unmaps else done)
        return areas[-1][0] + areas[-1][1]

    def _copy_area(self, copier: Copier, offset: int, size: int, length: int) -> int:
        """Copy, to whole clusters where that is needed; returns the bytes that were no zeros. Errors: CopyError."""
        whole = self._whole_clusters
        start = offset // whole * whole
        stop = min(-(-(offset + size) // whole) * whole, length)
        with self._holding(start, stop - start):
            return copier.copy(start, stop - start)

    def _holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        return nullcontext() if self._active is None else self._active.holding(offset, length)

    def _failed(self, error: OSError, *, reading: bool) -> None:
        """Apply the error policy; returns when the work is to go on. Errors: the error itself."""
        policy = self._settings.on_source_error if reading else self._settings.on_target_error
        action = self.handle_error(policy, error, reading=reading)
        if action is BlockErrorAction.REPORT:
            raise error
        if action is BlockErrorAction.IGNORE:
            self.checkpoint(RETRY_DELAY)

    def _flush(self) -> bool:
        try:
            self._target.flush()
        except OSError as exc:
            self._failed(exc, reading=False)
            return False
        return True

    def _reach_ready(self, copier: Copier, length: int) -> None:
        if self._bitmap.count:
            if self._synchronise(copier, length):
                self.set_remaining(0)
                self.on_control(self._ready_and_undrain)
        elif self._flush():
            self.set_remaining(0)
            self.become_ready()

    def _ready_and_undrain(self) -> None:
        self._set_ready()
        self._undrain()

    def _synchronise(self, copier: Copier, length: int) -> bool:
        """Keep everybody out of the source and copy the rest; when that went well they stay out.

        A guest that never stops writing is caught up with so; it waits for at most CATCH_UP bytes and a flush.
        """
        if not self._flush():
            return False
        self.on_control(self._drain)
        try:
            while (area := self._bitmap.take_area(0, self._copy_size)) is not None:
                offset, size = area
                self.set_remaining(size + self._bitmap.count)
                try:
                    self._copy_area(copier, offset, size, length)
                except CopyError:
                    self._bitmap.set(offset, size)
                    raise
                self.progress(min(size, length - offset))
            self._target.flush()
            if self._settings.only_new:
                # As a backing image it will not be reached by the flushes of its former users.
                self._source.flush()
        except (CopyError, OSError) as exc:
            self.on_control(self._undrain)
            error, reading = (exc.error, exc.reading) if isinstance(exc, CopyError) else (exc, False)
            self._failed(error, reading=reading)
            return False
        return True

    def _drain(self) -> None:
        self._source.drained_begin()
        self._source.drained_wait()
        # At the end it stays so until the graph has changed: a write between here and there would be lost.
        self._drained = True

    def _undrain(self) -> None:
        if self._drained:
            self._drained = False
            self._source.drained_end()

    # -- write-blocking: called in guests' threads -------------------------------------------------------------

    def _actively_moved(self, size: int) -> None:
        with self._changed:
            self.progress_current += size
            self.progress_total += size

    def _actively_failed(self, error: OSError) -> None:
        policy = self._settings.on_target_error
        if self.action_for(policy, error) is BlockErrorAction.REPORT and self._active_error is None:
            self._active_error = error
        # A request never waits for the control plane.
        self.manager.control.post(lambda: self._tell_active_error(policy, error))

    def _tell_active_error(self, policy: BlockdevOnError, error: OSError) -> None:
        if not self.is_completed:
            self.apply_policy(policy, error, reading=False)
            self.kick()

    # -- as a parent of nodes ----------------------------------------------------------------------------------

    def drained_begin(self) -> None:
        # The target may be drained while guests write to the source: they don't wait, they only mark what they write.
        if self._active is not None:
            self._active.drained_begin()
        super().drained_begin()

    def drained_wait(self) -> None:
        super().drained_wait()
        if self._active is not None:
            self._active.drained_wait()

    def drained_end(self) -> None:
        super().drained_end()
        if self._active is not None:
            self._active.drained_end()

    # -- verbs -----------------------------------------------------------------------------------------------

    def on_cancel(self, force: bool) -> bool:
        forced = force or not self.is_ready
        if forced:
            self._target_node.driver.cancel_in_flight()
        return forced

    def on_complete(self) -> None:
        name = self._settings.replaces
        if name is not None and self._to_replace is None:
            node = self.graph.nodes.get(name)
            if node is None:
                raise GenericError(f"Node name '{name}' not found")
            node.blockers.block(self._bitmap, "block device is in use by block-job-complete")
            node.pins += 1
            self._to_replace = node
        self._should_complete = True

    # -- end -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._exit(failed=False)

    def abort(self) -> None:
        self._exit(failed=True)

    def _exit(self, *, failed: bool) -> None:
        """Leave the graph, everybody on the source moved to the target if the job was completed. Errors: OSError."""
        if self._exited:
            return
        self._exited = True
        thaw(self._frozen)
        try:
            with drained([self._filter, self._source, self._target_node]):
                self._bitmap.detach()
                self._driver.active = None
                if self._active is not None:
                    self._active.detach()
                # The writer on the target goes first: after the change its permissions could not be had.
                self.remove_backends()
                self._driver.stopped = True
                loosen([self._filter])
                try:
                    if not failed:
                        give_backing(self.id, self._source, self._target_node, self._settings)
                    if self._should_complete and not failed:
                        switch_over(self.id, self._source, self._to_replace or self._source, self._target_node)
                    else:
                        self.leave_target()
                finally:
                    if self._to_replace is not None:
                        self._to_replace.blockers.unblock(self._bitmap)
                    self.remove_nodes()
                    try:
                        drop_filter(self._filter)
                    except GenericError as exc:
                        # Somebody uses both the filter and the node below it, for purposes that do not go together.
                        if not failed:
                            raise
                        log.warning("job %s: its filter %s stays: %s", self.id, self._filter.name, exc.desc)
        finally:
            self._undrain()
            if self._to_replace is not None:
                self.graph.unpin(self._to_replace)
            for node in self._held:
                self.graph.unpin(node)

    def leave_target(self) -> None:
        """The target is not switched over to. Must not fail."""
