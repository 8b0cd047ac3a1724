"""Backups: blockdev-backup and drive-backup, as commands and as actions of a transaction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

from engine.bitmaps.dirty import DirtyBitmap, Refuse, find_bitmap
from engine.commands.snapshot import NewImageMode
from engine.errors import GenericError
from engine.graph.blockers import Op
from engine.graph.creation import GraphCreateContext, check_backing, create_image
from engine.graph.drain import drained
from engine.graph.driver import drivers
from engine.graph.filenames import refresh_filename
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.status import skip_filters, skip_implicit_filters
from engine.jobs.chain import set_backing
from engine.jobs.types import BitmapSyncMode, BlockdevOnError, MirrorSyncMode
from engine.qapi import Feature, Int, Int64, Struct, command
from engine.transaction.action import Action
from engine.transaction.actions import ActionContext, action, perform

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.jobs.backup import BackupJob


class BackupPerf(Struct):
    """How a backup moves its data.

    use_copy_range: whether the kernel may copy from file to file; by default it does wherever that is safe
    max_workers: how many requests may be under way at a time, 64 by default
    max_chunk: longest request in bytes, at least a cluster of the backup; 0, the default, for no limit
    """

    use_copy_range: bool | None = None
    max_workers: Int | None = None
    max_chunk: Int64 | None = None


class BackupCommon(Struct):
    """What both commands take.

    job_id: the job's id; the device's name if absent
    device: the device or node to copy
    sync: what to copy: all of it, the top layer, what a bitmap says, or only what guests overwrite
    speed: bytes per second, 0 for no limit
    bitmap: name of the device's dirty bitmap to copy by, or to bring up to date
    bitmap_mode: when the bitmap is brought up to date
    compress: write compressed clusters, where the target can
    on_source_error: what to do when a read fails; report by default
    on_target_error: what to do when a write fails; report by default
    auto_finalize: whether the job finalizes by itself; true by default
    auto_dismiss: whether the job goes by itself once concluded; true by default
    filter_node_name: name for the filter node that the job inserts above device
    x_perf: how the data are moved
    """

    job_id: str | None = None
    device: str
    sync: MirrorSyncMode
    speed: Int | None = None
    bitmap: str | None = None
    bitmap_mode: BitmapSyncMode | None = None
    compress: bool | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    filter_node_name: str | None = None
    x_perf: Annotated[BackupPerf | None, Feature("unstable")] = None


class DriveBackup(BackupCommon):
    """target: file name of the copy. format: of the target; the device's by default, or probed if it exists.

    mode: whether the target is made (absolute-paths, the default) or there already
    """

    target: str
    format: str | None = None
    mode: NewImageMode | None = None


class BlockdevBackup(BackupCommon):
    """target: the node or device to copy to."""

    target: str


def _bitmap_of(source: Node, data: BackupCommon) -> tuple[DirtyBitmap | None, BitmapSyncMode | None]:
    """The bitmap and what becomes of it, once it is clear that the arguments fit. Errors: GenericError."""
    sync, mode = data.sync, data.bitmap_mode
    if sync in (MirrorSyncMode.BITMAP, MirrorSyncMode.INCREMENTAL) and data.bitmap is None:
        raise GenericError(f"must provide a valid bitmap name for '{sync.value}' sync mode")
    if sync is MirrorSyncMode.INCREMENTAL:
        only = BitmapSyncMode.ON_SUCCESS
        if mode not in (None, only):
            raise GenericError(f"Bitmap sync mode must be '{only.value}' when using sync mode '{sync.value}'")
        sync, mode = MirrorSyncMode.BITMAP, only
    if data.bitmap is None:
        if mode is not None:
            raise GenericError("Cannot specify bitmap sync mode without a bitmap")
        return None, None
    bitmap = find_bitmap(source, data.bitmap)
    if bitmap is None:
        raise GenericError(f"Bitmap '{data.bitmap}' could not be found")
    if mode is None:
        raise GenericError("Bitmap sync mode must be given when providing a bitmap")
    bitmap.check(Refuse.TO_READ)
    if sync is MirrorSyncMode.NONE:
        raise GenericError(f"sync mode '{sync.value}' does not produce meaningful bitmap outputs")
    if mode is BitmapSyncMode.NEVER and sync is not MirrorSyncMode.BITMAP:
        raise GenericError(
            f"Bitmap sync mode '{mode.value}' has no meaningful effect when combined with sync mode '{sync.value}'"
        )
    return bitmap, mode


class _BackupAction(Action):
    """What both have in common: a job is made, and started when all of the transaction is prepared."""

    def __init__(self, context: ActionContext, data: BackupCommon) -> None:
        self.engine = context.engine
        self.graph = context.engine.graph
        self._jobs = context.jobs
        self._common = data
        self.held = ExitStack()
        self._job: BackupJob | None = None

    def start_from(self, source: Node, target: Node, sync: MirrorSyncMode) -> None:
        """Make the job; *source* is drained. Errors: GenericError."""
        data = self._common
        bitmap, mode = _bitmap_of(source, data)
        perf = data.x_perf or BackupPerf()
        if sync is MirrorSyncMode.INCREMENTAL:
            sync = MirrorSyncMode.BITMAP
        from engine.jobs.backup import DEFAULT_WORKERS, Performance, make_backup

        self._job = make_backup(
            self.engine.jobs,
            data.job_id,
            source,
            target,
            sync=sync,
            bitmap=bitmap,
            bitmap_mode=mode,
            compress=bool(data.compress),
            filter_node_name=data.filter_node_name,
            performance=Performance(
                max_workers=DEFAULT_WORKERS if perf.max_workers is None else perf.max_workers,
                max_chunk=perf.max_chunk or 0,
                kernel=perf.use_copy_range is not False,
            ),
            on_source_error=data.on_source_error or BlockdevOnError.REPORT,
            on_target_error=data.on_target_error or BlockdevOnError.REPORT,
            speed=data.speed or 0,
            auto_finalize=data.auto_finalize is not False,
            auto_dismiss=data.auto_dismiss is not False,
            transaction=self._jobs,
        )

    def commit(self) -> None:
        assert self._job is not None
        self._job.start()
        # It comes to its first stop at once, as its node is drained; clients are told so, as QEMU's are.
        self._job.drained_wait()

    def abort(self) -> None:
        if self._job is not None:
            self._job.cancel(True)

    def clean(self) -> None:
        self.held.close()


@action("blockdev-backup", data=BlockdevBackup, grouped=True, since="2.3")
class BlockdevBackupAction(_BackupAction):
    """blockdev-backup: the target is open already."""

    def __init__(self, context: ActionContext, data: BlockdevBackup) -> None:
        super().__init__(context, data)
        self._data = data

    def prepare(self) -> None:
        source = self.graph.find_either(self._data.device)
        target = self.graph.find_either(self._data.target)
        self.held.enter_context(drained([source]))
        self.start_from(source, target, self._data.sync)


@action("drive-backup", data=DriveBackup, grouped=True, since="1.6", features=("deprecated",))
class DriveBackupAction(_BackupAction):
    """drive-backup: the target is made, or opened, by its file name."""

    def __init__(self, context: ActionContext, data: DriveBackup) -> None:
        super().__init__(context, data)
        self._data = data

    def prepare(self) -> None:
        data = self._data
        source = self.graph.find_either(data.device)
        self.held.enter_context(drained([source]))
        existing = data.mode is NewImageMode.EXISTING
        fmt = data.format
        if fmt is None and not existing:
            fmt = source.driver.name
        source.blockers.check(Op.BACKUP_SOURCE, source.device_or_node_name)
        sync = data.sync
        below: Node | None = None
        if sync is MirrorSyncMode.TOP:
            cow = skip_filters(source).backing
            if cow is not None:
                below = cow.child
            else:
                sync = MirrorSyncMode.FULL
        elif sync is MirrorSyncMode.NONE:
            below = source
        if not existing:
            assert fmt is not None
            self._create(fmt, source, below)
        target = open_node(self.graph, self._options(source, fmt, sync), filename=data.target)
        self.held.callback(self.graph.unpin, target)
        if sync is MirrorSyncMode.NONE:
            # The target shows what the source holds, save what is overwritten there.
            set_backing(target, source)
        self.start_from(source, target, sync)

    def _create(self, fmt: str, source: Node, below: Node | None) -> None:
        filename: str | None = None
        backing_format: str | None = None
        if below is not None:
            image = skip_implicit_filters(below)
            refresh_filename(image)
            filename, backing_format = image.filename, image.driver.name
            if below is not source:
                check_backing(self.graph, self._data.target, filename, backing_format)
        create_image(
            GraphCreateContext(self.graph, self.engine.control.call),
            self._data.target,
            fmt,
            source.length,
            backing_file=filename,
            backing_format=backing_format,
        )

    def _options(self, source: Node, fmt: str | None, sync: MirrorSyncMode) -> dict[str, Any]:
        """Options of the target: it is written to, in the source's cache mode; zeros need no space in it."""
        options: dict[str, Any] = {
            "read-only": False,
            "auto-read-only": source.auto_read_only,
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "cache": {"direct": source.cache_direct, "no-flush": source.cache_no_flush},
        }
        if fmt is not None:
            options["driver"] = fmt
            cls = drivers.get(fmt)
            if sync is MirrorSyncMode.NONE and cls is not None and cls.supports_backing:
                options["backing"] = None
        return options


def _perform(engine: Engine, cls: Callable[[ActionContext, Any], _BackupAction], data: BackupCommon) -> None:
    # A transaction of one action, as in QEMU: everything comes to rest first, and running jobs tell of that.
    with drained(list(engine.graph.nodes.values())):
        pass
    perform(engine, cls, data)


@command(since="2.3", boxed=True, allow_preconfig=True)
def blockdev_backup(engine: Engine, data: BlockdevBackup) -> None:
    """Copy what a node holds now to another node, while it goes on being written to."""
    _perform(engine, BlockdevBackupAction, data)


@command(since="1.6", boxed=True, features=("deprecated",), allow_preconfig=True)
def drive_backup(engine: Engine, data: DriveBackup) -> None:
    """Copy what a device holds now to an image file, while it goes on being written to."""
    _perform(engine, DriveBackupAction, data)
