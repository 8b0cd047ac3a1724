"""Copying what a layer reads from its backing chain into the layer, for the next read to find."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from engine.graph.drain import drained
from engine.graph.driver import WriteFlag
from engine.graph.requests import is_zero
from engine.graph.status import is_allocated

if TYPE_CHECKING:
    from engine.graph.node import Node

_UNCHANGED = int(WriteFlag.UNCHANGED)
_BOUNCE = 1 << 20


def copy_on_read(layer: Node) -> None:
    """Have all that is read from *layer* from now on copied into it, without a filter (``-drive copy-on-read=on``).

    Control plane.
    """
    with drained([layer]):
        layer.start_serialising()
        layer.before_read = lambda offset, length: _copy_missing(layer, offset, length)


def _copy_missing(layer: Node, offset: int, length: int) -> None:
    at, end = offset, min(offset + length, layer.length)
    while at < end and layer.backing is not None:
        here, run = is_allocated(layer, at, end - at)
        if not here:
            populate(layer, at, run, seen_by=layer)
        at += run


def populate(layer: Node, offset: int, length: int, *, seen_by: Node) -> None:
    """Copy the clusters of a range into *layer*; a failed write leaves them where they are, which harms nobody.

    seen_by: the node whose driver is told of the write (blkdebug).
    """
    info = layer.driver.info()
    cluster = info.cluster_size if info is not None and info.cluster_size else 1
    start = offset - offset % cluster
    end = min(-(-(offset + length) // cluster) * cluster, layer.length)
    while start < end:
        size = min(end - start, max(_BOUNCE, cluster))
        with layer.ranges.hold(start, size):
            try:
                _populate_held(layer, start, size, seen_by)
            except OSError:
                return
        start += size


def _populate_held(layer: Node, offset: int, length: int, seen_by: Node) -> None:
    if layer.read_only:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    end = offset + length
    while offset < end:
        # Somebody may have written, or another reader copied, since we last looked.
        here, run = is_allocated(layer, offset, end - offset)
        if not here:
            data = memoryview(bytearray(run))
            layer.read_as_it_is(offset, data)
            seen_by.driver.debug_event("cor_write")
            if is_zero(data):
                layer.write_zeroes_unserialised(offset, run, _UNCHANGED)
            else:
                layer.write_unserialised(offset, data, _UNCHANGED)
        offset += run
