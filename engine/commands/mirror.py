"""blockdev-mirror and drive-mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.commands.snapshot import NewImageMode
from engine.errors import GenericError
from engine.graph.blockers import Op
from engine.graph.creation import GraphCreateContext, create_image
from engine.graph.filenames import refresh_filename
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.status import backing_chain_next, skip_filters, skip_implicit_filters
from engine.jobs.chain import root_node
from engine.jobs.types import BlockdevOnError, MirrorSyncMode
from engine.qapi import Enum, Int, Struct, UInt32, command

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.jobs.mirror_settings import TargetBacking

SMALLEST_GRANULARITY = 512
LARGEST_GRANULARITY = 64 << 20


class MirrorCopyMode(Enum):
    """Whether new writes are copied later, or go to both at once.

    background: writes are copied later
    write-blocking: writes go to source and target before they complete
    """

    BACKGROUND = "background"
    WRITE_BLOCKING = "write-blocking"


class _Mirror(Struct):
    """Members that both commands have.

    job_id: the job's id; the device's name if absent
    device: the device or root node to copy
    replaces: name of the node that the copy takes the place of; device by default
    sync: what to copy: all of the chain, the top layer, or only what is written from now on
    speed: bytes per second, 0 for no limit
    granularity: bytes that are copied for each changed byte: a power of two from 512 to 64 MiB; by default the
        target's cluster size, at least 4 KiB and at most 64 KiB
    buf_size: bytes copied at once, 16 MiB by default
    on_source_error: what to do when a read fails; report by default
    on_target_error: what to do when a write fails; report by default
    copy_mode: how new writes get to the target; background by default
    auto_finalize: whether the job finalizes by itself; true by default
    auto_dismiss: whether the job goes by itself once concluded; true by default
    """

    job_id: str | None = None
    device: str
    replaces: str | None = None
    sync: MirrorSyncMode
    speed: Int | None = None
    granularity: UInt32 | None = None
    buf_size: Int | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    copy_mode: MirrorCopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BlockdevMirror(_Mirror):
    """Arguments of blockdev-mirror.

    target: the node to copy to; as long as the source, and read by nobody else
    filter_node_name: name for the filter node that the job inserts above device
    """

    target: str
    filter_node_name: str | None = None


class DriveMirror(_Mirror):
    """Arguments of drive-mirror.

    target: file name of the copy
    format: of the copy; by default the source's for a new image, probed for an existing one
    node_name: name for the copy's node
    mode: whether the copy is made (absolute-paths, the default) or there already
    unmap: whether zeros may become holes of the copy; true by default
    """

    target: str
    format: str | None = None
    node_name: str | None = None
    mode: NewImageMode | None = None
    unmap: bool | None = None


def _check_granularity(granularity: int) -> None:
    if granularity and not SMALLEST_GRANULARITY <= granularity <= LARGEST_GRANULARITY:
        raise GenericError("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity & (granularity - 1):
        raise GenericError("Parameter 'granularity' expects a power of 2")


def _mirror(
    engine: Engine,
    arguments: _Mirror,
    source: Node,
    target: Node,
    *,
    backing: TargetBacking,
    zero_target: bool,
    unmap: bool,
    filter_node_name: str | None,
) -> None:
    """The checks that both commands make, and the start of the job. Errors: GenericError."""
    from engine.jobs.mirror import MirrorJob
    from engine.jobs.mirror_settings import MirrorSettings
    from engine.jobs.mirror_start import start_mirror
    from engine.jobs.replacing import check_to_replace

    granularity = arguments.granularity or 0
    _check_granularity(granularity)
    source.blockers.check(Op.MIRROR_SOURCE, source.device_or_node_name)
    target.blockers.check(Op.MIRROR_TARGET, target.device_or_node_name)
    sync = arguments.sync
    below = backing_chain_next(source)
    if below is None and sync is MirrorSyncMode.TOP:
        sync = MirrorSyncMode.FULL
    replaces = arguments.replaces
    if replaces is None:
        # Filters that others put above the source stay above the copy.
        unfiltered = skip_implicit_filters(source)
        if unfiltered is not source:
            replaces = unfiltered.name
    if replaces is not None:
        node = check_to_replace(engine.graph, source, replaces)
        if node.length != source.length:
            raise GenericError("cannot replace image with a mirror image of different size")
    if sync in (MirrorSyncMode.INCREMENTAL, MirrorSyncMode.BITMAP):
        raise GenericError(f"Sync mode '{sync}' not supported")
    start_mirror(
        MirrorJob,
        engine.jobs,
        arguments.job_id,
        source,
        target,
        MirrorSettings(
            base=below if sync is MirrorSyncMode.TOP else None,
            only_new=sync is MirrorSyncMode.NONE,
            backing=backing,
            zero_target=zero_target,
            granularity=granularity,
            buf_size=arguments.buf_size or 0,
            on_source_error=arguments.on_source_error or BlockdevOnError.REPORT,
            on_target_error=arguments.on_target_error or BlockdevOnError.REPORT,
            unmap=unmap,
            write_blocking=arguments.copy_mode is MirrorCopyMode.WRITE_BLOCKING,
            replaces=replaces,
        ),
        speed=arguments.speed or 0,
        filter_node_name=filter_node_name,
        auto_finalize=arguments.auto_finalize is not False,
        auto_dismiss=arguments.auto_dismiss is not False,
    )


@command(since="2.6", boxed=True, allow_preconfig=True)
def blockdev_mirror(engine: Engine, arguments: BlockdevMirror) -> None:
    """Copy a device or node to another node, follow the writes to it, and switch its users over in the end."""
    from engine.jobs.mirror_settings import TargetBacking

    source = root_node(engine.graph, arguments.device)
    target = engine.graph.find_either(arguments.target)
    _mirror(
        engine,
        arguments,
        source,
        target,
        backing=TargetBacking.LEAVE,
        zero_target=arguments.sync is MirrorSyncMode.FULL,
        unmap=True,
        filter_node_name=arguments.filter_node_name,
    )


@command(since="1.3", boxed=True, allow_preconfig=True)
def drive_mirror(engine: Engine, arguments: DriveMirror) -> None:
    """As blockdev-mirror, to an image that is made or opened by its file name."""
    from engine.jobs.mirror_settings import TargetBacking

    graph = engine.graph
    source = root_node(graph, arguments.device)
    source.blockers.check(Op.MIRROR_SOURCE, source.device_or_node_name)
    existing = arguments.mode is NewImageMode.EXISTING
    fmt = arguments.format
    if fmt is None and not existing:
        fmt = source.driver.name
    below = skip_filters(source).backing
    backing = below.child if below is not None else None
    sync = arguments.sync
    if backing is None and sync is MirrorSyncMode.TOP:
        sync = MirrorSyncMode.FULL
    if sync is MirrorSyncMode.NONE:
        backing = source
    if arguments.replaces is not None and arguments.node_name is None:
        raise GenericError("a node-name must be provided when replacing a named node of the graph")
    if not existing:
        assert fmt is not None
        _create(engine, arguments.target, fmt, source, None if sync is MirrorSyncMode.FULL else backing)
    # As long as the backing image is not there, the job copies on write by itself.
    options = _target_options(source, fmt, arguments.node_name)
    target = open_node(graph, options, filename=arguments.target, no_backing=True)
    try:
        _mirror(
            engine,
            arguments,
            source,
            target,
            backing=TargetBacking.OPEN_CHAIN if existing else TargetBacking.SOURCE_CHAIN,
            zero_target=sync is MirrorSyncMode.FULL and (existing or not target.driver.has_zero_init()),
            unmap=arguments.unmap is not False,
            filter_node_name=None,
        )
    finally:
        graph.unpin(target)


def _create(engine: Engine, filename: str, fmt: str, source: Node, backing: Node | None) -> None:
    """Make the image of the copy, with *backing* in its header. Errors: GenericError."""
    context = GraphCreateContext(engine.graph, engine.control.call)
    if backing is None:
        create_image(context, filename, fmt, source.length)
        return
    explicit = skip_implicit_filters(backing)
    refresh_filename(explicit)
    create_image(
        context, filename, fmt, source.length, backing_file=explicit.filename, backing_format=explicit.driver.name
    )


def _target_options(source: Node, fmt: str | None, node_name: str | None) -> dict[str, Any]:
    """Options of the copy's node: the modes of the source, but writable."""
    options: dict[str, Any] = {
        "read-only": False,
        "auto-read-only": source.auto_read_only,
        "discard": "unmap" if source.discard_unmap else "ignore",
        "cache": {"direct": source.cache_direct, "no-flush": source.cache_no_flush},
    }
    if node_name is not None:
        options["node-name"] = node_name
    if fmt is not None:
        options["driver"] = fmt
    return options
