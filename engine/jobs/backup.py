"""Backup: a copy of what a node holds at the moment the job is made, while guests go on writing to it.

A copy-before-write filter above the source saves what a guest is about to overwrite; the job copies the rest. Both use
the filter's BlockCopy.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.bitmaps.dirty import DirtyBitmap, Refuse
from engine.copying.block_copy import BlockCopy, Round
from engine.copying.copier import CopyError
from engine.drivers.filter.copy_before_write import CopyBeforeWriteDriver
from engine.errors import GenericError
from engine.graph.blockers import Op
from engine.graph.change import Transaction, refresh_permissions, replace_node
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.jobs.blockjob import BlockJob
from engine.jobs.chain import drop_filter
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BitmapSyncMode, BlockdevOnError, BlockErrorAction, JobType, MirrorSyncMode

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

MOST_WORKERS = 2
"""Threads of one job, besides the helpers that copy for them; more only take the interpreter from one another."""
DEFAULT_WORKERS = 64
RETRY_DELAY = 0.1
"""Seconds between two tries of clusters whose error is ignored."""
LONG = 3600.0


@dataclass(frozen=True, slots=True)
class Performance:
    """How the data are moved. max_chunk: bytes, 0 for no limit. kernel: whether the kernel may do it."""

    max_workers: int = DEFAULT_WORKERS
    max_chunk: int = 0
    kernel: bool = True


class BackupJob(BlockJob):
    """One backup. The bitmap, if there is one, has a successor already, which the end of the job disposes of."""

    job_type = JobType.BACKUP

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        filter_node: Node,
        target: Node,
        *,
        sync: MirrorSyncMode,
        bitmap: DirtyBitmap | None,
        bitmap_mode: BitmapSyncMode | None,
        on_source_error: BlockdevOnError,
        on_target_error: BlockdevOnError,
        workers: int,
        speed: int,
        transaction: JobTransaction | None,
        auto_finalize: bool,
        auto_dismiss: bool,
    ) -> None:
        super().__init__(
            manager,
            job_id,
            filter_node,
            Perm.NONE,
            Perm.ALL,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        driver = filter_node.driver
        assert isinstance(driver, CopyBeforeWriteDriver)
        self._filter = filter_node
        self._target = target
        self._copy: BlockCopy = driver.copy
        self._sync = sync
        self._bitmap = bitmap
        self._bitmap_mode = bitmap_mode
        self._on_source_error = on_source_error
        self._on_target_error = on_target_error
        self._workers = max(1, min(workers, MOST_WORKERS))
        if sync is MirrorSyncMode.BITMAP:
            # Now, and not when the work begins: guests may have had clusters copied by then.
            assert bitmap is not None
            self._copy.bitmap.clear()
            self._copy.bitmap.merge(bitmap)
        self._copy.skip_unallocated = sync is MirrorSyncMode.TOP
        self._copy.meter = self
        self._copy.tell_left()
        try:
            self.add_node("target", target, Perm.NONE, Perm.ALL)
        except BaseException:
            self.release()
            self.fail_early()
            raise

    @property
    def wants_halt(self) -> bool:
        """Whether the next checkpoint() may take long. Any thread."""
        return self.paused or self.force_cancelled

    # -- progress, for the BlockCopy -------------------------------------------------------------------------

    def copied(self, size: int) -> None:
        self.progress(size)

    def left(self, size: int) -> None:
        self.set_remaining(size)

    def used(self, size: int) -> None:
        self.account(size)

    # -- work ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        copy = self._copy
        if self._sync is MirrorSyncMode.TOP:
            offset = 0
            while offset < copy.length:
                self.checkpoint()
                offset += copy.reset_unallocated(offset)
            copy.skip_unallocated = False
        if self._sync is MirrorSyncMode.NONE:
            # The filter does it all, until somebody cancels the job.
            while True:
                self.checkpoint(LONG)
        while True:
            self.pace()
            try:
                if not self._copy_some():
                    break
            except CopyError as exc:
                self._fail(exc)
        # The last step takes its time, too.
        self.pace()

    def _copy_some(self) -> bool:
        """Copy until the job has to stop for a while, or one task where there is a speed limit; False: all is done."""
        copy = self._copy
        limit = self.step if self.speed else 0
        part = Round()

        def work() -> None:
            while copy.copy_next(part, limit) and not limit and not self.wants_halt and not self.speed:
                pass

        helpers = []
        if not limit and copy.bitmap.count > copy.cluster_size:
            helpers = [threading.Thread(target=work, daemon=True) for _ in range(self._workers - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        if part.error is not None:
            raise part.error
        return bool(copy.bitmap.count) or not copy.is_copied(0, copy.length)

    def _fail(self, error: CopyError) -> None:
        """Do what the policy says about a failure. Errors: OSError, to end the job."""
        policy = self._on_source_error if error.reading else self._on_target_error
        action = self.handle_error(policy, error.error, reading=error.reading)
        if action is BlockErrorAction.REPORT:
            raise error.error
        if action is BlockErrorAction.IGNORE:
            self._copy.pass_over()
            self.checkpoint(RETRY_DELAY)

    def on_cancel(self, force: bool) -> bool:
        self._target.driver.cancel_in_flight()
        return True

    # -- end -------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        self._settle_bitmap(True)

    def abort(self) -> None:
        self._settle_bitmap(False)

    def _settle_bitmap(self, succeeded: bool) -> None:
        bitmap, self._bitmap = self._bitmap, None
        if bitmap is None:
            return
        always = self._bitmap_mode is BitmapSyncMode.ALWAYS
        if (succeeded or always) and self._bitmap_mode is not BitmapSyncMode.NEVER:
            bitmap = bitmap.abdicate()
        else:
            bitmap.reclaim()
        if not succeeded and always:
            bitmap.merge(self._copy.bitmap)

    def clean(self) -> None:
        self._copy.meter = None
        super().clean()
        try:
            drop_filter(self._filter)
        finally:
            self.graph.unpin(self._filter)


def make_backup(
    manager: JobManager,
    job_id: str | None,
    source: Node,
    target: Node,
    *,
    sync: MirrorSyncMode,
    bitmap: DirtyBitmap | None = None,
    bitmap_mode: BitmapSyncMode | None = None,
    compress: bool = False,
    filter_node_name: str | None = None,
    performance: Performance | None = None,
    on_source_error: BlockdevOnError = BlockdevOnError.REPORT,
    on_target_error: BlockdevOnError = BlockdevOnError.REPORT,
    speed: int = 0,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> BackupJob:
    """A backup of *source*, as it is now, to *target*; the caller drains *source* and starts the job.

    sync: not INCREMENTAL; BITMAP needs a bitmap, a mode goes with every bitmap. Errors: GenericError, nothing changed.
    """
    if source is target:
        raise GenericError("Source and target cannot be the same")
    if compress and not _takes_compressed_writes(target):
        raise GenericError(f"Compression is not supported for this drive {target.device_name}")
    source.blockers.check(Op.BACKUP_SOURCE, source.device_or_node_name)
    target.blockers.check(Op.BACKUP_TARGET, target.device_or_node_name)
    performance = performance or Performance()
    if not 1 <= performance.max_workers < 1 << 31:
        raise GenericError(f"max-workers must be between 1 and {(1 << 31) - 1}")
    if performance.max_chunk < 0:
        raise GenericError("max-chunk must be zero (which means no limit) or positive")
    if bitmap is not None:
        if bitmap_mode is not BitmapSyncMode.NEVER:
            bitmap.check(Refuse.TO_CHANGE)
        bitmap.create_successor()
    filter_node: Node | None = None
    try:
        if source.length != target.length:
            raise GenericError("Source and target image have different sizes")
        filter_node = _insert_filter(source, target, filter_node_name)
        driver = filter_node.driver
        assert isinstance(driver, CopyBeforeWriteDriver)
        cluster = driver.copy.cluster_size
        if performance.max_chunk and performance.max_chunk < cluster:
            raise GenericError(
                f"Required max-chunk ({performance.max_chunk}) is less than backup cluster size ({cluster})"
            )
        driver.copy.set_options(compress=compress, kernel=performance.kernel, longest=performance.max_chunk)
        # The pin of the filter goes over to the job.
        return BackupJob(
            manager,
            job_id,
            filter_node,
            target,
            sync=sync,
            bitmap=bitmap,
            bitmap_mode=bitmap_mode,
            on_source_error=on_source_error,
            on_target_error=on_target_error,
            workers=performance.max_workers,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
    except BaseException:
        if bitmap is not None:
            bitmap.reclaim()
        if filter_node is not None:
            try:
                drop_filter(filter_node)
            finally:
                source.graph.unpin(filter_node)
        raise


def _takes_compressed_writes(node: Node) -> bool:
    """Whether *node*, through all filters above it, takes them."""
    while node.driver.supports_compressed_writes:
        below = node.filtered
        if below is None:
            return True
        node = below.child
    return False


def _insert_filter(source: Node, target: Node, name: str | None) -> Node:
    """A copy-before-write node above *source*, pinned. Errors: GenericError."""
    options = {"driver": CopyBeforeWriteDriver.name, "file": source.name, "target": target.name}
    if name is not None:
        options["node-name"] = name
    try:
        node = open_node(source.graph, options)
    except GenericError as exc:
        raise GenericError(f"Could not create node: {exc.desc}") from exc
    try:
        with drained([source, node]), Transaction() as txn:
            replace_node(txn, source, node)
            refresh_permissions(txn, [node, source])
    except GenericError as exc:
        node.graph.unpin(node)
        raise GenericError(f"Could not replace node: {exc.desc}") from exc
    return node
