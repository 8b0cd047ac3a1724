"""query-blockstats: what went through devices and nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.commands.query import devices, visible_nodes
from engine.errors import GenericError
from engine.graph.accounting import Accounting, Interval, Kind
from engine.graph.info import BlockStatsSpecific
from engine.graph.node import Node
from engine.graph.permissions import Role
from engine.graph.status import skip_implicit_filters
from engine.qapi import Int, Number, Struct, UInt64, command

if TYPE_CHECKING:
    from engine.engine import Engine


class BlockDeviceTimedStats(Struct, underscores=True):
    """Latencies and queue depths over one interval. interval_length: seconds."""

    interval_length: Int
    min_rd_latency_ns: Int
    max_rd_latency_ns: Int
    avg_rd_latency_ns: Int
    min_wr_latency_ns: Int
    max_wr_latency_ns: Int
    avg_wr_latency_ns: Int
    min_flush_latency_ns: Int
    max_flush_latency_ns: Int
    avg_flush_latency_ns: Int
    avg_rd_queue_depth: Number
    avg_wr_queue_depth: Number


class BlockLatencyHistogramInfo(Struct):
    """boundaries: latencies in nanoseconds that part the bins. bins: how many requests fell into each."""

    boundaries: list[UInt64]
    bins: list[UInt64]


class BlockDeviceStats(Struct, underscores=True):
    """Counters. Bytes, operations finished, failed and refused as invalid, and total times in nanoseconds."""

    rd_bytes: Int
    wr_bytes: Int
    unmap_bytes: Int
    rd_operations: Int
    wr_operations: Int
    flush_operations: Int
    unmap_operations: Int
    rd_total_time_ns: Int
    wr_total_time_ns: Int
    flush_total_time_ns: Int
    unmap_total_time_ns: Int
    wr_highest_offset: Int
    rd_merged: Int
    wr_merged: Int
    unmap_merged: Int
    idle_time_ns: Int | None = None
    failed_rd_operations: Int
    failed_wr_operations: Int
    failed_flush_operations: Int
    failed_unmap_operations: Int
    invalid_rd_operations: Int
    invalid_wr_operations: Int
    invalid_flush_operations: Int
    invalid_unmap_operations: Int
    account_invalid: bool
    account_failed: bool
    timed_stats: list[BlockDeviceTimedStats]
    rd_latency_histogram: BlockLatencyHistogramInfo | None = None
    wr_latency_histogram: BlockLatencyHistogramInfo | None = None
    flush_latency_histogram: BlockLatencyHistogramInfo | None = None


class BlockStats(Struct):
    """Counters of a device or node. parent: those of the node that stores its data. backing: of what lies below."""

    device: str | None = None
    qdev: str | None = None
    node_name: str | None = None
    stats: BlockDeviceStats
    driver_specific: BlockStatsSpecific | None = None
    parent: BlockStats | None = None
    backing: BlockStats | None = None


_KINDS: tuple[Kind, ...] = ("rd", "wr", "flush", "unmap")
_COUNTED = (
    *(f"{kind}_operations" for kind in _KINDS),
    *(f"{kind}_total_time_ns" for kind in _KINDS),
    *(f"{what}_{kind}_operations" for what in ("failed", "invalid") for kind in _KINDS),
    *(f"{kind}_{what}" for kind in ("rd", "wr", "unmap") for what in ("bytes", "merged")),
)


def _timed(interval: Interval) -> BlockDeviceTimedStats:
    reads, writes, flushes = (interval.latency[kind] for kind in ("rd", "wr", "flush"))
    return BlockDeviceTimedStats(
        interval_length=interval.seconds,
        min_rd_latency_ns=reads.least,
        max_rd_latency_ns=reads.greatest,
        avg_rd_latency_ns=reads.average,
        min_wr_latency_ns=writes.least,
        max_wr_latency_ns=writes.greatest,
        avg_wr_latency_ns=writes.average,
        min_flush_latency_ns=flushes.least,
        max_flush_latency_ns=flushes.greatest,
        avg_flush_latency_ns=flushes.average,
        avg_rd_queue_depth=reads.load,
        avg_wr_queue_depth=writes.load,
    )


def _histogram(accounting: Accounting, kind: Kind) -> BlockLatencyHistogramInfo | None:
    found = accounting.histograms.get(kind)
    return None if found is None else BlockLatencyHistogramInfo(boundaries=found.boundaries, bins=list(found.bins))


def _counters(highest: int, accounting: Accounting | None) -> BlockDeviceStats:
    """Counters in wire form. A node alone has none but the highest offset: QMP counts at the devices."""
    counted = accounting or Accounting()
    last = counted.last_access_ns
    return BlockDeviceStats(
        **{name: getattr(counted, name) for name in _COUNTED},
        wr_highest_offset=highest,
        idle_time_ns=max(time.monotonic_ns() - last, 0) if last else None,
        account_invalid=accounting is not None and accounting.account_invalid,
        account_failed=accounting is not None and accounting.account_failed,
        timed_stats=[_timed(interval) for interval in counted.intervals],
        rd_latency_histogram=_histogram(counted, "rd"),
        wr_latency_histogram=_histogram(counted, "wr"),
        flush_latency_histogram=_histogram(counted, "flush"),
    )


def _storage(node: Node) -> Node | None:
    """The child that stores the data: the primary one, or the only one that stores any."""
    primary = node.primary
    if primary is not None and primary.role & (Role.DATA | Role.FILTERED):
        return primary.child
    storing = [edge.child for edge in node.children.values() if edge.role & Role.DATA]
    return storing[0] if len(storing) == 1 else None


def _stats(node: Node, *, of_device: bool, accounting: Accounting | None = None) -> BlockStats:
    if of_device:
        node = skip_implicit_filters(node)
    specific = node.driver.specific_stats()
    storage = _storage(node)
    below = node.filter_or_cow
    return BlockStats(
        node_name=node.name,
        stats=_counters(node.wr_highest_offset, accounting),
        driver_specific=None if specific is None else BlockStatsSpecific(driver=node.driver.name, branch=specific),
        parent=_stats(storage, of_device=of_device) if storage is not None else None,
        backing=_stats(below.child, of_device=True) if of_device and below is not None else None,
    )


@command(since="0.14", allow_preconfig=True)
def query_blockstats(engine: Engine, *, query_nodes: bool | None = None) -> list[BlockStats]:
    """Tell the counters of all devices, or of all nodes.

    query_nodes: list nodes, oldest first, instead of devices
    """
    if query_nodes:
        return [_stats(node, of_device=False) for node in visible_nodes(engine.graph)]
    found = []
    for backend in devices(engine.graph):
        if backend.root is not None:
            stats = _stats(backend.root.child, of_device=True, accounting=backend.stats)
        else:
            stats = BlockStats(stats=_counters(0, backend.stats))
        stats.device = backend.name
        stats.qdev = backend.device.label if backend.device is not None else None
        found.append(stats)
    return found


@command(since="4.0", allow_preconfig=True)
def block_latency_histogram_set(
    engine: Engine,
    *,
    id: str,
    boundaries: list[UInt64] | None = None,
    boundaries_read: list[UInt64] | None = None,
    boundaries_write: list[UInt64] | None = None,
    boundaries_flush: list[UInt64] | None = None,
) -> None:
    """Start counting the latencies of a device's requests in bins; without boundaries, stop and forget them.

    id: id or path of the device
    boundaries: nanoseconds, rising, that part the bins, for every kind of request
    boundaries_read: the same for reads, instead
    boundaries_write: the same for writes, instead
    boundaries_flush: the same for flushes, instead
    """
    stats = engine.machine.backend_of(id).stats
    own: tuple[tuple[Kind, str, list[int] | None], ...] = (
        ("rd", "read", boundaries_read),
        ("wr", "write", boundaries_write),
        ("flush", "flush", boundaries_flush),
    )
    if boundaries is None and all(chosen is None for _, _, chosen in own):
        stats.clear_histograms()
        return
    for kind, word, chosen in own:
        limits = chosen if chosen is not None else boundaries
        if limits is None:
            continue
        try:
            stats.set_histogram(kind, limits)
        except ValueError:
            raise GenericError(f"Device '{id}' set {word} boundaries fail") from None
