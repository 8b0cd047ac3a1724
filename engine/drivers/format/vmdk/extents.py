"""Extents: the runs of the disk that one file each holds, flat or with grain tables."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import error, read_bytes
from engine.drivers.format.vmdk.header import SECTOR
from engine.drivers.format.vmdk.tables import DATA, UNALLOCATED, ZERO_ENTRY, ZEROED, GrainTables

if TYPE_CHECKING:
    from engine.drivers.format.vmdk.header import Geometry
    from engine.graph.edge import Edge

GRAIN_MARKER: Final = struct.Struct("<QI")
"""Before a compressed grain: its place on the disk (sectors), and its size in bytes."""
_FILL_STEP: Final = 1 << 20
_zeros = memoryview(bytes(_FILL_STEP))

ReadBelow = Callable[[int, memoryview], None]
"""Fills a buffer with what the backing file has at an offset of the disk."""


class FlatExtent:
    """A run of the disk that lies in a file as it is. start, length: on the disk; offset: in the file. Bytes."""

    flat: Final = True
    compressed: Final = False

    def __init__(self, file: Edge, kind: str, start: int, length: int, offset: int) -> None:
        self.file = file
        self.kind = kind
        self.start = start
        self.length = length
        self.offset = offset

    def use_file(self, file: Edge) -> None:
        """Go on with another edge to the same bytes."""
        self.file = file


class SparseExtent:
    """A run of the disk in grains. start, length: on the disk, bytes."""

    flat: Final = False

    def __init__(self, file: Edge, kind: str, start: int, geometry: Geometry) -> None:
        """Errors: OSError when the grain directory can't be read."""
        self.file = file
        self.kind = kind
        self.start = start
        self.length = geometry.sectors * SECTOR
        self.geometry = geometry
        self.compressed = geometry.compressed
        self.tables = GrainTables(file, geometry)
        self.tables.tell = self._tell
        self.grain = self.tables.grain
        self._allocating = threading.Lock()
        """Held while new grains are written; taken before the tables' locks."""
        self._next = 0
        self._last_unpacked: tuple[int, bytes] = (-1, b"")
        self.find_end()

    def _tell(self, event: str) -> None:
        self.file.child.driver.debug_event(event)

    def use_file(self, file: Edge) -> None:
        """Go on with another edge to the same bytes. The node is drained."""
        self.file = self.tables.file = file

    def find_end(self) -> None:
        """New grains go behind what the file holds now."""
        step = self.geometry.grain_sectors
        self._next = -(-self.file.length // (SECTOR * step)) * step

    # -- reading ---------------------------------------------------------------------------------------------

    def read_compressed(self, host: int, inside: int, buffer: memoryview) -> None:
        """Fill *buffer* from *inside* the compressed grain at *host*. Errors: OSError."""
        known, data = self._last_unpacked
        if known != host:
            data = self._unpack(host)
            self._last_unpacked = (host, data)
        if inside + len(buffer) > len(data):
            raise error(errno.EINVAL)
        buffer[:] = data[inside : inside + len(buffer)]

    def _unpack(self, host: int) -> bytes:
        self._tell("read_compressed")
        most = 2 * self.grain
        packed = read_bytes(self.file, host, min(most, max(self.file.length - host, 0)))
        start, size = 0, len(packed)
        if self.geometry.markers:
            if len(packed) < GRAIN_MARKER.size:
                raise error(errno.EINVAL)
            start, size = GRAIN_MARKER.size, GRAIN_MARKER.unpack_from(packed)[1]
        if not size or size > most:
            raise error(errno.EINVAL)
        stream = zlib.decompressobj()
        try:
            # One byte more than fits, to see that there is no more.
            data = stream.decompress(memoryview(packed)[start : start + size], self.grain + 1)
        except zlib.error:
            raise error(errno.EINVAL) from None
        if not stream.eof or len(data) > self.grain:
            raise error(errno.EINVAL)
        return data

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, below: ReadBelow | None) -> None:
        """Write *data* at *offset* of the extent; *below* gives what a new grain has around it. Errors: OSError."""
        while data:
            state, host, run = self.tables.lookup(offset, len(data))
            if state == DATA:
                self._tell("write_aio")
                self.file.write(host, data[:run])
            else:
                with self._allocating:
                    run = self._write_new(offset, data[:run], below)
            offset += run
            data = data[run:]

    def _write_new(self, offset: int, data: memoryview, below: ReadBelow | None) -> int:
        """Write to grains that had no place just now; returns how many bytes were written."""
        state, host, run = self.tables.lookup(offset, len(data))
        data = data[:run]
        if state == DATA:
            self.file.write(host, data)
            return run
        data = data[: self.tables.span - offset % self.tables.span]
        grain, inside = self.grain, offset % self.grain
        whole = not inside and len(data) >= grain
        data = data[: len(data) // grain * grain] if whole else data[: grain - inside]
        count = len(data) // grain if whole else 1
        if not self.tables.has_table(offset):
            self._add_table(offset)
        first = self._next
        host = first * SECTOR
        self.tables.refuse_full(first + count * self.geometry.grain_sectors)
        source = below if state == UNALLOCATED else None
        place = self.start + offset - inside
        self._fill(host, place, inside, source)
        self._tell("write_aio")
        self.file.write(host + inside, data)
        end = inside + len(data)
        self._fill(host + end, place + end, count * grain - end, source)
        # Only now the space is taken: what a failed write left is written over by the next one.
        self._next = first + count * self.geometry.grain_sectors
        self.tables.set(offset, count, first, self.geometry.grain_sectors)
        return len(data)

    def _add_table(self, offset: int) -> None:
        size = self.tables.table_sectors
        first = self._next
        self.tables.refuse_full(first + 2 * size)
        self._next += 2 * size
        self.tables.add_table(offset, (first, first + size))

    def _fill(self, host: int, place: int, length: int, below: ReadBelow | None) -> None:
        """Write to *host* what is at *place* of the disk without this image: the backing file's bytes, or zeros."""
        while length:
            step = min(length, _FILL_STEP)
            if below is None:
                part = _zeros[:step]
            else:
                part = memoryview(bytearray(step))
                below(place, part)
            self.file.write(host, part)
            host, place, length = host + step, place + step, length - step

    def write_compressed(self, offset: int, data: memoryview) -> None:
        """Write whole grains, each only once, compressed. Errors: OSError."""
        with self._allocating:
            while data:
                state, _, _ = self.tables.lookup(offset, len(data))
                if state == DATA:
                    raise error(errno.EIO)
                run = min(len(data), self.grain - offset % self.grain)
                at_end = offset + run == self.length
                if offset % self.grain or (run < self.grain and not at_end) or not self.geometry.markers:
                    raise error(errno.EINVAL)
                if not self.tables.has_table(offset):
                    self._add_table(offset)
                packed = zlib.compress(data[:run])
                size = GRAIN_MARKER.size + len(packed)
                sectors = -(-size // SECTOR)
                self.tables.refuse_full(self._next + sectors)
                marker = GRAIN_MARKER.pack((self.start + offset) // SECTOR, len(packed))
                self._tell("write_compressed")
                self.file.write(self._next * SECTOR, memoryview(marker + packed + bytes(sectors * SECTOR - size)))
                first, self._next = self._next, self._next + sectors
                self.tables.set(offset, 1, first, 0)
                offset += run
                data = data[run:]

    def check_zeroable(self, offset: int, length: int) -> None:
        """Raise OSError unless write_zeroes() can be done, ENOTSUP where zeros may be written instead."""
        if self.compressed:
            at, end = offset, offset + length
            while at < end:
                state, _, run = self.tables.lookup(at, end - at)
                if state == DATA:
                    raise error(errno.EIO)
                at += run
        if not self.geometry.zeroed_grains or offset % self.grain or length % self.grain:
            raise error(errno.ENOTSUP)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make whole grains zeroed ones; what they held is lost space from now on. Errors: OSError."""
        end = offset + length
        with self._allocating:
            while offset < end:
                step = min(end - offset, self.tables.span - offset % self.tables.span)
                state, _, run = self.tables.lookup(offset, step)
                if state != ZEROED:
                    if not self.tables.has_table(offset):
                        self._add_table(offset)
                    self.tables.set(offset, run // self.grain, ZERO_ENTRY, 0)
                offset += run
