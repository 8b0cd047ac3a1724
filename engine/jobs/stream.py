"""block-stream: bring the data of backing layers into the layer on top, then leave those layers out of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.copying.copier import Copier, CopyError, PopulateTarget, extent_cluster
from engine.drivers.filter.copy_on_read import CopyOnReadDriver
from engine.errors import GenericError
from engine.graph.change import Transaction, check_not_frozen, refresh_permissions, replace_node
from engine.graph.drain import drained
from engine.graph.driver import Status
from engine.graph.filenames import refresh_filename
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.graph.reopen import back_to_read_only, set_read_only
from engine.graph.status import chain, find_overlay, is_allocated, skip_filters, status_above
from engine.jobs.blockjob import BlockJob
from engine.jobs.chain import above, drop_filter, find_base, set_backing, write_backing_string
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BlockdevOnError, BlockErrorAction, JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

_FIRST_STEP = 512 << 10
"""Bytes of QEMU's steps. The progress told with an error says where the step that failed began; ours grow later on."""
_ALLOCATED = int(Status.ALLOCATED)
_SHARED_BELOW = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED


class StreamJob(BlockJob):
    """One stream. Guest writes go on; the job holds each range it copies, so that it never puts old data over new."""

    job_type = JobType.STREAM

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        top: Node,
        filter_node: Node,
        base_overlay: Node,
        above_base: Node,
        *,
        backing_file: str | None,
        on_error: BlockdevOnError,
        was_read_only: bool,
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
        self._top = top
        self._layer = skip_filters(top)
        self._filter: Node | None = filter_node
        self._base_overlay = base_overlay
        self._above_base = above_base
        self._backing_file = backing_file
        self._on_error = on_error
        self._was_read_only = was_read_only
        try:
            self.add_backend(filter_node, Perm.CONSISTENT_READ, _SHARED_BELOW | Perm.WRITE)
            self.add_node("active node", top, Perm.NONE, _SHARED_BELOW | Perm.WRITE)
            for node in chain(top):
                if node is not top:
                    self.add_node("intermediate node", node, Perm.NONE, _SHARED_BELOW)
                if node is above_base:
                    break
        except BaseException:
            self.release()
            self.fail_early()
            raise

    # -- work ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        layer = self._layer
        if layer is self._base_overlay:
            return
        length = layer.length
        self.set_remaining(length)
        copier = Copier(layer, PopulateTarget(layer), look_for_zeros=True)
        cluster = extent_cluster(layer)
        failed: OSError | None = None
        offset = one_by_one = 0
        while offset < length:
            self.pace()
            run, wanted = 0, False
            try:
                if offset >= one_by_one:
                    # Where data and holes take turns, all of a step at once; runs of their own are as good or as long.
                    run, decided = self._populate_step(copier, offset, length - offset, cluster)
                    if decided is not None:
                        offset += run
                        self.progress(run)
                        self.account(decided)
                        continue
                    one_by_one = offset + run
                    run = 0
                run, wanted = self._look(offset, length - offset)
                if wanted:
                    # Whole clusters of the layer: it would have to fetch the rest of them itself otherwise.
                    end = offset + min(run, max(self._step_at(offset), cluster))
                    end = min(-(-end // cluster) * cluster, length)
                    run = end - offset
                    start = offset - offset % cluster
                    self._populate(copier, start, end - start)
            except (CopyError, OSError) as exc:
                error = exc.error if isinstance(exc, CopyError) else exc
                action = self.handle_error(self._on_error, error, reading=True)
                if action is BlockErrorAction.STOP:
                    continue
                failed = failed or error
                if action is BlockErrorAction.REPORT:
                    break
                run = run or min(self._step_at(offset), length - offset)
            offset += run
            self.progress(run)
            if wanted:
                self.account(run)
        if failed is not None:
            # Also after an ignored error: the layers below are still needed, so the link to them stays.
            raise failed
        # The last step takes its time, too.
        self.pace()
        # The header is about to say that the layers below are not needed: what came from them must be durable by then.
        layer.flush()

    def _step_at(self, offset: int) -> int:
        return min(self.step, max(_FIRST_STEP, offset))

    def _look(self, offset: int, length: int) -> tuple[int, bool]:
        """(bytes, whether they are to be copied): a run at *offset*."""
        layer, bottom = self._layer, self._base_overlay
        extent, depth = status_above(layer, bottom, offset, length, False, include_base=True)
        if not extent.flags & _ALLOCATED or depth == 0:
            return extent.length, False
        if extent.flags & Status.ZERO and self._above_base.filter_or_cow is None:
            found = next(node for number, node in enumerate(chain(layer)) if number == depth)
            if offset >= found.length:
                # Past the end of a short layer, and with nothing left below afterwards: zeros without being written.
                return extent.length, False
        return extent.length, True

    def _populate(self, copier: Copier, offset: int, length: int) -> None:
        layer = self._layer
        end = offset + length
        with layer.ranges.hold(offset, length):
            while offset < end:
                # A guest may have written here since.
                here, run = is_allocated(layer, offset, end - offset)
                if not here:
                    copier.copy(offset, run)
                offset += run

    def _populate_step(self, copier: Copier, offset: int, length: int, cluster: int) -> tuple[int, int | None]:
        """(bytes of a step at *offset*, how many of them were brought into the layer, None: try it run by run)."""
        layer = self._layer
        run = min(-(-max(self._step_at(offset), cluster) // cluster) * cluster, length)
        if offset % cluster:
            return run, None
        with layer.ranges.hold(offset, run):
            here, free = is_allocated(layer, offset, run)
            if here or free < run:
                return run, None
            past = self._above_base.filter_or_cow is None
            return run, copier.copy_decided(offset, run, self._base_overlay, keep_past=past)

    # -- end -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._drop_filter()
        layer = self._layer
        # The link to the base was free to change, so only now it is known what the base is.
        below = self._above_base.filter_or_cow
        base = below.child if below is not None else None
        if layer.backing is None:
            return
        filename: str | None = None
        fmt: str | None = None
        if base is not None:
            image = skip_filters(base)
            refresh_filename(image)
            filename = self._backing_file if self._backing_file is not None else image.filename
            fmt = image.driver.name
        with drained([layer, self._above_base]):
            self.remove_nodes()
            set_backing(layer, base)
            write_backing_string(layer, filename, fmt)

    def _drop_filter(self) -> None:
        node, self._filter = self._filter, None
        if node is None:
            return
        self.remove_backends()
        self.remove_nodes(node)
        driver = node.driver
        assert isinstance(driver, CopyOnReadDriver)
        try:
            with drained([node]):
                driver.deactivate()
                drop_filter(node)
        finally:
            self.graph.unpin(node)

    def abort(self) -> None:
        self._drop_filter()

    def clean(self) -> None:
        self._drop_filter()
        super().clean()
        if self._was_read_only:
            back_to_read_only(self._top)
        self.graph.unpin(self._top)


def start_stream(
    manager: JobManager,
    job_id: str | None,
    top: Node,
    *,
    base: Node | None,
    bottom: Node | None,
    backing_file: str | None,
    speed: int,
    on_error: BlockdevOnError,
    filter_node_name: str | None,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> StreamJob:
    """Start a stream of the layers between *top* and *base* (excluded; None: all), or down to *bottom*.

    Errors: GenericError.
    """
    graph = manager.graph
    if bottom is not None:
        base_overlay = above_base = bottom
    else:
        overlay = find_overlay(top, base) if base is not None else find_base(top)
        if overlay is None:
            raise GenericError(f"'{base.name if base else ''}' is not in the backing chain of '{top.name}'")
        base_overlay = overlay
        above_base = above(base_overlay, base)
    was_read_only = top.read_only
    if was_read_only:
        check_not_frozen(top, above_base)
        set_read_only(top, False)
    filter_node: Node | None = None
    try:
        filter_node = _insert_filter(top, base_overlay, filter_node_name)
        job = StreamJob(
            manager,
            job_id,
            top,
            filter_node,
            base_overlay,
            above_base,
            backing_file=backing_file,
            on_error=on_error,
            was_read_only=was_read_only,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
    except BaseException:
        if filter_node is not None:
            driver = filter_node.driver
            assert isinstance(driver, CopyOnReadDriver)
            driver.deactivate()
            try:
                drop_filter(filter_node)
            finally:
                graph.unpin(filter_node)
        if was_read_only:
            back_to_read_only(top)
        raise
    # The pin of the filter goes over to the job.
    top.pins += 1
    job.start()
    return job


def _insert_filter(top: Node, bottom: Node, name: str | None) -> Node:
    graph = top.graph
    options = {"driver": CopyOnReadDriver.name, "file": top.name, "bottom": bottom.name}
    if name is not None:
        options["node-name"] = name
    try:
        node = open_node(graph, options)
    except GenericError as exc:
        raise GenericError(f"Could not create node: {exc.desc}") from exc
    node.implicit = name is None
    try:
        with drained([top, node]), Transaction() as txn:
            replace_node(txn, top, node)
            refresh_permissions(txn, [node, top])
    except BaseException:
        driver = node.driver
        assert isinstance(driver, CopyOnReadDriver)
        driver.deactivate()
        graph.unpin(node)
        raise
    return node
