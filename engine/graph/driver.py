"""The interface every block driver implements. The values that cross it are in ``engine.graph.values``.

A driver knows its own options and its children (edges), and nothing of QMP, jobs or devices. Data-plane methods
are plain blocking calls, may run in any thread and several at a time, and raise ``OSError`` with an errno.
Control-plane methods (open, close, reopen, permissions) run on the control plane only and raise
``engine.errors.GenericError`` with the text a user reads. All offsets and lengths are bytes.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import GenericError
from engine.graph.permissions import Perm, Role, default_child_permissions
from engine.graph.registry import drivers, register
from engine.graph.values import (
    Buffer,
    CreateContext,
    DriverInfo,
    Extent,
    Limits,
    Opening,
    Prealloc,
    ReopenState,
    Status,
    WriteFlag,
    WritePlan,
)

if TYPE_CHECKING:
    from engine.graph.change import Transaction
    from engine.graph.edge import Edge
    from engine.graph.info import SnapshotInfo
    from engine.graph.node import Node
    from engine.qapi import Struct

__all__ = [
    "Buffer",
    "CreateContext",
    "Driver",
    "DriverInfo",
    "Extent",
    "FilterDriver",
    "Limits",
    "Opening",
    "Prealloc",
    "ReopenState",
    "Status",
    "WriteFlag",
    "WritePlan",
    "drivers",
    "register",
]

# Plain ints: operators of IntFlag cost more than the rest of a request.
_PASS_ON = int(Status.RAW | Status.OFFSET_VALID)
_PLAIN_DATA = int(Status.DATA | Status.ALLOCATED)


class Driver(abc.ABC):
    """Base of all drivers; one instance serves one node."""

    name: ClassVar[str]
    """Name on the wire: the BlockdevDriver value."""
    Options: ClassVar[type[Struct]]
    """The branch of BlockdevOptions: options of this driver alone (children included)."""
    OpenOptions: ClassVar[type[Struct] | None] = None
    """What open() gets, for drivers that take more from file names and drives than blockdev-add can say."""
    CreateOptions: ClassVar[type[Struct] | None] = None
    """The branch of BlockdevCreateOptions, for drivers that can create images."""
    AmendOptions: ClassVar[type[Struct] | None] = None
    """The branch of BlockdevAmendOptions, for drivers that can amend images."""
    SpecificInfo: ClassVar[type[Struct] | None] = None
    """The branch of ImageInfoSpecific: what format_specific() gives, for formats that have it."""
    SpecificStats: ClassVar[type[Struct] | None] = None
    """The branch of BlockStatsSpecific: what specific_stats() gives, for drivers that have it."""
    is_filter: ClassVar[bool] = False
    is_protocol: ClassVar[bool] = False
    shows_plain_name: ClassVar[bool] = True
    """Whether the node may show its primary child's plain file name (filters other than raw may not)."""
    supports_backing: ClassVar[bool] = False
    supports_fua: ClassVar[bool] = False
    supports_compressed_writes: ClassVar[bool] = False
    supports_snapshots: ClassVar[bool] = False
    """Whether the image can hold internal snapshots; ask engine.graph.internal_snapshots, which knows of filters."""
    protocol_prefixes: ClassVar[tuple[str, ...]] = ()
    """``nbd`` for file names that begin ``nbd:``."""
    strong_options: ClassVar[tuple[str, ...]] = ()
    """Options that change the data seen, hence appear in a generated file name. Ending in '.' means a prefix."""
    child_options: ClassVar[frozenset[str]] = frozenset({"file", "backing"})
    """Options (wire names) that are children: opened by open_child(), not passed on as values."""
    changes_children: ClassVar[bool] = False
    """Whether children may come and go at run time: add_child() and remove_child() work."""
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    """Options (wire names) that reopen may change or reset."""
    mutable_when_given: ClassVar[frozenset[str]] = frozenset()
    """Options that reopen may change but not reset: left out once they were given, they are an error."""

    node: Node
    length: int
    """Virtual length in bytes. Set by open() and truncate()."""
    limits: Limits

    def __init__(self, node: Node) -> None:
        self.node = node
        self.length = 0
        self.limits = Limits()

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """Score 0..100 of how surely the first bytes of an image are of this format."""
        return 0

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """Options that a protocol file name stands for. Errors: GenericError."""
        return {"filename": filename}

    @abc.abstractmethod
    def open(self, opening: Opening) -> None:
        """Open the node: check options, open children, read metadata.

        On failure let go of own resources (close() is not called then); children are detached by the graph. Errors:
        GenericError, OSError.
        """

    def close(self) -> None:
        """Write back what is cached and let go of resources; children are detached by the graph afterwards.

        Never raises; called on the control plane with no request in flight.
        """

    def drained_begin(self) -> None:
        """The node is drained: what waits inside the driver has to come to its end. Pairs with drained_end()."""

    def drained_end(self) -> None:
        """The node is not drained any more."""

    def drained_wait(self) -> None:
        """Block until requests that the driver goes on with by itself, after their callers were answered, have ended.

        No new request comes meanwhile.
        """

    def refresh_limits(self) -> None:
        """Recompute ``limits`` after the children's changed."""

    @property
    def own_alignment(self) -> int:
        """What the driver itself needs requests aligned to, in bytes. What a child needs, the child's node sees to."""
        return self.limits.request_alignment

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        """(taken, shared) on *edge* when the node's own parents together take *perm* and share *shared*.

        *writable*: whether the node is, or will be after a pending reopen, writable.
        """
        return default_child_permissions(edge.role, perm, shared, writable=writable)

    def check_permissions(self, perm: Perm, shared: Perm, *, writable: bool) -> None:
        """Prepare for new cumulative permissions (take locks, open another fd). Errors: GenericError."""

    def set_permissions(self, perm: Perm, shared: Perm) -> None:
        """Make what check_permissions prepared final. Never raises."""

    def abort_permissions(self) -> None:
        """Undo what check_permissions prepared. Never raises."""

    def reopen_prepare(self, state: ReopenState) -> None:
        """Check that the node can take the new options and flags; nothing visible changes. Errors: GenericError.

        Drivers that can be reopened override this; ``mutable_options`` says which of their options may change.
        """

    def check_reopen(self, state: ReopenState) -> None:
        """Refuse to reopen nodes of drivers that can't be. Errors: GenericError."""
        if type(self).reopen_prepare is Driver.reopen_prepare:
            raise GenericError(
                f"Block format '{self.name}' used by node '{self.node.name}' does not support reopening files"
            )

    def reopen_commit(self, state: ReopenState) -> None:
        """Take the prepared state over. Never raises. ``node.read_only`` has the new value after this call."""

    def reopen_commit_post(self, state: ReopenState) -> None:
        """Work that needs the new permissions in force (marking metadata in use). Never raises."""

    def reopen_abort(self, state: ReopenState) -> None:
        """Drop the prepared state. Never raises."""

    def add_child(self, txn: Transaction, child: Node) -> Edge:
        """Attach one more child; both nodes are drained, permissions are refreshed afterwards. Errors: GenericError."""
        raise GenericError(f"The node {self.node.device_or_node_name} does not support adding a child")

    def remove_child(self, txn: Transaction, edge: Edge) -> None:
        """Detach the child of *edge*; both nodes are drained. Errors: GenericError."""
        raise GenericError(f"The node {self.node.device_or_node_name} does not support removing a child")

    def children_options(self) -> dict[str, Any] | None:
        """The children's options as a ``json:`` file name has them; None: each by the name of its edge."""
        return None

    def change_backing_string(self, filename: str | None, fmt: str | None) -> None:
        """Write the backing file name and format into the image header. Errors: OSError."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def check_bitmap_storable(self, name: str, granularity: int) -> None:
        """Whether a new dirty bitmap could be stored in the image. Errors: GenericError."""
        where = self.node.device_or_node_name
        raise GenericError(f"Can't store persistent bitmaps to {where}: {os.strerror(errno.ENOTSUP)}")

    def remove_stored_bitmap(self, name: str) -> None:
        """Remove a dirty bitmap from the image; none of that name is fine. Errors: GenericError."""

    def info(self) -> DriverInfo | None:
        """Cluster size and the like; None where the driver has no such notion."""
        return None

    def format_specific(self) -> tuple[str, Struct] | None:
        """(type, data) of ImageInfoSpecific, where the format has one."""
        return None

    def snapshot_list(self) -> list[SnapshotInfo]:
        """The internal snapshots of the image, in the order of its table."""
        return []

    def holds_snapshots(self) -> bool:
        """Whether this image, too, can hold internal snapshots, as its format can."""
        return self.supports_snapshots

    def snapshot_size(self, id_or_name: str) -> int | None:
        """Length of the disk, in bytes, that a snapshot was taken of; None if there is no such snapshot."""
        return None

    def snapshot_create(self, info: SnapshotInfo) -> SnapshotInfo:
        """Take an internal snapshot called ``info.name``, with its times; returns what was stored, with its new id.

        The node is drained, and stays so. The same holds for the next two. Errors: OSError.
        """
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def snapshot_delete(self, snapshot_id: str | None, name: str | None) -> None:
        """Delete the internal snapshot that has this id and this name (None: any). Errors: GenericError, OSError."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def snapshot_goto(self, id_or_name: str) -> None:
        """Make the disk what it was when a snapshot was taken, ``length`` included. Errors: GenericError, OSError."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def is_encrypted(self) -> bool:
        """Whether the data lie encrypted on the host."""
        return False

    def specific_stats(self) -> Struct | None:
        """Driver's own part of query-blockstats."""
        return None

    def dirname(self) -> str | None:
        """Directory that relative names in the image are relative to; None: the primary child's."""
        return None

    def exact_filename(self) -> str | None:
        """The plain name that would open this node again, for drivers that make it up themselves."""
        return None

    @classmethod
    def creatable_size(cls, size: int) -> int:
        """Virtual size, in bytes, that an image made by file name for *size* bytes gets: the next that there can be.

        blockdev-create doesn't round. Errors: GenericError.
        """
        return -(-size // 512) * 512

    @classmethod
    def create(cls, options: Any, context: CreateContext) -> None:
        """Make an image. Runs in a job's thread. Errors: GenericError, OSError."""
        raise GenericError("Driver does not support blockdev-create")

    def amend(self, options: Any, force: bool) -> None:
        """Change the image as *options* (an instance of AmendOptions) say; *force*: even if data may become
        unreadable by that. Runs in a job's thread. Errors: GenericError, OSError.
        """
        raise GenericError("Driver does not support x-blockdev-amend")

    def cancel_in_flight(self) -> None:
        """Let requests that wait for something outside (a lost server) fail now: whoever sent them gives up."""
        for edge in self.flushed_children():
            edge.child.driver.cancel_in_flight()

    # -- data plane ------------------------------------------------------------------------------------------

    def debug_event(self, event: str) -> None:
        """A request of the parent has got to the place called *event* (a BlkdebugEvent). For blkdebug alone."""

    def announce_flush(self) -> None:
        """Tell the primary child that this node is about to have its children flushed."""
        primary = self.node.primary
        if primary is not None and not self.node.cache_no_flush:
            primary.child.driver.debug_event("flush_to_disk")

    @abc.abstractmethod
    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*. The range lies within the length. Errors: OSError."""

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        """Write all of *data*; flags of WriteFlag. Beyond the end only for protocols, which then grow."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        """Make the range read as zeros, efficiently; ENOTSUP when that can't be (the node then writes zeros)."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def discard(self, offset: int, length: int) -> None:
        """Give the space back. Advisory; ENOTSUP counts as success one level up."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def flush(self) -> None:
        """Bring all data and metadata to stable storage: write caches, then flush the children written to."""
        self.announce_flush()
        for edge in self.flushed_children():
            edge.flush()

    def flushed_children(self) -> list[Edge]:
        """The children that a flush of the node has to reach: those written to."""
        written = Perm.WRITE | Perm.WRITE_UNCHANGED
        return [edge for edge in list(self.node.children.values()) if edge.perm & written]

    def start_writeback(self) -> None:
        """Have the host begin to write what it holds in its cache; a hint, which orders and promises nothing."""
        for edge in self.flushed_children():
            edge.child.driver.start_writeback()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        """What is at *offset*: one run of at most *length* bytes, as long as it is cheap to tell.

        Formats answer for their own layer only (no ALLOCATED/DATA/ZERO means: look at the backing node).
        """
        return Extent(length, _PLAIN_DATA)

    def block_map(self, offset: int, length: int) -> list[tuple[int, int, Node | None, int]]:
        """All of the range, within the node, by block_status: (length, flags, node, offset) of every run in order."""
        found: list[tuple[int, int, Node | None, int]] = []
        end = offset + length
        while offset < end:
            run, flags, node, host = self.block_status(offset, end - offset)
            found.append((run, flags, node, host))
            offset += run
        return found

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        """Change the virtual length; new bytes read as zeros. Errors: GenericError, OSError."""
        raise GenericError("Image format driver does not support resize")

    def begin_write(self, offset: int, length: int) -> WritePlan | None:
        """Reserve host space for the range so that a caller may place the data; None: use write()."""
        return None

    def begin_writes(self, offset: int, runs: Sequence[tuple[int, int]], settle: bool) -> WritePlan | None:
        """As begin_write(), for data and zeros that take turns from *offset* on: (bytes, HOLE, ZERO or DATA).

        The kinds are those of graph.runs. The plan's extents are those of the data; the zeros are there with commit;
        what is a HOLE stays as it is. settle: the zeros must not depend on what lies below the node, now or later.
        None: each has to be written by itself.
        """
        return None

    def allocated_size(self) -> int | None:
        """Bytes taken on the host; default: the sum over storage children."""
        total: int | None = None
        for edge in self.node.children.values():
            if edge.role & (Role.DATA | Role.METADATA | Role.FILTERED):
                size = edge.child.driver.allocated_size()
                if size is not None:
                    total = (total or 0) + size
        return total

    def host_fd(self) -> int | None:
        """File descriptor for in-kernel copies; only for nodes whose bytes are a host file's bytes."""
        return None

    def has_zero_init(self) -> bool:
        """Whether a freshly created image of this node reads as zeros."""
        return False

    def unmaps_zeroes(self) -> bool:
        """Whether write_zeroes with MAY_UNMAP gives space back (QEMU's supported_zero_flags)."""
        return False

    def can_replace(self, node: Node) -> bool:
        """Whether *node*, below this one, may be replaced by a copy of this node and no user would see a change."""
        return False


class FilterDriver(Driver):
    """Base of filters: everything passes to the one filtered child unless overridden."""

    is_filter = True
    shows_plain_name = False

    @property
    def filtered(self) -> Edge:
        for edge in self.node.children.values():
            if edge.role & Role.FILTERED:
                return edge
        raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))

    @property
    def length(self) -> int:
        return self.filtered.child.length

    @length.setter
    def length(self, value: int) -> None:
        """The length is the child's; setting it has no meaning for a filter."""

    def refresh_limits(self) -> None:
        # A filter that has lost its child (a job's, say) has no limits to take over.
        for edge in self.node.children.values():
            if edge.role & Role.FILTERED:
                self.limits = edge.child.driver.limits

    @property
    def own_alignment(self) -> int:
        return 1

    def read(self, offset: int, buffer: memoryview) -> None:
        self.filtered.read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.filtered.write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.filtered.write_zeroes(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        self.filtered.discard(offset, length)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return Extent(length, _PASS_ON, self.filtered.child, offset)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        self.filtered.truncate(length, exact=exact, prealloc=prealloc)

    def info(self) -> DriverInfo | None:
        return self.filtered.child.driver.info()

    def has_zero_init(self) -> bool:
        return self.filtered.child.driver.has_zero_init()

    def unmaps_zeroes(self) -> bool:
        return self.filtered.child.driver.unmaps_zeroes()

    def can_replace(self, node: Node) -> bool:
        child = self.filtered.child
        return child is node or child.driver.can_replace(node)
