"""Grain directory and grain tables of a sparse extent, with a cache that writes back in a safe order.

Changed entries reach the file only after a flush of the grains they point to: a cut leaves at worst leaked space.
Locks: ``_writing_back`` before ``_lock``; the second is held for look-ups alone.
"""

from __future__ import annotations

import errno
import threading
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import error, io_error, read_bytes
from engine.drivers.format.vmdk.header import SECTOR, to_little_endian

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.drivers.format.qcow2.storage import Child
    from engine.drivers.format.vmdk.header import Geometry

UNALLOCATED: Final = 0
ZEROED: Final = 1
DATA: Final = 2
"""What is known of a run of grains."""
ZERO_ENTRY: Final = 1
_BROKEN: Final = 0xFFFFFFFFFFFFFFFF
CACHED_TABLES: Final = 256
DIRTY_TABLES: Final = 64
"""Changed tables that wait for a flush; with more of them they are written back at once."""


def _from_disk(data: bytearray, width: int) -> array[int]:
    table = array("I" if width == 4 else "Q")
    table.frombytes(data[: len(data) // width * width])
    to_little_endian(table)
    return table


def _to_disk(table: array[int]) -> bytes:
    copy = table[:]
    to_little_endian(copy)
    return copy.tobytes()


class GrainTables:
    """Where the grains of one extent are. Offsets are bytes from the extent's start; any thread may call."""

    def __init__(self, file: Child, geometry: Geometry) -> None:
        """Read the directory; what lies past the file's end is all zeros, and takes no memory. Errors: OSError."""
        self.file = file
        self.geometry = geometry
        self.grain = geometry.grain_sectors * SECTOR
        self.span = self.grain * geometry.table_entries
        """Bytes of the disk that one table covers."""
        self._table_bytes = geometry.table_entries * geometry.entry_size
        self._zero_entry = ZERO_ENTRY if geometry.zeroed_grains or geometry.se_sparse else -1
        self._directory = self._read_directory(geometry.directory)
        self._backup: array[int] | None = None
        self._cache: OrderedDict[int, array[int]] = OrderedDict()
        self._dirty: dict[int, tuple[int, int]] = {}
        """Sector of a table → (index in the directory, number of the change)."""
        self._changes = 0
        self.tell: Callable[[str], None] = lambda event: None
        """Called when something is about to be done (blkdebug)."""
        self._lock = threading.Lock()
        self._writing_back = threading.Lock()

    def _read_directory(self, offset: int) -> array[int]:
        width = self.geometry.entry_size
        size = min(self.geometry.directory_entries * width, max(self.file.length - offset, 0))
        return _from_disk(read_bytes(self.file, offset, size), width)

    # -- looking up ------------------------------------------------------------------------------------------

    def lookup(self, offset: int, length: int) -> tuple[int, int, int]:
        """(state, host offset, length of the run, at most *length*). Errors: OSError."""
        index, within = divmod(offset, self.span)
        if index >= self.geometry.directory_entries:
            raise io_error()
        at, inside = divmod(within, self.grain)
        with self._lock:
            table = self._table(index)
            if table is None:
                return UNALLOCATED, 0, min(length, self._without_tables(index, offset + length) - offset)
            entry = table[at]
            if entry == _BROKEN:
                raise io_error()
            limit = min(len(table) - at, -(-(inside + length) // self.grain))
            count = 1
            if entry == 0 or entry == self._zero_entry:
                while count < limit and table[at + count] == entry:
                    count += 1
                state, host = UNALLOCATED if entry == 0 else ZEROED, 0
            else:
                step, wanted = self.geometry.grain_sectors, entry
                if not self.geometry.compressed:
                    while count < limit and table[at + count] == (wanted := wanted + step):
                        count += 1
                state, host = DATA, entry * SECTOR + (0 if self.geometry.compressed else inside)
        return state, host, min(length, count * self.grain - inside)

    def _without_tables(self, index: int, end: int) -> int:
        """Where, at *end* at the latest, the run of missing tables ends that the one at *index* belongs to."""
        directory = self._directory
        last = min(-(-end // self.span), self.geometry.directory_entries)
        at, known = index + 1, min(last, len(directory))
        while at < known and not directory[at]:
            at += 1
        return (last if at >= len(directory) else at) * self.span

    def _table_sector(self, index: int) -> int:
        """Sector of a grain table, 0 where there is none."""
        entry = self._directory[index] if index < len(self._directory) else 0
        if not self.geometry.se_sparse or not entry:
            return entry
        if entry >> 32 != 0x10000000:
            raise io_error()
        return self.geometry.tables + (entry & 0xFFFFFFFF) * self._table_bytes // SECTOR

    def _table(self, index: int) -> array[int] | None:
        sector = self._table_sector(index)
        if not sector:
            return None
        table = self._cache.get(sector)
        if table is not None:
            self._cache.move_to_end(sector)
            return table
        if sector >= 1 << 54:
            raise io_error()
        self.tell("l2_load")
        table = _from_disk(read_bytes(self.file, sector * SECTOR, self._table_bytes), self.geometry.entry_size)
        if self.geometry.se_sparse:
            table = array("Q", map(self._decode, table))
        self._cache[sector] = table
        if len(self._cache) > CACHED_TABLES:
            old = next((key for key in self._cache if key not in self._dirty), None)
            if old is not None and old != sector:
                del self._cache[old]
        return table

    def _decode(self, entry: int) -> int:
        """An SE sparse entry as the sector of its grain, or 0, or ZERO_ENTRY."""
        kind = entry >> 60
        if kind == 0:
            return 0 if not entry else _BROKEN
        if kind in (1, 2):
            return ZERO_ENTRY
        if kind != 3:
            return _BROKEN
        number = (entry >> 48 & 0xFFF) | (entry & 0xFFFFFFFFFFFF) << 12
        sector = self.geometry.grains + number * self.geometry.grain_sectors
        return sector if sector < 1 << 54 else _BROKEN

    # -- changing --------------------------------------------------------------------------------------------

    def has_table(self, offset: int) -> bool:
        """Whether there is a table for the grain at *offset*."""
        with self._lock:
            return self._table(offset // self.span) is not None

    def add_table(self, offset: int, sectors: tuple[int, int]) -> None:
        """Make an empty table for the grain at *offset* at the first of two reserved sectors; the second is for its
        copy. Errors: OSError.
        """
        index = offset // self.span
        if index >= len(self._directory):
            raise io_error()
        places = [(self.geometry.directory, self._directory, sectors[0])]
        backup = self._load_backup()
        if backup is not None:
            places.append((self.geometry.backup, backup, sectors[1]))
        for _, _, sector in places:
            self.file.write(sector * SECTOR, memoryview(bytes(self._table_bytes)))
        self.file.flush()
        for place, directory, sector in places:
            if index < len(directory):
                self.file.write(place + index * 4, memoryview(sector.to_bytes(4, "little")))
                with self._lock:
                    directory[index] = sector

    @property
    def table_sectors(self) -> int:
        """Sectors that a table takes, in whole grains."""
        grains = -(-self._table_bytes // self.grain)
        return grains * self.geometry.grain_sectors

    def set(self, offset: int, count: int, entry: int, step: int) -> None:
        """Point *count* grains from *offset* on, of one table, to *entry* and every *step* sectors after it.

        What they point to has been written, if not flushed. Errors: OSError.
        """
        index, within = divmod(offset, self.span)
        at = within // self.grain
        with self._lock:
            table = self._table(index)
            sector = self._table_sector(index)
            if table is None or sector * SECTOR + self._table_bytes > -(-self.file.length // SECTOR) * SECTOR:
                raise io_error()
            for number in range(count):
                table[at + number] = entry + number * step
            self._changes += 1
            self._dirty[sector] = (index, self._changes)
            many = len(self._dirty) > DIRTY_TABLES
        if many:
            self.write_back()

    def _load_backup(self) -> array[int] | None:
        if self._backup is None and self.geometry.backup:
            self._backup = self._read_directory(self.geometry.backup)
        return self._backup

    def write_back(self) -> None:
        """Bring changed tables to stable storage, the grains first. Errors: OSError."""
        with self._writing_back:
            with self._lock:
                dirty = {key: (*value, _to_disk(self._cache[key])) for key, value in self._dirty.items()}
            if not dirty:
                return
            backup = self._load_backup()
            self.file.flush()
            self.tell("l2_update")
            for sector, (index, _, data) in sorted(dirty.items()):
                copy = backup[index] if backup is not None and index < len(backup) else 0
                if copy and copy != sector:
                    self.file.write(copy * SECTOR, memoryview(data))
                self.file.write(sector * SECTOR, memoryview(data))
            self.file.flush()
            with self._lock:
                for sector, (_, change, _) in dirty.items():
                    if self._dirty[sector][1] == change:
                        del self._dirty[sector]

    def refuse_full(self, sector: int) -> None:
        """Raise OSError where a grain before *sector* is out of reach of the tables' entries."""
        if sector > 1 << 32:
            raise error(errno.ENOSPC)
