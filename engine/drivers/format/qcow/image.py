"""Reading and writing what is in a qcow image of version 1."""

from __future__ import annotations

import errno
import os
import threading
import zlib
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import io_error, read_bytes, round_up
from engine.drivers.format.tablepages import ENTRY, TablePages

if TYPE_CHECKING:
    from engine.drivers.format.qcow.header import Header
    from engine.drivers.format.qcow2.storage import Child

COMPRESSED: Final = 1 << 63
_MAX_OFFSET: Final = (1 << 63) - (1 << 30)
_WINDOW: Final = -12
"""zlib's window: 2^12 bytes, a bare deflate stream."""


class QcowImage:
    """An open image. backing: gives the backing file as it is now, or None. All offsets in bytes; any thread.

    Clusters and tables are taken from the end of the file, and flushed before an entry points to them.
    """

    def __init__(self, file: Child, header: Header, backing: Callable[[], Child | None]) -> None:
        self.file = file
        self.header = header
        self.backing = backing
        self.pages = TablePages(file, "big")
        self.cluster_bits = header.cluster_bits
        self.cluster_size = 1 << header.cluster_bits
        self.span = self.cluster_size << header.l2_bits
        """Bytes of the disk that one L2 table maps."""
        self._allocating = threading.RLock()
        self._last: tuple[int, bytes] = (0, b"")

    # -- lookup ----------------------------------------------------------------------------------------------

    def l2_table(self, offset: int) -> int:
        """Where the L2 table for *offset* is, 0 if there is none. Errors: OSError."""
        table = self.pages.get(self.header.l1_offset + offset // self.span * ENTRY)
        if table > _MAX_OFFSET:
            raise io_error()
        return table

    def find(self, offset: int, length: int) -> tuple[int, int]:
        """(entry, bytes) of the run at *offset*, at most *length* bytes. Errors: OSError.

        entry: 0 where nothing is, the host offset of the run's first byte, or, one cluster at a time, an entry with the
        COMPRESSED bit.
        """
        length = min(length, self.span - offset % self.span)
        table = self.l2_table(offset)
        if not table:
            return 0, length
        size = self.cluster_size
        inside = offset % size
        index = offset % self.span // size
        entries = self.pages.entries(table + index * ENTRY, -(-(inside + length) // size))
        first = entries[0]
        if first & COMPRESSED:
            return first, min(size - inside, length)
        if first % 512 or first > _MAX_OFFSET:
            raise io_error()
        step = size if first else 0
        count, expected = 1, first + step
        for entry in entries[1:]:
            if entry != expected:
                break
            count += 1
            expected += step
        return (first + inside if first else 0), min(count * size - inside, length)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*. Errors: OSError."""
        at = 0
        while at < len(buffer):
            entry, run = self.find(offset + at, len(buffer) - at)
            part = buffer[at : at + run]
            if not entry:
                backing = self.backing()
                if backing is None:
                    part[:] = bytes(run)
                else:
                    backing.read(offset + at, part)
            elif entry & COMPRESSED:
                inside = (offset + at) % self.cluster_size
                part[:] = self.decompressed(entry)[inside : inside + run]
            else:
                self.file.read(entry, part)
            at += run

    def decompressed(self, entry: int) -> bytes:
        """The cluster that a compressed one's *entry* stands for. Errors: OSError."""
        last = self._last
        if last[0] == entry:
            return last[1]
        shift = 63 - self.cluster_bits
        offset = entry & ((1 << shift) - 1)
        data = read_bytes(self.file, offset, (entry >> shift) & (self.cluster_size - 1))
        unpacker = zlib.decompressobj(_WINDOW)
        try:
            found = unpacker.decompress(data, self.cluster_size)
        except zlib.error as exc:
            raise io_error() from exc
        if len(found) != self.cluster_size:
            raise io_error()
        self._last = entry, found
        return found

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data*. Errors: OSError."""
        at = 0
        while at < len(data):
            entry, run = self.find(offset + at, len(data) - at)
            if entry and not entry & COMPRESSED:
                self.file.write(entry, data[at : at + run])
            else:
                with self._allocating:
                    # Somebody else may have been here in the meantime.
                    entry, run = self.find(offset + at, run)
                    if entry and not entry & COMPRESSED:
                        continue
                    self._write_new(offset + at, data[at : at + run])
            at += run

    def write_compressed(self, offset: int, data: memoryview) -> None:
        """Write one cluster, compressed if that makes it smaller and it has no place yet.

        Errors: OSError; EINVAL for other than a cluster, or the last one up to the disk's end.
        """
        size = self.cluster_size
        end = self.header.length // 512 * 512
        if len(data) != size and (len(data) > size or offset + len(data) != end):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset % size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW, 9)
        packed = packer.compress(bytes(data) + bytes(size - len(data))) + packer.flush()
        if len(packed) >= size:
            self.write(offset, data)
            return
        with self._allocating:
            table = self.l2_table(offset)
            entry = self.pages.get(table + self._index(offset) * ENTRY) if table else 0
            if entry:
                self.write(offset, data)
                return
            fresh = 0 if table else self._new_table()
            host = self.file.length
            shift = 63 - self.cluster_bits
            if host + size >= 1 << shift:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            self.file.write(host, memoryview(packed))
            self._link(offset, array("Q", [COMPRESSED | len(packed) << shift | host]), table, fresh)

    def _index(self, offset: int) -> int:
        return offset % self.span >> self.cluster_bits

    def _write_new(self, offset: int, data: memoryview) -> None:
        """Give the clusters of a run a place; what *data* does not cover of them is what was read there before."""
        size = self.cluster_size
        start = offset & -size
        end = round_up(offset + len(data), size)
        content = data
        if end - start != len(data):
            content = memoryview(bytearray(end - start))
            if offset > start:
                self.read(start, content[: offset - start])
            content[offset - start : offset - start + len(data)] = data
            if offset + len(data) < end:
                self._read_to_end(offset + len(data), content[offset - start + len(data) :])
        table = self.l2_table(start)
        fresh = 0 if table else self._new_table()
        host = round_up(self.file.length, size)
        if host + len(content) > _MAX_OFFSET:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        self.file.write(host, content)
        self._link(start, array("Q", range(host, host + end - start, size)), table, fresh)

    def _read_to_end(self, offset: int, buffer: memoryview) -> None:
        """As read(), where the last cluster may reach past the disk's end."""
        inside = min(len(buffer), max(self.header.length - offset, 0))
        if inside:
            self.read(offset, buffer[:inside])

    def _new_table(self) -> int:
        """An empty L2 table that nothing points to yet."""
        table = round_up(self.file.length, self.cluster_size)
        self.file.write(table, memoryview(bytes(ENTRY << self.header.l2_bits)))
        # Pages read before the table was there must not be taken for it.
        self.pages.forget()
        return table

    def _link(self, offset: int, entries: array[int], table: int, fresh: int) -> None:
        """Put *entries* into the L2 table for *offset*; fresh: the new table, where there was none."""
        self.file.flush()
        if fresh:
            self.pages.put(self.header.l1_offset + offset // self.span * ENTRY, array("Q", [fresh]))
        self.pages.put((table or fresh) + self._index(offset) * ENTRY, entries)

    def make_empty(self) -> None:
        """Drop all data of this layer; the file is cut behind the L1 table. Errors: OSError."""
        with self._allocating:
            size = self.header.l1_entries * ENTRY
            self.file.write_zeroes(self.header.l1_offset, size)
            self.file.truncate(self.header.l1_offset + size)
            self.file.flush()
            self._last = (0, b"")
            self.pages.forget()
