"""The table of internal snapshots: read and checked, never written here.

Snapshots share clusters with the active image. Their refcounts are above one, so the COPIED flags of the active
tables are off and writes copy; the table and the snapshots' own L1 tables are left as they are.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from engine.drivers.format.qcow2.header import SNAPSHOT_HEADER_SIZE, Header
from engine.drivers.format.qcow2.storage import Child, read_bytes, round_up
from engine.errors import GenericError, os_error_text

MAX_EXTRA: Final = 1024
MAX_TABLE: Final = 64 << 20
_ENTRY: Final = struct.Struct(">QIHHIIQII")
_EXTRA: Final = struct.Struct(">QQQ")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One internal snapshot. Sizes are bytes; date in seconds and nanoseconds since the epoch; icount None if
    unknown.
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
    table_bytes: int


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
        table_bytes=round_up(SNAPSHOT_HEADER_SIZE + extra_size + id_size + name_size, 8),
    )
