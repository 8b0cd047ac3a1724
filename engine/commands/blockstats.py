"""query-blockstats: what went through devices and nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.commands.query import devices, visible_nodes
from engine.graph.backend import Accounting
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


def _counters(highest: int, accounting: Accounting | None) -> BlockDeviceStats:
    """Counters in wire form. A node alone has none but the highest offset: QMP counts at the devices."""
    counted = dict(vars(accounting or Accounting()))
    last = counted.pop("last_access_ns")
    return BlockDeviceStats(
        **counted,
        wr_highest_offset=highest,
        rd_merged=0,
        wr_merged=0,
        unmap_merged=0,
        idle_time_ns=max(time.monotonic_ns() - last, 0) if last else None,
        account_invalid=accounting is not None,
        account_failed=accounting is not None,
        timed_stats=[],
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
        found.append(stats)
    return found
