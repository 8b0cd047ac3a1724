"""The request path through a node: clip, align, find zeros, hold ranges, tell trackers, flush once, ask the driver.

A user's BlockBackend (door, range check, accounting) calls these methods; the driver they call goes on through an Edge
to the child node's, and so on down to a protocol driver. Any thread.
"""

from __future__ import annotations

import abc
import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from engine.bitmaps.dirty import bitmaps_of
from engine.graph.driver import Extent, Prealloc, Status, WriteFlag
from engine.graph.ranges import RangeLock, Readers

if TYPE_CHECKING:
    from engine.graph.driver import Driver
    from engine.graph.edge import Edge
    from engine.graph.graph import Graph

MAX_LENGTH = (1 << 63) - (1 << 30)
"""Largest virtual length in bytes: 2^63-1 rounded down to 1 GiB, the largest alignment."""
MAX_BOUNCE = 16 << 20
"""Largest buffer of zeros (bytes) written where a driver cannot write zeros efficiently."""

_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)
_RAW, _ALLOCATED, _EOF, _RECURSE = int(Status.RAW), int(Status.ALLOCATED), int(Status.EOF), int(Status.RECURSE)
_FUA, _MAY_UNMAP, _NO_FALLBACK = int(WriteFlag.FUA), int(WriteFlag.MAY_UNMAP), int(WriteFlag.NO_FALLBACK)
_COMPRESSED = int(WriteFlag.COMPRESSED)
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP)
_zeros = memoryview(bytes(1 << 20))
_ZERO_RUN = bytes(256 << 10)


