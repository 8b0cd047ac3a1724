"""block-commit of intermediate layers: write their data into a layer below, then leave them out of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.copying.copier import BackendTarget, Copier, CopyError
from engine.drivers.filter.internal import CommitTopDriver, new_filter_node
from engine.errors import GenericError
from engine.graph.change import freeze_chain, thaw
from engine.graph.driver import Status
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.graph.reopen import back_to_read_only, set_read_only
from engine.graph.status import chain, find_overlay, skip_filters, status_above
from engine.jobs.blockjob import BlockJob
from engine.jobs.chain import drop_filter, drop_intermediate, insert_filter
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BlockdevOnError, BlockErrorAction, JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

_ALLOCATED = int(Status.ALLOCATED)
RETRY_DELAY = 0.1
"""Seconds before a range whose error is ignored is tried again."""


class CommitJob(BlockJob):
    """One intermediate commit. The layers between *top* and *base* show wrong data from the first write on."""

    job_type = JobType.COMMIT

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        device: Node,
        base: Node,
        top: Node,
        *,
        backing_file: str | None,
        on_error: BlockdevOnError,
        filter_node_name: str | None,
        speed: int,
        transaction: JobTransaction | None,
        auto_finalize: bool,
        auto_dismiss: bool,
    ) -> None:
        """Errors: GenericError; nothing has changed then."""
        if skip_filters(top) is skip_filters(base):
            raise GenericError("Invalid files for merge: top and base are the same")
        super().__init__(
            manager,
            job_id,
            device,
            Perm.NONE,
            Perm.ALL,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        self._base = base
        self._top = top
        self._backing_file = backing_file
        self._on_error = on_error
        self._base_was_read_only = base.read_only
        self._filter: Node | None = None
        self._frozen: list[Edge] = []
        overlay = find_overlay(top, base)
        assert overlay is not None
        self._base_overlay = overlay
        base.pins += 1
        try:
            if self._base_was_read_only:
                set_read_only(base, False)
            self._filter = self._insert_filter(filter_node_name)
            self._hold_nodes()
        except BaseException:
            self.release()
            self._drop_filter()
            self._restore_base()
            self.fail_early()
            raise

    def _insert_filter(self, name: str | None) -> Node:
        node = new_filter_node(self.graph, CommitTopDriver, name, read_only=True)
        try:
            insert_filter(node, self._top, name="backing")
        finally:
            self.graph.unpin(node)
        return node

    def _hold_nodes(self) -> None:
        top, base = self._top, self._base
        # Below the overlay of the base all are filters on the base, whose content stays consistent.
        below_overlay = self._base_overlay.backing
        assert below_overlay is not None
        assert self._filter is not None
        shared = Perm.WRITE_UNCHANGED | Perm.WRITE
        for node in chain(top):
            if node is base:
                break
            if node is below_overlay.child:
                shared |= Perm.CONSISTENT_READ
            self.add_node("intermediate node", node, Perm.NONE, shared)
        self._frozen = freeze_chain(self._filter, base)
        self.add_node("base", base, Perm.NONE, Perm.ALL)
        perm = Perm.CONSISTENT_READ | Perm.WRITE
        if base.length < top.length:
            perm |= Perm.RESIZE
        self._target = self.add_backend(base, perm, Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)
        self.add_backend(top, Perm.NONE, Perm.ALL)

    # -- work ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        top = self._top
        length = top.length
        self.set_remaining(length)
        if self._base.length < length:
            self._target.truncate(length, exact=False)
        copier = Copier(top, BackendTarget(self._target))
        offset = one_by_one = 0
        while offset < length:
            self.pace()
            try:
                if offset >= one_by_one:
                    # Where data and holes take turns, all of a step at once; runs of their own are as good or as long.
                    run = self._until_boundary(offset, min(length - offset, self.step))
                    decided = copier.copy_decided(offset, run, self._base_overlay)
                    if decided is not None:
                        offset += run
                        self.progress(run)
                        self.account(decided)
                        continue
                    one_by_one = offset + run
                extent, _ = status_above(top, self._base_overlay, offset, length - offset, False, include_base=True)
                run = extent.length
                wanted = bool(extent.flags & _ALLOCATED)
                if wanted:
                    run = self._until_boundary(offset, min(run, self.step))
                    copier.copy(offset, run)
            except (CopyError, OSError) as exc:
                error, reading = (exc.error, exc.reading) if isinstance(exc, CopyError) else (exc, True)
                action = self.handle_error(self._on_error, error, reading=reading)
                if action is BlockErrorAction.REPORT:
                    raise error from exc
                if action is BlockErrorAction.IGNORE:
                    # Left out it would be lost, so it is tried until it works (QEMU up to 9.2).
                    self.checkpoint(RETRY_DELAY)
                continue
            offset += run
            self.progress(run)
            if wanted:
                self.account(run)
        # The last step takes its time, too.
        self.pace()
        # The overlay's header is about to lead past the layers committed: the base must have it all by then.
        self._target.flush()

    def _until_boundary(self, offset: int, run: int) -> int:
        """Cut a step so that the next one begins at a multiple of 64 KiB, whole clusters in most images."""
        end = offset + run
        aligned = end & -(64 << 10)
        return aligned - offset if aligned > offset else run

    # -- end -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        assert self._filter is not None
        self._thaw()
        # The writer on the base goes first: after the change its permissions could not be had.
        self.remove_backends()
        drop_intermediate(self._filter, self._base, self._backing_file)

    def _thaw(self) -> None:
        thaw(self._frozen)
        self._frozen = []

    def _drop_filter(self) -> None:
        node, self._filter = self._filter, None
        self._thaw()
        if node is not None and not node.closed:
            drop_filter(node)

    def _restore_base(self) -> None:
        if self._base_was_read_only and not self._base.read_only:
            back_to_read_only(self._base)
        self.graph.unpin(self._base)

    def abort(self) -> None:
        # The job's hold on the layers has to go before the filter can: it keeps consistent reads out.
        self.release()
        self._drop_filter()

    def clean(self) -> None:
        super().clean()
        self._drop_filter()
        self._restore_base()


def start_commit(
    manager: JobManager,
    job_id: str | None,
    device: Node,
    base: Node,
    top: Node,
    *,
    backing_file: str | None,
    speed: int,
    on_error: BlockdevOnError,
    filter_node_name: str | None,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> CommitJob:
    """Start committing the layers from *top* down to above *base* into *base*. Errors: GenericError."""
    job = CommitJob(
        manager,
        job_id,
        device,
        base,
        top,
        backing_file=backing_file,
        on_error=on_error,
        filter_node_name=filter_node_name,
        speed=speed,
        transaction=transaction,
        auto_finalize=auto_finalize,
        auto_dismiss=auto_dismiss,
    )
    job.start()
    return job
