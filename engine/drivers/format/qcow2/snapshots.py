"""The table of internal snapshots: its entries, read from and put into their form on disk.

Snapshots share clusters with the active image. Their refcounts are above one, so the COPIED flags of the active
tables are off and writes copy. snapshotting.py makes, deletes and goes back to them.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, replace
from typing import Final

from engine.drivers.format.qcow2.header import SNAPSHOT_HEADER_SIZE, Header
from engine.drivers.format.qcow2.storage import Child, error, read_bytes, round_up
from engine.errors import GenericError, os_error_text

MAX_EXTRA: Final = 1024
MAX_TABLE: Final = 64 << 20
_ENTRY: Final = struct.Struct(">QIHHIIQII")
_EXTRA: Final = struct.Struct(">QQQ")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One internal snapshot. Sizes are bytes; date in seconds and nanoseconds since the epoch; icount None if
    unknown. extra_size: bytes of extra data in its entry, of which unknown_extra is the part with no known meaning.
    """

    id: str
    name: str
    l1_offset: int
    l1_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int
    icount: int | None
    extra_size: int = 0
    unknown_extra: bytes = b""

    @property
    def table_bytes(self) -> int:
        """Bytes of its entry in the table."""
        size = SNAPSHOT_HEADER_SIZE + self.extra_size + len(os.fsencode(self.id)) + len(os.fsencode(self.name))
        return round_up(size, 8)


def read(file: Child, header: Header) -> list[Snapshot]:
    """Read the snapshot table. Errors: GenericError."""
    found: list[Snapshot] = []
    offset = header.snapshots_offset
    for index in range(header.nb_snapshots):
        try:
            snapshot = _read_entry(file, header, offset, index)
        except OSError as exc:
            raise GenericError(f"Could not read snapshots: {os_error_text(exc)}") from exc
        found.append(snapshot)
        offset += snapshot.table_bytes
        if offset - header.snapshots_offset > MAX_TABLE:
            raise GenericError("Could not read snapshots: Snapshot table is too big")
    return found


def _read_entry(file: Child, header: Header, offset: int, index: int) -> Snapshot:
    if offset + SNAPSHOT_HEADER_SIZE > file.length:
        raise GenericError("Could not read snapshots: the table exceeds the file")
    fields = _ENTRY.unpack(read_bytes(file, offset, SNAPSHOT_HEADER_SIZE))
    l1_offset, l1_size, id_size, name_size, date_sec, date_nsec, vm_clock, vm_state, extra_size = fields
    if extra_size > MAX_EXTRA:
        raise GenericError(
            f"Could not read snapshots: Too much extra metadata in snapshot table entry {index}",
            hint="You can force-remove this extra metadata by updating the image via qemu-img check -r all",
        )
    rest = bytes(read_bytes(file, offset + SNAPSHOT_HEADER_SIZE, extra_size + id_size + name_size))
    extra = rest[:extra_size]
    vm_state_large, disk_size, icount = vm_state, header.size, None
    if extra_size >= 8:
        vm_state_large = int.from_bytes(extra[:8], "big")
    if extra_size >= 16:
        disk_size = int.from_bytes(extra[8:16], "big")
    if extra_size >= _EXTRA.size:
        icount = int.from_bytes(extra[16:24], "big", signed=True)
    return Snapshot(
        id=os.fsdecode(rest[extra_size : extra_size + id_size]),
        name=os.fsdecode(rest[extra_size + id_size :]),
        l1_offset=l1_offset,
        l1_size=l1_size,
        date_sec=date_sec,
        date_nsec=date_nsec,
        vm_clock_nsec=vm_clock,
        vm_state_size=vm_state_large,
        disk_size=disk_size,
        icount=None if icount == -1 else icount,
        extra_size=extra_size,
        unknown_extra=extra[_EXTRA.size :],
    )


def with_full_extra(snapshot: Snapshot) -> Snapshot:
    """*snapshot* as encode() writes it: with all the extra data that is known, and what was there besides."""
    return replace(snapshot, extra_size=_EXTRA.size + len(snapshot.unknown_extra))


def encode(snapshots: list[Snapshot]) -> bytes:
    """The table of *snapshots*, which have their full extra data. Errors: OSError EFBIG."""
    table = bytearray()
    for item in snapshots:
        id_, name = os.fsencode(item.id), os.fsencode(item.name)
        if len(id_) > 0xFFFF or len(name) > 0xFFFF:
            raise error(errno.EFBIG)
        table += _ENTRY.pack(
            item.l1_offset,
            item.l1_size,
            len(id_),
            len(name),
            item.date_sec & 0xFFFFFFFF,
            item.date_nsec & 0xFFFFFFFF,
            item.vm_clock_nsec & (1 << 64) - 1,
            item.vm_state_size & 0xFFFFFFFF,
            item.extra_size,
        )
        icount = (1 << 64) - 1 if item.icount is None else item.icount & (1 << 64) - 1
        table += _EXTRA.pack(item.vm_state_size, item.disk_size, icount) + item.unknown_extra + id_ + name
        table += bytes(-len(table) % 8)
        if len(table) > MAX_TABLE:
            raise error(errno.EFBIG)
    return bytes(table)