class WriteTracker(Protocol):
    """Something told of every write, zero write and discard that reached the driver (dirty bitmaps, thresholds)."""

    def __call__(self, offset: int, length: int, /) -> None: ...


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero. Compares at memcmp speed and leaves early on ordinary data."""
    size = len(data)
    if not size:
        return True
    if data[0] or data[size - 1]:
        return False
    # Bytes are compared by memcmp here, but one by one where two memoryviews are.
    step = len(_ZERO_RUN)
    return all(_ZERO_RUN.startswith(data[at : at + step]) for at in range(0, size, step))


class RequestPath(abc.ABC):
    """What a node does with requests. The control plane sets the fields that Node adds; requests only read them."""

    graph: Graph
    driver: Driver
    children: dict[str, Edge]
    read_only: bool
    ejected: bool
    discard_unmap: bool
    detect_zeroes: str

    def __init__(self) -> None:
        self.ranges = RangeLock()
        self._serialisers = 0
        self._tracked = False
        self.readers: Readers | None = None
        """Where reads are seen while somebody waits for them (track_reads)."""
        self._read_trackings = 0
        self.before_read: Callable[[int, int], None] | None = None
        """Called with the offset and length of each read first (copy-on-read without a filter)."""
        self.trackers: tuple[WriteTracker, ...] = ()
        # (generation of the graph, length then). A filter's length is that of the node at the end of its chain: to look
        # it up in every node of the chain would make a read's cost grow with the square of the depth.
        self._reach = -1, 0
        self._flush_lock = threading.Lock()
        self._unflushed = False
        # Counters are for display; two threads may lose an increment, which nothing depends on.
        self.rd_bytes = self.rd_operations = self.wr_bytes = self.wr_operations = 0
        self.wr_highest_offset = 0

    @property
    def length(self) -> int:
        """Virtual length in bytes."""
        return self.driver.length

    @property
    @abc.abstractmethod
    def backing(self) -> Edge | None:
        """The copy-on-write child."""

    @property
    @abc.abstractmethod
    def primary(self) -> Edge | None:
        """The child whose name stands for the node."""

    # -- serialising -----------------------------------------------------------------------------------------

    def start_serialising(self) -> None:
        """From now on every write holds its range in ``ranges``. Call while the node is drained."""
        self._serialisers += 1
        self._tracked = True

    def stop_serialising(self) -> None:
        """Undo one start_serialising. Call while the node is drained."""
        self._serialisers -= 1
        self._tracked = self._serialisers > 0

    def track_reads(self) -> Readers:
        """From now on every read is seen by the Readers returned. Call while the node is drained."""
        if self.readers is None:
            self.readers = Readers()
        self._read_trackings += 1
        return self.readers

    def untrack_reads(self) -> None:
        """Undo one track_reads. Call while the node is drained."""
        self._read_trackings -= 1
        if not self._read_trackings:
            self.readers = None

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*; bytes past the end read as zeros. Errors: OSError."""
        if self.before_read is not None:
            self.before_read(offset, len(buffer))
        self.read_as_it_is(offset, buffer)

    def read_as_it_is(self, offset: int, buffer: memoryview) -> None:
        """Read without copying anything on the way."""
        readers = self.readers
        if readers is None:
            self._read(offset, buffer)
            return
        with readers.reading(offset, len(buffer)):
            self._read(offset, buffer)

    def _read(self, offset: int, buffer: memoryview) -> None:
        size = len(buffer)
        self.rd_operations += 1
        self.rd_bytes += size
        driver = self.driver
        generation, total = self._reach
        if offset + size > total or generation != self.graph.generation:
            generation = self.graph.generation
            total = driver.length
            self._reach = generation, total
        beyond = offset + size - total
        if beyond > 0:
            inside = max(size - beyond, 0)
            buffer[inside:] = bytes(size - inside)
            if not inside:
                return
            buffer = buffer[:inside]
            size = inside
        align = driver.limits.request_alignment
        if align > 1 and (offset | size) & (align - 1):
            self._read_misaligned(offset, buffer, align)
        else:
            driver.read(offset, buffer)

    def _read_misaligned(self, offset: int, buffer: memoryview, align: int) -> None:
        start = offset & -align
        bounce = memoryview(bytearray(-(-(offset + len(buffer)) // align) * align - start))
        self.driver.read(start, bounce)
        buffer[:] = bounce[offset - start : offset - start + len(buffer)]

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        """Write all of *data* (WriteFlag bits in *flags*). Errors: OSError."""
        size = len(data)
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if self.detect_zeroes != "off" and is_zero(data):
            unmap = _MAY_UNMAP if self.detect_zeroes == "unmap" else 0
            self.write_zeroes(offset, size, (flags & _FUA) | unmap)
            return
        if flags & _COMPRESSED and not self.driver.supports_compressed_writes:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        self.wr_operations += 1
        self.wr_bytes += size
        try:
            if self._tracked or self.driver.limits.request_alignment > 1:
                self._write_serialised(offset, data, flags)
            else:
                self.driver.write(offset, data, flags)
        finally:
            self._after_write(offset, size)
        if flags & _FUA and not self.driver.supports_fua:
            self.flush()

    def _write_serialised(self, offset: int, data: memoryview, flags: int) -> None:
        align = self.driver.limits.request_alignment
        start = offset & -align
        end = -(-(offset + len(data)) // align) * align
        with self.ranges.hold(start, end - start):
            if start == offset and end - start == len(data):
                self.driver.write(offset, data, flags)
                return
            bounce = memoryview(bytearray(end - start))
            self._read_edges(start, bounce, offset, len(data))
            bounce[offset - start : offset - start + len(data)] = data
            self.driver.write(start, bounce, flags)

    def _read_edges(self, start: int, bounce: memoryview, offset: int, length: int) -> None:
        """Fill *bounce*, the blocks from *start* on that hold the range, with what is there; tell blkdebug."""
        event = self.driver.debug_event
        head, tail = start < offset, offset + length < start + len(bounce)
        if head:
            event("pwritev_rmw_head")
        if tail:
            event("pwritev_rmw_tail")
        self._read_blocks(start, bounce)
        if head:
            event("pwritev_rmw_after_head")
        if tail:
            event("pwritev_rmw_after_tail")

    def _read_blocks(self, start: int, bounce: memoryview) -> None:
        """Read whole aligned blocks; what lies in blocks past the end stays zero."""
        inside = self.driver.length - start
        if inside > 0:
            align = self.driver.limits.request_alignment
            self.driver.read(start, bounce[: min(len(bounce), -(-inside // align) * align)])

    def write_unserialised(self, offset: int, data: memoryview, flags: int = 0) -> None:
        """A write of somebody who holds the range in ``ranges`` already (copy-on-read)."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.wr_operations += 1
        self.wr_bytes += len(data)
        try:
            self.driver.write(offset, data, flags)
        finally:
            self._unflushed = True

    def _after_write(self, offset: int, size: int) -> None:
        self._unflushed = True
        end = offset + size
        if end > self.wr_highest_offset:
            self.wr_highest_offset = end
        for tracker in self.trackers:
            tracker(offset, size)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        """Make the range read as zeros; writes zeros where the driver can't do better, unless NO_FALLBACK."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if not self.discard_unmap:
            flags &= ~_MAY_UNMAP
        self.wr_operations += 1
        self.wr_bytes += length
        try:
            if self._tracked or self.driver.limits.request_alignment > 1:
                with self.ranges.hold(offset, length):
                    self.write_zeroes_unserialised(offset, length, flags)
            else:
                self.write_zeroes_unserialised(offset, length, flags)
        finally:
            self._after_write(offset, length)
        if flags & _FUA:
            self.flush()

    def write_zeroes_unserialised(self, offset: int, length: int, flags: int = 0) -> None:
        """As write_zeroes, for somebody who holds the range in ``ranges`` already."""
        self._unflushed = True
        if not length:
            return
        align = max(self.driver.limits.write_zeroes_alignment, self.driver.limits.request_alignment)
        if align <= 1:
            self._zero_run(offset, length, flags)
            return
        end = offset + length
        first, last = min(-(-offset // align) * align, end), max(end & -align, offset)
        if first > last:
            first = last = end
        for start, stop in ((offset, first), (first, last), (last, end)):
            if stop > start:
                if start == first and stop == last:
                    self._zero_run(start, stop - start, flags)
                elif flags & _NO_FALLBACK:
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
                else:
                    self._write_zero_bytes(start, stop - start)

    def _zero_run(self, offset: int, length: int, flags: int) -> None:
        try:
            self.driver.write_zeroes(offset, length, flags)
            return
        except OSError as exc:
            if exc.errno not in _UNSUPPORTED or flags & _NO_FALLBACK:
                raise
        self._write_zero_bytes(offset, length)

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        align = self.driver.limits.request_alignment
        end = offset + length
        while offset < end:
            step = min(end - offset, len(_zeros))
            if align > 1 and (offset | step) & (align - 1):
                start, stop = offset & -align, -(-(offset + step) // align) * align
                bounce = memoryview(bytearray(stop - start))
                self._read_edges(start, bounce, offset, step)
                bounce[offset - start : offset - start + step] = _zeros[:step]
                self.driver.write(start, bounce)
            else:
                self.driver.write(offset, _zeros[:step])
            offset += step

    def discard(self, offset: int, length: int) -> None:
        """Give space back where the node was opened with discard=unmap and the driver can; else nothing."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if not self.discard_unmap:
            return
        try:
            if self._tracked:
                with self.ranges.hold(offset, length):
                    self.driver.discard(offset, length)
            else:
                self.driver.discard(offset, length)
        except OSError as exc:
            if exc.errno not in _UNSUPPORTED:
                raise
        finally:
            self._after_write(offset, length)

    def flush(self) -> None:
        """Bring everything written so far to stable storage. Errors: OSError."""
        if self.read_only or self.ejected:
            return
        primary = self.primary
        if primary is not None:
            primary.child.driver.debug_event("flush_to_os")
        # Flushes take turns: one that finds nothing to do must know that the one before it has finished.
        with self._flush_lock:
            if not self._unflushed:
                # Below there may be something all the same: a filter comes in after the writes that a guest flushes.
                for edge in self.driver.flushed_children():
                    edge.flush()
                return
            self._unflushed = False
            try:
                self.driver.flush()
            except BaseException:
                self._unflushed = True
                raise

    def mark_unflushed(self) -> None:
        """Data was placed into this node by other means (an in-kernel copy): the next flush must not be skipped."""
        self._unflushed = True

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        """Change the virtual length; new bytes read as zeros. Errors: GenericError, OSError."""
        if self.ejected:
            raise OSError(errno.ENOMEDIUM, "No medium inserted")
        if self.read_only:
            raise OSError(errno.EACCES, "Image is read-only")
        if length < 0 or length > MAX_LENGTH:
            raise OSError(errno.EINVAL, f"offset({length}) exceeds maximum({MAX_LENGTH})")
        old = self.length
        backing = self.backing
        self.driver.truncate(length, exact=exact, prealloc=prealloc)
        self._unflushed = True
        if backing is not None and length > old and backing.child.length > old:
            # The backing image would shine through where the overlay grew into its range.
            self._zero_run(old, min(length, backing.child.length) - old, 0)
        for bitmap in bitmaps_of(self):
            bitmap.truncate(self.length)
        self.graph.changed()

    def after_host_write(self, offset: int, length: int) -> None:
        """Bookkeeping for data placed through begin_write(): as if write() had been called."""
        self.wr_operations += 1
        self.wr_bytes += length
        self._after_write(offset, length)

    # -- what is at this offset? -----------------------------------------------------------------------------

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        """One run at *offset*, at most *length* bytes, resolved through pass-through drivers of this layer.

        Flags: DATA/ZERO/ALLOCATED/OFFSET_VALID/EOF/COMPRESSED. No ALLOCATED: look at the backing node. A range that
        starts at or past the end answers Extent(length, EOF | ZERO).
        """
        driver = self.driver
        total = driver.length
        if offset >= total:
            return Extent(length, _EOF | _ZERO)
        length = min(length, total - offset)
        align = driver.limits.request_alignment
        if align > 1 and (offset | length) & (align - 1):
            start = offset & -align
            stop = min(-(-(offset + length) // align) * align, total)
            wide = driver.block_status(start, stop - start, want_zero)
            got = min(wide.length - (offset - start), length)
            extent = Extent(got, wide.flags, wide.node, wide.offset + (offset - start))
        else:
            extent = driver.block_status(offset, length, want_zero)
        run, flags, node, host = extent
        if flags & _RAW:
            assert node is not None
            below = node.block_status(host, run, want_zero)
            eof = _EOF if offset + below.length == total else 0
            return Extent(below.length, (below.flags & ~_EOF) | eof | (flags & _ALLOCATED), below.node, below.offset)
        if flags & (_DATA | _ZERO):
            flags |= _ALLOCATED
        elif want_zero and driver.supports_backing:
            cow = self.backing
            if cow is None or offset >= cow.child.length:
                flags |= _ZERO
        if flags & _RECURSE:
            flags &= ~_RECURSE
            if want_zero and flags & _DATA and flags & _VALID and node is not None:
                below = node.block_status(host, run, want_zero)
                if (
                    below.flags & _EOF
                    and below.flags & _ZERO
                    and below.length < run
                    and host + below.length >= node.length
                ):
                    flags |= _ZERO
                else:
                    run = min(run, below.length)
                    flags |= below.flags & _ZERO
        if offset + run == total:
            flags |= _EOF
        return Extent(run, flags, node, host)
