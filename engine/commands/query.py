"""Queries about nodes, devices and their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from engine.bitmaps.dirty import bitmaps_of
from engine.commands.throttle import shown_limits
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.broken import BrokenDriver
from engine.graph.filenames import full_backing_name, refresh_filename
from engine.graph.info import ImageInfo, ImageInfoSpecific
from engine.graph.internal_snapshots import snapshots_below
from engine.graph.node import Node
from engine.graph.options import BlockdevDetectZeroesOptions
from engine.graph.status import skip_implicit_filters
from engine.graph.threshold import write_threshold
from engine.qapi import Enum, Int, Struct, Wire, command

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.graph.graph import Graph


SECTOR = 512
"""Lengths are told in whole sectors, as QEMU has them."""


class BlockdevCacheInfo(Struct):
    """Cache mode. writeback: of the device, on for nodes. direct: host cache avoided. no_flush: flushes ignored."""

    writeback: bool
    direct: bool
    no_flush: bool


class BlockDirtyInfo(Struct):
    """A dirty bitmap. count: dirty bytes. granularity: bytes a bit stands for."""

    name: str | None = None
    count: Int
    granularity: Int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool | None = None


class BlockDeviceInfo(Struct, underscores=True):
    """A node as query-named-block-nodes shows it. file: its name. ro: read-only. bps, iops: throttling, 0 for none."""

    file: str
    node_name: Annotated[str | None, Wire("node-name")] = None
    ro: bool
    drv: str
    backing_file: str | None = None
    backing_file_depth: Int
    encrypted: bool
    detect_zeroes: BlockdevDetectZeroesOptions
    bps: Int
    bps_rd: Int
    bps_wr: Int
    iops: Int
    iops_rd: Int
    iops_wr: Int
    image: ImageInfo
    bps_max: Int | None = None
    bps_rd_max: Int | None = None
    bps_wr_max: Int | None = None
    iops_max: Int | None = None
    iops_rd_max: Int | None = None
    iops_wr_max: Int | None = None
    bps_max_length: Int | None = None
    bps_rd_max_length: Int | None = None
    bps_wr_max_length: Int | None = None
    iops_max_length: Int | None = None
    iops_rd_max_length: Int | None = None
    iops_wr_max_length: Int | None = None
    iops_size: Int | None = None
    group: str | None = None
    cache: BlockdevCacheInfo
    write_threshold: Int
    dirty_bitmaps: Annotated[list[BlockDirtyInfo] | None, Wire("dirty-bitmaps")] = None


class BlockDeviceIoStatus(Enum):
    """Whether the last request of a device failed."""

    OK = "ok"
    FAILED = "failed"
    NOSPACE = "nospace"


class BlockInfo(Struct, underscores=True):
    """A device. device: its name. inserted: what its node is, unless it is empty."""

    device: str
    qdev: str | None = None
    type: str
    removable: bool
    locked: bool
    inserted: BlockDeviceInfo | None = None
    tray_open: bool | None = None
    io_status: Annotated[BlockDeviceIoStatus | None, Wire("io-status")] = None


def refresh_filenames(graph: Graph) -> None:
    """Bring the file names of all nodes up to date; they depend on the whole subtree."""
    for node in list(graph.nodes.values()):
        if not any(isinstance(edge.parent, Node) for edge in node.parents):
            refresh_filename(node)


def visible_nodes(graph: Graph) -> list[Node]:
    """All nodes, oldest first, without the stand-ins for broken links."""
    return [node for node in graph.nodes.values() if not isinstance(node.driver, BrokenDriver)]


def image_info(node: Node) -> ImageInfo:
    """Facts of one node's image; file names are to be fresh."""
    driver = node.driver
    info = driver.info()
    specific = driver.format_specific()
    backing = node.auto_backing_file or None
    full = None
    if backing is not None:
        try:
            full = full_backing_name(node)
        except GenericError:
            full = None  # relative to something that has no folder
    return ImageInfo(
        filename=node.filename,
        format=driver.name,
        dirty_flag=None if info is None else bool(info.is_dirty),
        actual_size=driver.allocated_size(),
        virtual_size=-(-node.length // SECTOR) * SECTOR,
        cluster_size=info.cluster_size or None if info is not None else None,
        encrypted=True if driver.is_encrypted() else None,
        backing_filename=backing,
        full_backing_filename=full,
        backing_filename_format=(node.auto_backing_format or None) if backing is not None else None,
        snapshots=snapshots_below(node) or None,
        format_specific=None
        if specific is None
        else ImageInfoSpecific(
            type=specific[0], branch=ImageInfoSpecific.qapi_branch_type(specific[0])(data=specific[1])
        ),
    )


def _below(node: Node) -> Node | None:
    edge = node.filter_or_cow
    return edge.child if edge is not None and not isinstance(edge.child.driver, BrokenDriver) else None


def _as_int64(value: int) -> int:
    # The threshold is unsigned where it is set and signed where it is shown.
    return value - (1 << 64) if value >> 63 else value


_DETECT_ZEROES = {value.value: value for value in BlockdevDetectZeroesOptions}


def device_info(node: Node, *, backend: BlockBackend | None = None, flat: bool = False) -> BlockDeviceInfo:
    """A node as QMP shows it. backend: the device it is shown for. flat: without the images below."""
    if node.ejected:
        raise GenericError(f"Block device {node.name} is ejected")
    image = image_info(node)
    depth = 0
    last, below = image, _below(node)
    while below is not None and not flat:
        if backend is not None:
            below = skip_implicit_filters(below)
        depth += 1
        last.backing_image = image_info(below)
        last, below = last.backing_image, _below(below)
    backing = node.backing
    return BlockDeviceInfo(
        file=node.filename,
        node_name=node.name,
        ro=node.read_only,
        drv=node.driver.name,
        backing_file=backing.child.filename if backing is not None else None,
        backing_file_depth=depth,
        encrypted=node.driver.is_encrypted(),
        detect_zeroes=_DETECT_ZEROES[node.detect_zeroes],
        **shown_limits(backend),
        image=image,
        cache=BlockdevCacheInfo(
            writeback=backend.write_cache if backend is not None else True,
            direct=node.cache_direct,
            no_flush=node.cache_no_flush,
        ),
        write_threshold=_as_int64(write_threshold(node)),
        dirty_bitmaps=[
            BlockDirtyInfo(
                name=bitmap.name,
                count=bitmap.count,
                granularity=bitmap.granularity,
                recording=bitmap.recording,
                busy=bitmap.busy,
                persistent=bitmap.persistent,
                inconsistent=True if bitmap.inconsistent else None,
            )
            for bitmap in bitmaps_of(node)
        ]
        or None,
    )


def devices(graph: Graph) -> list[BlockBackend]:
    """The back ends that QMP shows as devices, oldest first."""
    return [backend for backend in graph.backends if backend.name or backend.device is not None]


@command(since="2.0", allow_preconfig=True)
def query_named_block_nodes(engine: Engine, *, flat: bool | None = None) -> list[BlockDeviceInfo]:
    """List all block nodes, newest first.

    flat: leave out the images below each (fast where there are long chains)
    """
    refresh_filenames(engine.graph)
    return [device_info(node, flat=bool(flat)) for node in reversed(visible_nodes(engine.graph))]


@command(since="0.14", allow_preconfig=True)
def query_block(engine: Engine) -> list[BlockInfo]:
    """List the devices and what is in them."""
    refresh_filenames(engine.graph)
    found = []
    for backend in devices(engine.graph):
        node = skip_implicit_filters(backend.root.child) if backend.root is not None else None
        if node is not None and node.ejected:
            node = None
        device = backend.device
        found.append(
            BlockInfo(
                device=backend.name,
                qdev=device.label if device is not None else None,
                type="unknown",
                removable=device is None or device.removable_media,
                locked=device is not None and device.medium_locked,
                inserted=device_info(node, backend=backend) if node is not None else None,
                tray_open=device.tray_open if device is not None and device.has_tray else None,
                io_status=BlockDeviceIoStatus(backend.io_status) if backend.shows_io_status else None,
            )
        )
    return found
