"""Commands on jobs: the two families of verbs, the queries, and the commands that start a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from engine.errors import DeviceNotActive, DeviceNotFound, GenericError
from engine.graph.blockers import Op
from engine.graph.driver import drivers
from engine.graph.filenames import refresh_filename
from engine.graph.node import Node
from engine.graph.options import BlockdevCreateOptions
from engine.graph.permissions import Perm
from engine.graph.status import chain, find_overlay, in_chain, skip_filters
from engine.jobs.blockjob import BlockJob, device_name
from engine.jobs.chain import find_backing_image, find_base, root_node
from engine.jobs.job import Job
from engine.jobs.types import BlockdevOnError, BlockJobInfo, JobInfo
from engine.qapi import Feature, Int, command

if TYPE_CHECKING:
    from engine.engine import Engine


def _job(engine: Engine, job_id: str) -> Job:
    job = engine.jobs.find(job_id)
    if job is None:
        raise GenericError("Job not found")
    return job


def _block_job(engine: Engine, job_id: str) -> BlockJob:
    job = engine.jobs.find_block_job(job_id)
    if job is None:
        raise DeviceNotActive(f"Block job '{job_id}' not found")
    return job


# -- queries -----------------------------------------------------------------------------------------------------------


@command(since="3.0")
def query_jobs(engine: Engine) -> list[JobInfo]:
    """Return every job, the newest first."""
    return [job.info() for job in engine.jobs.jobs]


@command(since="1.1")
def query_block_jobs(engine: Engine) -> list[BlockJobInfo]:
    """Return every block job, the newest first."""
    return [job.block_info() for job in engine.jobs.block_jobs]


# -- verbs for all jobs ------------------------------------------------------------------------------------------------


@command(since="3.0")
def job_pause(engine: Engine, *, id: str) -> None:
    """Pause a job, until job-resume.

    id: the job
    """
    _job(engine, id).user_pause()


@command(since="3.0")
def job_resume(engine: Engine, *, id: str) -> None:
    """Resume a paused job; one that stopped at an error tries again.

    id: the job
    """
    _job(engine, id).user_resume()


@command(since="3.0")
def job_cancel(engine: Engine, *, id: str) -> None:
    """Cancel a job, at once and in any state; what it did so far may stay half done.

    id: the job
    """
    _job(engine, id).user_cancel(True)


@command(since="3.0")
def job_complete(engine: Engine, *, id: str) -> None:
    """Bring a ready job to its end.

    id: the job
    """
    _job(engine, id).complete()


@command(since="3.0")
def job_finalize(engine: Engine, *, id: str) -> None:
    """Let a pending job, and all of its transaction, make their result final.

    id: the job, or any other of its transaction
    """
    _job(engine, id).finalize()


@command(since="3.0")
def job_dismiss(engine: Engine, *, id: str) -> None:
    """Forget a concluded job.

    id: the job
    """
    _job(engine, id).dismiss()


# -- verbs for block jobs ----------------------------------------------------------------------------------------------


@command(since="1.3")
def block_job_pause(engine: Engine, *, device: str) -> None:
    """Pause a block job, until block-job-resume.

    device: the job's id
    """
    _block_job(engine, device).user_pause()


@command(since="1.3")
def block_job_resume(engine: Engine, *, device: str) -> None:
    """Resume a paused block job; one that stopped at an error tries again.

    device: the job's id
    """
    _block_job(engine, device).user_resume()


@command(since="1.1")
def block_job_cancel(engine: Engine, *, device: str, force: bool | None = None) -> None:
    """Stop a block job. A ready one ends well, without switching over, and its target stays a consistent copy.

    device: the job's id
    force: cancel also a ready or a paused job at once
    """
    job = _block_job(engine, device)
    if job.user_paused and not force:
        raise GenericError(f"The block job for device '{device}' is currently paused")
    job.user_cancel(bool(force))


@command(since="1.3")
def block_job_complete(engine: Engine, *, device: str) -> None:
    """Bring a ready block job to its end.

    device: the job's id
    """
    _block_job(engine, device).complete()


@command(since="2.12")
def block_job_finalize(engine: Engine, *, id: str) -> None:
    """Let a pending block job, and all of its transaction, make their result final.

    id: the job, or any other of its transaction
    """
    _block_job(engine, id).finalize()


@command(since="2.12")
def block_job_dismiss(engine: Engine, *, id: str) -> None:
    """Forget a concluded block job.

    id: the job
    """
    _block_job(engine, id).dismiss()


@command(since="1.1")
def block_job_set_speed(engine: Engine, *, device: str, speed: Int) -> None:
    """Limit the speed of a block job.

    device: the job's id
    speed: bytes per second, 0 for no limit
    """
    _block_job(engine, device).set_speed(speed)


# -- starting jobs -----------------------------------------------------------------------------------------------------


@command(since="1.1")
def block_stream(
    engine: Engine,
    *,
    job_id: str | None = None,
    device: str,
    base: str | None = None,
    base_node: str | None = None,
    backing_file: str | None = None,
    bottom: str | None = None,
    speed: Int | None = None,
    on_error: BlockdevOnError | None = None,
    filter_node_name: str | None = None,
    auto_finalize: bool | None = None,
    auto_dismiss: bool | None = None,
) -> None:
    """Copy data from the backing chain of an image into the image, then drop the layers that are needed no more.

    job_id: the job's id; the device's name if absent
    device: the device or node to stream into
    base: file name of the backing image that stays the backing image; all layers are streamed if absent
    base_node: as base, by node name
    backing_file: string to write into the image header instead of the base's file name
    bottom: the lowest node to stream from, instead of base
    speed: bytes per second, 0 for no limit
    on_error: what to do when a request fails; report by default
    filter_node_name: name for the filter node that the job inserts above device
    auto_finalize: whether the job finalizes by itself; true by default
    auto_dismiss: whether the job goes by itself once concluded; true by default
    """
    for one, other, first, second in (
        (base, base_node, "base", "base-node"),
        (base, bottom, "base", "bottom"),
        (bottom, base_node, "bottom", "base-node"),
    ):
        if one is not None and other is not None:
            raise GenericError(f"'{first}' and '{second}' cannot be specified at the same time")
    graph = engine.graph
    top = graph.find_either(device)
    base_image: Node | None = None
    bottom_image: Node | None = None
    if base is not None:
        base_image = find_backing_image(top, base)
        if base_image is None:
            raise GenericError(f"Can't find '{base}' in the backing chain")
    if base_node is not None:
        base_image = graph.find(None, base_node)
        if base_image is top or not in_chain(top, base_image):
            raise GenericError(f"Node '{base_node}' is not a backing image of '{device}'")
        refresh_filename(base_image)
    if bottom is not None:
        bottom_image = graph.find(None, bottom)
        if bottom_image.driver.is_filter:
            raise GenericError(f"Node '{bottom}' is a filter, use a non-filter node as 'bottom'")
        if not in_chain(top, bottom_image):
            raise GenericError(f"Node '{bottom}' is not in a chain starting from '{device}'")
    end = base_image
    if bottom_image is not None:
        below = bottom_image.filter_or_cow
        end = below.child if below is not None else None
    for node in chain(top):
        if node is end:
            break
        node.blockers.check(Op.STREAM, node.device_or_node_name)
    if base_image is None and backing_file is not None:
        raise GenericError("backing file specified, but streaming the entire chain")
    from engine.jobs.stream import start_stream

    start_stream(
        engine.jobs,
        job_id,
        top,
        base=base_image,
        bottom=bottom_image,
        backing_file=backing_file,
        speed=speed or 0,
        on_error=on_error or BlockdevOnError.REPORT,
        filter_node_name=filter_node_name,
        auto_finalize=auto_finalize is not False,
        auto_dismiss=auto_dismiss is not False,
    )


@command(since="1.3")
def block_commit(
    engine: Engine,
    *,
    job_id: str | None = None,
    device: str,
    base_node: str | None = None,
    base: Annotated[str | None, Feature("deprecated")] = None,
    top_node: str | None = None,
    top: Annotated[str | None, Feature("deprecated")] = None,
    backing_file: str | None = None,
    speed: Int | None = None,
    on_error: BlockdevOnError | None = None,
    filter_node_name: str | None = None,
    auto_finalize: bool | None = None,
    auto_dismiss: bool | None = None,
) -> None:
    """Write the data of layers of a backing chain into a layer below them, then drop the layers.

    The layer that is written to (the active one) can be committed too: then the job becomes ready, follows the
    writes, and waits for job-complete.

    job_id: the job's id; the device's name if absent
    device: the device or root node whose chain it is
    base_node: the node to write into; the bottom of the chain if absent
    base: as base_node, by file name
    top_node: the topmost node to commit; device itself if absent
    top: as top_node, by file name
    backing_file: string to write into the header of the image above top instead of the base's file name
    speed: bytes per second, 0 for no limit
    on_error: what to do when a request fails; report by default
    filter_node_name: name for the filter node that the job inserts above top
    auto_finalize: whether the job finalizes by itself; true by default
    auto_dismiss: whether the job goes by itself once concluded; true by default
    """
    graph = engine.graph
    try:
        root = root_node(graph, device)
    except GenericError:
        backend = graph.find_backend(device)
        if (backend is None or backend.root is None) and device not in graph.nodes:
            # Clients tell by the class that the command knows active commit.
            raise DeviceNotFound(f"Device '{device}' not found") from None
        raise
    root.blockers.check(Op.COMMIT_SOURCE, root.device_or_node_name)
    top_image = _commit_top(engine, root, top_node, top)
    base_image = _commit_base(engine, top_image, base_node, base)
    for node in chain(top_image):
        node.blockers.check(Op.COMMIT_TARGET, node.device_or_node_name)
        if node is base_image:
            break
    if top_image is base_image:
        raise GenericError("cannot commit an image into itself")
    policy = on_error or BlockdevOnError.REPORT
    finalize, dismiss = auto_finalize is not False, auto_dismiss is not False
    is_active_layer = skip_filters(top_image) is skip_filters(root)
    taken, _ = top_image.cumulative_permissions()
    if taken & Perm.WRITE or is_active_layer:
        if backing_file is not None:
            why = "is the active layer" if is_active_layer else "has a writer on it"
            raise GenericError(f"'backing-file' specified, but 'top' {why}")
        from engine.jobs.active_commit import start_active_commit

        start_active_commit(
            engine.jobs,
            # The job is named after the device, which is not always the layer that the job is on.
            job_id if job_id is not None else device_name(root),
            top_image,
            base_image,
            speed=speed or 0,
            on_error=policy,
            filter_node_name=filter_node_name,
            auto_finalize=finalize,
            auto_dismiss=dismiss,
        )
        return
    overlay = find_overlay(root, top_image)
    if overlay is not None:
        overlay.blockers.check(Op.COMMIT_TARGET, overlay.device_or_node_name)
    from engine.jobs.commit import start_commit

    start_commit(
        engine.jobs,
        job_id,
        root,
        base_image,
        top_image,
        backing_file=backing_file,
        speed=speed or 0,
        on_error=policy,
        filter_node_name=filter_node_name,
        auto_finalize=finalize,
        auto_dismiss=dismiss,
    )


def _commit_top(engine: Engine, root: Node, node_name: str | None, filename: str | None) -> Node:
    if node_name is not None and filename is not None:
        raise GenericError("'top-node' and 'top' are mutually exclusive")
    if node_name is not None:
        node = engine.graph.find(None, node_name)
        if not in_chain(root, node):
            raise GenericError(f"'{node_name}' is not in this backing file chain")
        return node
    if filename is not None and filename != root.filename:
        found = find_backing_image(root, filename)
        if found is None:
            raise GenericError(f"Top image file {filename} not found")
        return found
    return root


def _commit_base(engine: Engine, top: Node, node_name: str | None, filename: str | None) -> Node:
    if node_name is not None and filename is not None:
        raise GenericError("'base-node' and 'base' are mutually exclusive")
    if node_name is not None:
        node = engine.graph.find(None, node_name)
        if not in_chain(top, node):
            raise GenericError(f"'{node_name}' is not in this backing file chain")
        return node
    if filename is not None:
        found = find_backing_image(top, filename)
        if found is None:
            raise GenericError(f"Can't find '{filename}' in the backing chain")
        return found
    return find_base(top)


@command(since="3.0")
def blockdev_create(engine: Engine, *, job_id: str, options: BlockdevCreateOptions) -> None:
    """Make an image in a job, which stays until job-dismiss so that its error can be read.

    job_id: the job's id
    options: what to make
    """
    name = str(getattr(options, "driver"))  # noqa: B009  (the tag of the union)
    driver = drivers.get(name)
    if driver is None:
        raise GenericError(f"Block driver '{name}' not found or not supported")
    if driver.CreateOptions is None:
        raise GenericError("Driver does not support blockdev-create")
    from engine.jobs.create import CreateJob

    CreateJob(engine.jobs, job_id, driver, options.branch).start()
