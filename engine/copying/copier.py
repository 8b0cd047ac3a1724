"""The copy path: guest-visible bytes of one node into another.

Every job moves its data through a Copier. It asks block_status for runs as long as it can get, joins neighbours, has
the kernel copy (copy_file_range) where both ends are bytes of host files and nothing that sees or changes requests lies
between, moves the rest through one large buffer, and makes zeros by write_zeroes: holes are neither read nor written.

    source  a node; what a read of it would return is copied, whatever layer it comes from
    target  a Target: BackendTarget writes as any user does; PopulateTarget fills what a read returns already (stream)
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from engine.copying.writeback import Writeback
from engine.graph.backend import BlockBackend
from engine.graph.driver import Extent, FilterDriver, Status, WriteFlag, WritePlan
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.graph.requests import is_zero
from engine.graph.status import resolve_host, status_above

BUFFER_SIZE = 2 << 20
ZERO_SPAN = 512 << 10
"""Data is looked at for zeros in pieces of this many bytes, as QEMU's stream does."""
SMALLEST_KERNEL_COPY = 64 << 10
"""Below this many bytes a copy through the buffer is as fast."""
_PEEK = 64

_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)
_COMPRESSED, _ALLOCATED = int(Status.COMPRESSED), int(Status.ALLOCATED)
_UNCHANGED, _MAY_UNMAP = int(WriteFlag.UNCHANGED), int(WriteFlag.MAY_UNMAP)
_NO_FALLBACK = int(WriteFlag.NO_FALLBACK)
_WRITES = int(Perm.WRITE | Perm.WRITE_UNCHANGED)
_NOT_IN_KERNEL = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM}
)


