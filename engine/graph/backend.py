"""BlockBackend: the user's side of an edge (device, export, job I/O, one-shot command)."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from engine.graph.change import set_edge_permissions
from engine.graph.drain import Door
from engine.graph.driver import Extent, Prealloc, Status, WriteFlag
from engine.graph.permissions import Perm

if TYPE_CHECKING:
    from engine.graph.edge import Edge
    from engine.graph.node import Node

_FUA = int(WriteFlag.FUA)
_BEYOND = int(Status.EOF | Status.ZERO)


class Accounting:
    """Counters of one back end, as query-blockstats names them. Times are nanoseconds."""

    def __init__(self) -> None:
        self.rd_bytes = 0
        self.wr_bytes = 0
        self.unmap_bytes = 0
        self.rd_operations = 0
        self.wr_operations = 0
        self.flush_operations = 0
        self.unmap_operations = 0
        self.rd_total_time_ns = 0
        self.wr_total_time_ns = 0
        self.flush_total_time_ns = 0
        self.unmap_total_time_ns = 0
        self.failed_rd_operations = 0
        self.failed_wr_operations = 0
        self.failed_flush_operations = 0
        self.failed_unmap_operations = 0
        self.invalid_rd_operations = 0
        self.invalid_wr_operations = 0
        self.invalid_flush_operations = 0
        self.invalid_unmap_operations = 0
        self.last_access_ns = 0

    def failed(self, direction: str) -> None:
        name = f"failed_{direction}_operations"
        setattr(self, name, getattr(self, name) + 1)
        self.last_access_ns = time.monotonic_ns()

    def invalid(self, direction: str) -> None:
        name = f"invalid_{direction}_operations"
        setattr(self, name, getattr(self, name) + 1)


class BlockBackend:
    """A user of one node: permissions, a door that drain can close, accounting.

    kind: device, export, job or user (what the screen shows). name: device or monitor name, '' for none. Created and
    attached by the graph (``Graph.add_backend``); I/O methods run in any thread and raise OSError.
    """

    def __init__(self, kind: str, name: str, perm: Perm, shared: Perm, *, description: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.perm = perm
        self.shared = shared
        self._may_write = bool(perm & (Perm.WRITE | Perm.WRITE_UNCHANGED))
        self.root: Edge | None = None
        self.door = Door()
        self.stats = Accounting()
        self.write_cache = True
        self.model = ""
        self._description = description
        self.resized = False

    def take(self, perm: Perm, shared: Perm) -> None:
        """Change the permissions taken and shared. Control plane. Errors: GenericError, nothing changed then."""
        if self.root is not None:
            set_edge_permissions(self.root, perm, shared)
        self.perm, self.shared = perm, shared
        self._may_write = bool(perm & (Perm.WRITE | Perm.WRITE_UNCHANGED))

    # -- as a parent -----------------------------------------------------------------------------------------

    @property
    def parent_kind(self) -> str:
        return self.kind

    @property
    def parent_name(self) -> str:
        return self.name

    @property
    def stays_at_node(self) -> bool:
        return self.kind == "job"

    def describe_edge(self, edge: Edge) -> str:
        if self._description is not None:
            return self._description
        return f"block device '{self.name}'" if self.name else "an unnamed block device"

    def drained_begin(self) -> None:
        self.door.close()

    def drained_wait(self) -> None:
        self.door.wait_idle()

    def drained_end(self) -> None:
        self.door.open()

    # -- data plane ------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The node in use. Errors: OSError ENOMEDIUM when there is none."""
        root = self.root
        if root is None:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        return root.child

    @property
    def length(self) -> int:
        return self.node.length

    def _check(self, direction: str, offset: int, length: int) -> Node:
        node = self.node
        if offset < 0 or length < 0 or offset + length > node.length:
            self.stats.invalid(direction)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return node

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*; the whole range must lie inside the node."""
        started = time.monotonic_ns()
        with self.door:
            node = self._check("rd", offset, len(buffer))
            try:
                node.read(offset, buffer)
            except OSError:
                self.stats.failed("rd")
                raise
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.rd_total_time_ns += now - started
        stats.rd_operations += 1
        stats.rd_bytes += len(buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        started = time.monotonic_ns()
        with self.door:
            node = self._check("wr", offset, len(data))
            self._require_write()
            try:
                node.write(offset, data, flags if self.write_cache else flags | _FUA)
            except OSError:
                self.stats.failed("wr")
                raise
        self.account_write(len(data), started)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        started = time.monotonic_ns()
        with self.door:
            node = self._check("wr", offset, length)
            self._require_write()
            try:
                node.write_zeroes(offset, length, flags if self.write_cache else flags | _FUA)
            except OSError:
                self.stats.failed("wr")
                raise
        self.account_write(length, started)

    def discard(self, offset: int, length: int) -> None:
        started = time.monotonic_ns()
        with self.door:
            node = self._check("unmap", offset, length)
            self._require_write()
            try:
                node.discard(offset, length)
            except OSError:
                self.stats.failed("unmap")
                raise
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.unmap_total_time_ns += now - started
        stats.unmap_operations += 1
        stats.unmap_bytes += length

    def flush(self) -> None:
        started = time.monotonic_ns()
        with self.door:
            try:
                self.node.flush()
            except OSError:
                self.stats.failed("flush")
                raise
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.flush_total_time_ns += now - started
        stats.flush_operations += 1

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        with self.door:
            node = self.node
            if offset >= node.length:
                return Extent(length, _BEYOND)
            return node.block_status(offset, length, want_zero)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        with self.door:
            self.node.truncate(length, exact=exact, prealloc=prealloc)

    def account_write(self, size: int, started: int) -> None:
        """Count a write of *size* bytes that began at *started* (nanoseconds, monotonic), however it was done."""
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.wr_total_time_ns += now - started
        stats.wr_operations += 1
        stats.wr_bytes += size

    def _require_write(self) -> None:
        # A user without the permission must not get through: the permission system promised the others as much.
        if not self._may_write:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
