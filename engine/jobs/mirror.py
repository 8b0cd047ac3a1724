"""The mirror engine: keep a target equal to a source that is being written to, until told to stop or to switch over.

Only active commit uses it so far: its target is a layer of the source's own chain.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

from engine.bitmaps.dirty import DirtyBitmap, default_granularity
from engine.drivers.filter.internal import MirrorTopDriver, new_filter_node
from engine.errors import GenericError
from engine.graph.change import Transaction, freeze_chain, loosen, refresh_permissions, replace_node, thaw
from engine.graph.drain import drained
from engine.graph.driver import Status
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.graph.reopen import set_read_only
from engine.graph.status import chain, find_overlay, skip_filters, status_above
from engine.jobs.blockjob import BlockJob
from engine.jobs.chain import drop_filter, insert_filter, refresh_filenames_above
from engine.jobs.copy import BackendTarget, Copier, CopyError
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BlockdevOnError, BlockErrorAction, JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

log = logging.getLogger("engine.jobs")

_ALLOCATED = int(Status.ALLOCATED)
IDLE = 0.1
"""Seconds a ready job sleeps before it looks for new writes."""
CATCH_UP = 16 << 20
"""Dirty bytes that may be left when guests are kept waiting for the rest."""
RETRY_DELAY = 0.1
"""Seconds before a range whose error is ignored is tried again."""


class ActiveCommitJob(BlockJob):
    """Commit of a layer that is written to: a mirror of it, and all above *base*, into *base*.

    A dirty bitmap on the source says what is to be copied. Once all is, the job is READY and goes on following the
    guest's writes; when it is completed, everybody on the source moves to the base. A write made during a copy marks
    its range again afterwards, so nothing is lost; the last look happens while the source is drained.
    """

    job_type = JobType.COMMIT
    completable = True

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        source: Node,
        base: Node,
        filter_node: Node,
        *,
        on_error: BlockdevOnError,
        base_was_read_only: bool,
        speed: int,
        transaction: JobTransaction | None,
        auto_finalize: bool,
        auto_dismiss: bool,
    ) -> None:
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
        self._base = base
        self._filter = filter_node
        self._on_error = on_error
        self._base_was_read_only = base_was_read_only
        self._frozen: list[Edge] = []
        self._should_complete = False
        self._drained = False
        self._exited = False
        overlay = find_overlay(source, base)
        assert overlay is not None
        self._base_overlay = overlay
        try:
            self._hold_nodes()
        except BaseException:
            thaw(self._frozen)
            self.release()
            self.fail_early()
            raise
        self._bitmap = DirtyBitmap(source, default_granularity(base))
        self._bitmap.attach()
        for node in (source, base, filter_node):
            node.pins += 1

    def _hold_nodes(self) -> None:
        source, base = self._source, self._base
        perm = Perm.WRITE
        if base.length < source.length:
            perm |= Perm.RESIZE
        # Others may read and write the base: it is a populated image in use, unlike the target of a mirror.
        self._target = self.add_backend(base, perm, Perm.WRITE_UNCHANGED | Perm.CONSISTENT_READ | Perm.WRITE)
        self.add_node("source", source, Perm.NONE, Perm.WRITE_UNCHANGED | Perm.WRITE | Perm.CONSISTENT_READ)
        self.add_node("target", base, Perm.NONE, Perm.ALL)
        below_overlay = self._base_overlay.backing
        assert below_overlay is not None
        shared = Perm.WRITE_UNCHANGED | Perm.WRITE
        for node in chain(source):
            if node is source:
                continue
            if node is base:
                break
            if node is below_overlay.child:
                shared |= Perm.CONSISTENT_READ
            self.add_node("intermediate node", node, Perm.NONE, shared)
        self._frozen = freeze_chain(self._filter, base)

    # -- work ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        length = self._source.length
        if self._base.length < length:
            self._target.truncate(length, exact=False)
        if length:
            self._mark_initial(length)
        copier = Copier(self._source, BackendTarget(self._target))
        cursor = 0
        while True:
            self.pace()
            area = self._bitmap.take_area(cursor, self._copy_size)
            if area is not None:
                cursor = self._copy(copier, *area, length)
                continue
            # A pass is over: nothing is left, or only what was written behind the cursor.
            passed, cursor = cursor > 0, 0
            left = self._bitmap.count
            ending = self._should_complete or self.cancel_requested
            if (ending or not self.is_ready) and left <= CATCH_UP:
                if not self.is_ready:
                    self._reach_ready(copier, length)
                elif self._synchronise(copier, length):
                    return
            elif not passed:
                self.checkpoint(IDLE)

    @property
    def _copy_size(self) -> int:
        return max(self.step, self._bitmap.granularity)

    def _mark_initial(self, length: int) -> None:
        """Mark what the layers above the base hold."""
        offset = 0
        while offset < length:
            self.checkpoint()
            extent, _ = status_above(
                self._source, self._base_overlay, offset, length - offset, False, include_base=True
            )
            if extent.flags & _ALLOCATED:
                self._bitmap.set(offset, extent.length)
            offset += extent.length

    def _copy(self, copier: Copier, offset: int, size: int, length: int) -> int:
        """Copy an area that take_area() gave; returns where to look for the next."""
        self.set_remaining(size + self._bitmap.count)
        try:
            copier.copy(offset, min(size, length - offset))
        except CopyError as exc:
            self._bitmap.set(offset, size)
            self._failed(exc.error, reading=exc.reading)
            return offset
        self.progress(min(size, length - offset))
        self.account(size)
        return offset + size

    def _failed(self, error: OSError, *, reading: bool) -> None:
        """Apply the error policy; returns when the work is to go on. Errors: the error itself."""
        action = self.handle_error(self._on_error, error, reading=reading)
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
                try:
                    copier.copy(offset, min(size, length - offset))
                except CopyError:
                    self._bitmap.set(offset, size)
                    raise
                self.set_remaining(size + self._bitmap.count)
                self.progress(min(size, length - offset))
            self._target.flush()
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

    # -- verbs -----------------------------------------------------------------------------------------------

    def on_cancel(self, force: bool) -> bool:
        return force or not self.is_ready

    def on_complete(self) -> None:
        self._should_complete = True

    # -- end -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._exit(failed=False)

    def abort(self) -> None:
        self._exit(failed=True)

    def _exit(self, *, failed: bool) -> None:
        """Leave the graph, everybody on the source moved to the base if the job was completed. Errors: OSError."""
        if self._exited:
            return
        self._exited = True
        thaw(self._frozen)
        self._bitmap.detach()
        self.remove_backends()
        pivot = self._should_complete and not failed
        driver = self._filter.driver
        assert isinstance(driver, MirrorTopDriver)
        try:
            with drained([self._filter, self._source, self._base]):
                driver.stopped = True
                loosen([self._filter])
                try:
                    if pivot:
                        self._pivot()
                    elif self._base_was_read_only:
                        self._restore_base()
                finally:
                    self.remove_nodes()
                    drop_filter(self._filter)
        finally:
            self._undrain()
            for node in (self._source, self._base, self._filter):
                self.graph.unpin(node)

    def _pivot(self) -> None:
        source, base = self._source, self._base
        try:
            set_read_only(base, source.read_only)
            with Transaction() as txn:
                replace_node(txn, source, base)
                refresh_permissions(txn, [source, base])
        except GenericError as exc:
            log.error("job %s: %s", self.id, exc.desc)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from exc
        refresh_filenames_above(base)

    def _restore_base(self) -> None:
        try:
            set_read_only(self._base, True)
        except GenericError as exc:
            log.warning("job %s: cannot make the base read-only again: %s", self.id, exc.desc)


def start_active_commit(
    manager: JobManager,
    job_id: str | None,
    source: Node,
    base: Node,
    *,
    speed: int,
    on_error: BlockdevOnError,
    filter_node_name: str | None,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> ActiveCommitJob:
    """Start committing *source*, which may be written to, and the layers below it into *base*. Errors: GenericError."""
    graph = manager.graph
    was_read_only = base.read_only
    if was_read_only:
        set_read_only(base, False)
    filter_node: Node | None = None
    inserted = False
    try:
        if skip_filters(source) is skip_filters(base):
            raise GenericError("Can't mirror node into itself")
        filter_node = new_filter_node(graph, MirrorTopDriver, filter_node_name, read_only=False)
        driver = filter_node.driver
        assert isinstance(driver, MirrorTopDriver)
        driver.active_commit = True
        insert_filter(filter_node, source, name="backing")
        inserted = True
        job = ActiveCommitJob(
            manager,
            job_id,
            source,
            base,
            filter_node,
            on_error=on_error,
            base_was_read_only=was_read_only,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
    except BaseException:
        if filter_node is not None:
            if inserted:
                drop_filter(filter_node)
            graph.unpin(filter_node)
        if was_read_only:
            set_read_only(base, True)
        raise
    graph.unpin(filter_node)
    job.start()
    return job