class CopyError(Exception):
    """A copy failed: *error* is what the system said, *reading* which side said it."""

    def __init__(self, error: OSError, reading: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.reading = reading


class Target(Protocol):
    """Where a Copier puts what it copies. Every method may run in any thread and raises OSError."""

    @property
    def node(self) -> Node:
        """The node written to."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def write_zeroes(self, offset: int, length: int) -> None: ...

    def plan(self, offset: int, length: int) -> WritePlan | None:
        """Host space for data that the kernel copies; None when it has to go through write()."""

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Keeps overlapping writes out while the kernel copies."""

    def placed(self, offset: int, length: int) -> None:
        """The kernel has copied and the plan is committed: bookkeeping, as if write() had been called."""


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

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        return nullcontext()

    def placed(self, offset: int, length: int) -> None:
        self._node.wr_operations += 1
        self._node.wr_bytes += length
        self._node.mark_unflushed()


@dataclass(slots=True)
class Piece:
    """*length* guest bytes at *offset*, found at *host_offset* of *host*; host None: to be read from the source."""

    offset: int
    length: int
    host: Node | None
    host_offset: int


class Copier:
    """Copies ranges from *source* to *target*; any thread, one range at a time.

    look_for_zeros: whether data that is all zero becomes a zero write (stream), in pieces of ZERO_SPAN. flushed_after:
    whether a flush of the target comes behind the last copy, so that it pays to have the disk begin before.
    """

    def __init__(
        self, source: Node, target: Target, *, look_for_zeros: bool = False, flushed_after: bool = True
    ) -> None:
        self._source = source
        self._target = target
        self._look_for_zeros = look_for_zeros
        self._buffer: memoryview | None = None
        self._refused: set[tuple[int, int]] = set()
        self._through = False, False
        """Whether the kernel may bypass what lies above source and target, while copy() runs."""
        self.kernel_bytes = 0
        """Bytes copied by the kernel."""
        self._writeback = Writeback(target.node) if flushed_after else None

    def copy(self, offset: int, length: int) -> int:
        """Make [offset, offset + length) of the target read as the source does; returns how many bytes were no zeros.

        Nothing may drain the two meanwhile. Others may write to the source: what is copied then is a mixture, even of
        other ranges where a host cluster is used anew, so the caller has to notice and copy again (mirror), or to keep
        them out.
        """
        data = 0
        self._through = transparent(self._source), transparent(self._target.node)
        waiting: list[Piece] = []
        for piece, zero in self._pieces(offset, length):
            if zero:
                self._flush_pieces(waiting)
                try:
                    self._target.write_zeroes(piece.offset, piece.length)
                except OSError as exc:
                    raise CopyError(exc, False) from exc
            else:
                data += piece.length
                waiting.append(piece)
        self._flush_pieces(waiting)
        return data

    # -- what is there? --------------------------------------------------------------------------------------

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Piece, bool]]:
        """(piece, whether it is zero) in order; neighbouring zeros come as one."""
        zero_start, end = offset, offset + length
        at = offset
        zeros = False
        for piece, zero in self._split(offset, length):
            if zero:
                if not zeros:
                    zeros, zero_start = True, piece.offset
            else:
                if zeros:
                    yield Piece(zero_start, piece.offset - zero_start, None, 0), True
                    zeros = False
                yield piece, False
            at = piece.offset + piece.length
        if zeros:
            yield Piece(zero_start, at - zero_start, None, 0), True
        assert at == end

    def _split(self, offset: int, length: int) -> Iterator[tuple[Piece, bool]]:
        source = self._source
        direct = self._through[0]
        end = offset + length
        while offset < end:
            try:
                extent, _ = status_above(source, None, offset, end - offset)
            except OSError as exc:
                raise CopyError(exc, True) from exc
            if extent.flags & _ZERO:
                yield Piece(offset, extent.length, None, 0), True
                offset += extent.length
                continue
            host: Node | None = None
            host_offset, run = 0, extent.length
            if direct and extent.flags & _VALID and not extent.flags & _COMPRESSED:
                found = resolve_host(extent)
                run = found.length
                if found.flags & _VALID and found.node is not None and found.node.driver.host_fd() is not None:
                    host, host_offset = found.node, found.offset
            yield from self._data(Piece(offset, run, host, host_offset))
            offset += run

    def _data(self, piece: Piece) -> Iterator[tuple[Piece, bool]]:
        if not self._look_for_zeros or piece.host is None:
            yield piece, False
            return
        at, end = piece.offset, piece.offset + piece.length
        start = at
        while at < end:
            step = min(ZERO_SPAN - at % ZERO_SPAN, end - at)
            if self._reads_zero(piece.host, piece.host_offset + at - piece.offset, step):
                if start < at:
                    yield Piece(start, at - start, piece.host, piece.host_offset + start - piece.offset), False
                yield Piece(at, step, None, 0), True
                start = at + step
            at += step
        if start < end:
            yield Piece(start, end - start, piece.host, piece.host_offset + start - piece.offset), False

    def _reads_zero(self, host: Node, offset: int, length: int) -> bool:
        # Most data shows at its first bytes that it isn't zero; only what might be is read whole.
        try:
            head = self._scratch()[: min(_PEEK, length)]
            host.driver.read(offset, head)
            if not is_zero(head):
                return False
            whole = self._scratch()[:length]
            host.driver.read(offset, whole)
        except OSError as exc:
            raise CopyError(exc, True) from exc
        return is_zero(whole)

    # -- moving it -------------------------------------------------------------------------------------------

    def _flush_pieces(self, pieces: list[Piece]) -> None:
        """Copy neighbouring pieces, as many at once as go the same way."""
        at = 0
        while at < len(pieces):
            upto = at + 1
            in_kernel = pieces[at].host is not None
            while upto < len(pieces) and (pieces[upto].host is not None) == in_kernel:
                upto += 1
            self._move(pieces[at:upto], in_kernel)
            at = upto
        pieces.clear()

    def _move(self, group: list[Piece], in_kernel: bool) -> None:
        start, end = group[0].offset, group[-1].offset + group[-1].length
        # The target takes whole clusters from the kernel; what is left at either end goes through the buffer.
        cluster = extent_cluster(self._target.node) if in_kernel else 1
        first = -(-start // cluster) * cluster
        last = end if end == self._target.node.length else end - end % cluster
        if in_kernel and last - first >= SMALLEST_KERNEL_COPY and self._in_kernel(group, first, last - first):
            if start < first:
                self._by_buffer(start, first - start)
            if last < end:
                self._by_buffer(last, end - last)
        else:
            self._by_buffer(start, end - start)

    def _in_kernel(self, pieces: list[Piece], offset: int, length: int) -> bool:
        """Copy by copy_file_range; False when that does not work here, nothing visible has changed then."""
        target = self._target
        if not self._through[1]:
            return False
        with target.holding(offset, length):
            try:
                plan = target.plan(offset, length)
            except OSError as exc:
                raise CopyError(exc, False) from exc
            if plan is None:
                return False
            try:
                # The host's own plan takes a grown file's new length over; what was just written would read as zeros.
                inner = [part for host, at, size in plan.extents if (part := host.driver.begin_write(at, size))]
                if len(inner) != len(plan.extents):
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
                self._copy_extents(pieces, plan, offset, offset + length)
                for part in inner:
                    part.commit()
            except OSError:
                # It can't be done or it failed: the way through the buffer works, or tells which side is at fault.
                plan.abort()
                return False
            except BaseException:
                plan.abort()
                raise
            for host, _, _ in plan.extents:
                mark_unflushed_between(target.node, host)
            try:
                plan.commit()
            except OSError as exc:
                raise CopyError(exc, False) from exc
        for host, host_offset, size in plan.extents:
            host.after_host_write(host_offset, size)
        target.placed(offset, length)
        self.kernel_bytes += length
        if self._writeback is not None:
            self._writeback.wrote(length)
        return True

    def _copy_extents(self, pieces: list[Piece], plan: WritePlan, start: int, end: int) -> None:
        extents = iter(plan.extents)
        to_node, to_offset, room = next(extents)
        for piece in pieces:
            at, stop = max(piece.offset, start), min(piece.offset + piece.length, end)
            while at < stop:
                if not room:
                    to_node, to_offset, room = next(extents)
                    continue
                size = min(room, stop - at)
                assert piece.host is not None
                self._copy_run(piece.host, piece.host_offset + at - piece.offset, to_node, to_offset, size)
                at += size
                to_offset += size
                room -= size

    def _copy_run(self, source: Node, offset: int, to: Node, to_offset: int, length: int) -> None:
        pair = (id(source), id(to))
        from_fd, to_fd = source.driver.host_fd(), to.driver.host_fd()
        if pair in self._refused or from_fd is None or to_fd is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        while length:
            try:
                done = os.copy_file_range(from_fd, to_fd, length, offset, to_offset)
            except OSError as exc:
                if exc.errno in _NOT_IN_KERNEL:
                    self._refused.add(pair)
                raise
            if not done:
                # The file ends inside the run; what follows reads as zeros, which the buffer will bring.
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
            offset += done
            to_offset += done
            length -= done

    def _by_buffer(self, offset: int, length: int) -> None:
        end = offset + length
        span = ZERO_SPAN if self._look_for_zeros else BUFFER_SIZE
        buffer = self._scratch()
        while offset < end:
            # Steps end at multiples of the span, whatever the range begins with: whole clusters are written at once.
            part = buffer[: min(span - offset % span, end - offset)]
            try:
                self._source.read(offset, part)
            except OSError as exc:
                raise CopyError(exc, True) from exc
            try:
                if self._look_for_zeros and is_zero(part):
                    self._target.write_zeroes(offset, len(part))
                else:
                    self._target.write(offset, part)
            except OSError as exc:
                raise CopyError(exc, False) from exc
            offset += len(part)
        if self._writeback is not None:
            self._writeback.wrote(length)

    def _scratch(self) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER_SIZE))
        return self._buffer


def transparent(node: Node) -> bool:
    """Whether no filter at or below *node* has to see each request (throttling, fault injection, quorum …).

    Filters that only hold permissions or fill layers say so by ``sees_no_data``.
    """
    seen: set[int] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        driver = current.driver
        if isinstance(driver, FilterDriver) and not getattr(driver, "sees_no_data", False):
            return False
        stack.extend(edge.child for edge in list(current.children.values()))
    return True


def mark_unflushed_between(node: Node, host: Node) -> None:
    """Data was placed in *host*, below *node*: a flush of *node* has to reach it through every node between."""
    node.mark_unflushed()
    if node is host:
        return
    for edge in list(node.children.values()):
        if edge.perm.value & _WRITES:
            mark_unflushed_between(edge.child, host)


def extent_cluster(node: Node) -> int:
    """Bytes to which copies into *node* are best aligned: its cluster size, 1 when it has none."""
    info = node.driver.info()
    return info.cluster_size if info is not None and info.cluster_size else 1
