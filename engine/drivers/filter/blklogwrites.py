"""blklogwrites: writes every change to the image into a log too, in the format of Linux's dm-log-writes.

The log: sector 0 is a superblock, then for each request a sector with an entry, and its data. All numbers are
little-endian. As QEMU 7.2 does it, the image is written first, and the superblock only at flushes and every so many
entries; what comes behind its number of entries is no part of the log yet.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from engine.errors import GenericError, os_error_text
from engine.graph.driver import FilterDriver, Limits, Opening, WriteFlag, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevRef
from engine.graph.permissions import Role
from engine.qapi import Struct, UInt32, UInt64

MAGIC: Final = 0x6A736677736872
VERSION: Final = 1
SUPERBLOCK: Final = struct.Struct("<QQQI")
"""magic, version, number of entries, sector size in bytes."""
ENTRY: Final = struct.Struct("<QQQQ")
"""sector, number of sectors (both of the log's sector size), flags, length of further data (0 here)."""
FLUSH: Final = 1
FUA: Final = 2
DISCARD: Final = 4
MARK: Final = 8
_FLAGS: Final = FLUSH | FUA | DISCARD | MARK
DEFAULT_SECTOR: Final = 512
DEFAULT_INTERVAL: Final = 4096
_NO_FALLBACK: Final = int(WriteFlag.NO_FALLBACK)


class BlockdevOptionsBlklogwrites(Struct):
    """file: the image. log: the log. log_sector_size: bytes, the least unit of requests. log_append: go on with the
    log that is there. log_super_update_interval: entries after which the superblock is written at the latest.
    """

    file: BlockdevRef
    log: BlockdevRef
    log_sector_size: UInt32 | None = None
    log_append: bool | None = None
    log_super_update_interval: UInt64 | None = None


def _is_valid_sector(size: int) -> bool:
    return ENTRY.size <= size < 1 << 24 and not size & (size - 1)


@register
class BlklogwritesDriver(FilterDriver):
    """The blklogwrites filter."""

    name = "blklogwrites"
    Options = BlockdevOptionsBlklogwrites
    child_options = frozenset({"file", "log"})
    strong_options = ("log-append", "log-sector-size")

    file: Edge
    log: Edge

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsBlklogwrites = opening.options
        file = opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        log = opening.open_child("log", Role.METADATA)
        assert file is not None
        assert log is not None
        self.file, self.log = file, log
        self._lock = threading.Lock()
        """Held while an entry is put into the log; guards what follows."""
        self._position = 1
        self._entries = 0
        if options.log_append:
            if options.log_sector_size is not None:
                raise GenericError("log-append and log-sector-size are mutually exclusive")
            self._sector = self._read_log()
        else:
            self._sector = DEFAULT_SECTOR if options.log_sector_size is None else options.log_sector_size
        if not _is_valid_sector(self._sector):
            raise GenericError(f"Invalid log sector size {self._sector}")
        interval = options.log_super_update_interval
        self._interval = DEFAULT_INTERVAL if interval is None else interval
        if not self._interval:
            raise GenericError(f"Invalid log superblock update interval {self._interval}")

    def _read_log(self) -> int:
        """Find the end of the log that is there; its sector size."""
        if not self.log.length:
            return DEFAULT_SECTOR
        try:
            magic, version, entries, sector = SUPERBLOCK.unpack(self._read(0, SUPERBLOCK.size))
        except OSError as exc:
            raise GenericError(f"Could not read log superblock: {os_error_text(exc)}") from exc
        if magic != MAGIC:
            raise GenericError("Invalid log superblock magic")
        if version != VERSION:
            raise GenericError(f"Unsupported log version {version}")
        if _is_valid_sector(sector):
            self._find_end(entries, sector)
        return int(sector)

    def _find_end(self, entries: int, sector: int) -> None:
        for number in range(entries):
            at = self._position * sector
            if at >= self.log.length:
                # The log is cut short. Zeros would be read here, an entry without data each.
                self._position += entries - number
                break
            try:
                _, count, flags, _ = ENTRY.unpack(self._read(at, ENTRY.size))
            except OSError as exc:
                raise GenericError(f"Failed to read log entry {number}: {os_error_text(exc)}") from exc
            if flags & ~_FLAGS:
                raise GenericError(f"Invalid flags 0x{flags:x} in log entry {number}")
            self._position += 1 if flags & DISCARD else 1 + count
        self._entries = entries

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        self.log.read(offset, memoryview(data))
        return data

    def refresh_limits(self) -> None:
        below = self.file.child.limits
        self.limits = Limits(self._sector, below.max_transfer, below.opt_transfer, 0, below.discard_alignment)

    @property
    def own_alignment(self) -> int:
        return self.limits.request_alignment

    def allocated_size(self) -> int | None:
        return self.file.child.driver.allocated_size()

    # -- the log ---------------------------------------------------------------------------------------------

    def _record(
        self,
        act: Callable[[], None],
        offset: int,
        length: int,
        flags: int,
        data: memoryview | bytes = b"",
        zeros: int = 0,
    ) -> None:
        """Do the request, then log it, whatever came of it. Errors: OSError, the log's before the request's."""
        failure: OSError | None = None
        try:
            act()
        except OSError as exc:
            failure = exc
        self._log(ENTRY.pack(offset // self._sector, length // self._sector, flags, 0), flags, data, zeros)
        if failure is not None:
            raise failure

    def _log(self, entry: bytes, flags: int, data: memoryview | bytes, zeros: int) -> None:
        sector = self._sector
        with self._lock:
            self._entries += 1
            whole = entry + bytes(sector - len(entry)) + data
            at = self._take(len(whole))
            self.log.write(at, memoryview(whole))
            if zeros:
                self.log.write_zeroes(self._take(zeros), zeros)
            if flags & FLUSH or self._entries % self._interval == 0:
                head = SUPERBLOCK.pack(MAGIC, VERSION, self._entries, sector)
                self.log.write(0, memoryview(head + bytes(sector - len(head))))
                self.log.flush()

    def _take(self, length: int) -> int:
        """The host offset of the next *length* bytes of the log."""
        at = self._position * self._sector
        self._position += -(-length // self._sector)
        return at

    # -- data plane ------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._record(lambda: self.file.write(offset, data), offset, len(data), 0, data)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if flags & _NO_FALLBACK:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        self._record(lambda: self.file.write_zeroes(offset, length), offset, length, 0, zeros=length)

    def discard(self, offset: int, length: int) -> None:
        start, end = -(-offset // self._sector) * self._sector, (offset + length) // self._sector * self._sector
        if start < end:
            self._record(lambda: self.file.discard(start, end - start), start, end - start, DISCARD)

    def flush(self) -> None:
        self._record(self.file.flush, 0, 0, FLUSH)
