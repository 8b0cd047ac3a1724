"""Where a Copier puts what it copies."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from engine.graph.backend import BlockBackend
from engine.graph.driver import Extent, Status, WriteFlag, WritePlan
from engine.graph.node import Node

_ZERO, _ALLOCATED = int(Status.ZERO), int(Status.ALLOCATED)
_UNCHANGED, _MAY_UNMAP = int(WriteFlag.UNCHANGED), int(WriteFlag.MAY_UNMAP)
_NO_FALLBACK = int(WriteFlag.NO_FALLBACK)


class Target(Protocol):
    """Where a Copier puts what it copies. Every method may run in any thread and raises OSError."""

    @property
    def node(self) -> Node:
        """The node written to."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def write_zeroes(self, offset: int, length: int) -> None: ...

    def plan(self, offset: int, length: int) -> WritePlan | None:
        """Host space for data that is copied from a host file; None when it has to go through write()."""

    def plan_runs(self, offset: int, runs: Sequence[tuple[int, int]]) -> WritePlan | None:
        """The same for data and zeros that take turns from *offset* on, see Driver.begin_writes."""

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Keeps overlapping writes out while the host's files are copied."""

    def placed(self, offset: int, length: int) -> None:
        """The data has been placed and the plan is committed: bookkeeping, as if write() had been called."""


class BackendTarget:
    """Writes through a BlockBackend.

    unmap: zeros may stay, or become, holes; else space is taken for them. covering: the target may get a backing image
    that it hasn't now, so what reads as zeros for want of one is written. ahead: it will be written as a whole, by this
    alone, so what reads as zeros for want of a backing image may be zeroed before its turn, that many bytes at once.
    """

    def __init__(self, backend: BlockBackend, *, unmap: bool = True, covering: bool = False, ahead: int = 0) -> None:
        self._backend = backend
        self._unmap = unmap
        self._settled = _ZERO | _ALLOCATED if covering else _ZERO
        self._ahead = ahead if covering else 0

    @property
    def node(self) -> Node:
        return self._backend.node

    def write(self, offset: int, data: memoryview) -> None:
        self._backend.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        if not self._unmap:
            self._backend.write_zeroes(offset, length)
            return
        end = offset + length
        while offset < end:
            # What reads as zeros already stays the hole it may be.
            extent = self._backend.block_status(offset, end - offset)
            if extent.flags & self._settled != self._settled and not self._zero_ahead(offset, extent):
                self._backend.write_zeroes(offset, extent.length, _MAY_UNMAP)
            offset += extent.length

    def _zero_ahead(self, offset: int, extent: Extent) -> bool:
        """Zero an unallocated run beyond *extent*, if it is longer and that can be done without writing zeros."""
        if not self._ahead or extent.flags & (_ZERO | _ALLOCATED) != _ZERO:
            return False
        run = self._backend.block_status(offset, self._ahead)
        if run.length <= extent.length:
            return False
        try:
            self._backend.write_zeroes(offset, run.length, _MAY_UNMAP | _NO_FALLBACK)
        except OSError as exc:
            if exc.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            return False
        return True

    def plan(self, offset: int, length: int) -> WritePlan | None:
        node = self._backend.node
        if node.read_only or node.detect_zeroes != "off" or not self._backend.write_cache:
            return None
        if (offset | length) & (node.limits.request_alignment - 1) or offset + length > node.length:
            return None
        return node.driver.begin_write(offset, length)

    def plan_runs(self, offset: int, runs: Sequence[tuple[int, int]]) -> WritePlan | None:
        node = self._backend.node
        if not self._unmap or not _plannable(node) or not self._backend.write_cache:
            return None
        return node.driver.begin_writes(offset, runs, bool(self._settled & _ALLOCATED))

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        return self._backend.node.ranges.hold(offset, length)

    def placed(self, offset: int, length: int) -> None:
        self._backend.node.after_host_write(offset, length)
        self._backend.account_write(length, time.monotonic_ns())


class PopulateTarget:
    """Brings into a layer what its backing chain shows there already. The caller holds the range in ``node.ranges``.

    As nothing changes for a reader, write trackers of the node (dirty bitmaps) hear nothing of it, as in QEMU.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def node(self) -> Node:
        return self._node

    def write(self, offset: int, data: memoryview) -> None:
        self._node.write_unserialised(offset, data, _UNCHANGED)

    def write_zeroes(self, offset: int, length: int) -> None:
        if self._node.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._node.write_zeroes_unserialised(offset, length, _UNCHANGED)

    def plan(self, offset: int, length: int) -> WritePlan | None:
        node = self._node
        if node.read_only or (offset | length) & (node.limits.request_alignment - 1):
            return None
        return node.driver.begin_write(offset, length)

    def plan_runs(self, offset: int, runs: Sequence[tuple[int, int]]) -> WritePlan | None:
        node = self._node
        return node.driver.begin_writes(offset, runs, True) if _plannable(node) else None

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        return nullcontext()

    def placed(self, offset: int, length: int) -> None:
        self._node.wr_operations += 1
        self._node.wr_bytes += length
        self._node.mark_unflushed()


def _plannable(node: Node) -> bool:
    """Whether data may be placed in the host file below *node* without a write that it sees."""
    return not node.read_only and node.detect_zeroes == "off" and node.limits.request_alignment <= 1
