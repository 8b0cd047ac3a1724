"""The directory of persistent dirty bitmaps, read for information and for checking. Source: qcow2 specification."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from engine.drivers.format.qcow2.header import MAX_BACKING_NAME, Header
from engine.drivers.format.qcow2.storage import Child, read_bytes, round_up
from engine.errors import GenericError

IN_USE: Final = 1
AUTO: Final = 2
EXTRA_DATA_COMPATIBLE: Final = 4
_FLAGS: Final = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE
TABLE_OFFSET: Final = 0x00FFFFFFFFFFFE00
MAX_TABLE_ENTRIES: Final = 0x8000000
MAX_PHYSICAL_SIZE: Final = 0x20000000
_ENTRY: Final = struct.Struct(">QIIBBHI")


@dataclass(frozen=True, slots=True)
class BitmapEntry:
    """One entry of the directory; granularity in bytes, table_entries of 8 bytes at host offset table_offset."""

    name: str
    table_offset: int
    table_entries: int
    flags: int
    granularity: int


def read_directory(file: Child, header: Header) -> list[BitmapEntry]:
    """Entries of the valid bitmaps extension, [] without one. Errors: GenericError for a bad one, OSError."""
    if header.bitmaps is None:
        return []
    size = header.bitmaps.directory_size
    if header.bitmaps.directory_offset + size > file.length:
        raise GenericError("Failed to read bitmap directory: it exceeds the file")
    data = bytes(read_bytes(file, header.bitmaps.directory_offset, size))
    found = []
    at = 0
    while at + _ENTRY.size <= size:
        offset, entries, flags, kind, bits, name_size, extra_size = _ENTRY.unpack_from(data, at)
        length = round_up(_ENTRY.size + extra_size + name_size, 8)
        if at + length > size:
            raise GenericError("Bitmap directory is broken: an entry exceeds it")
        if extra_size:
            raise GenericError("Bitmap extra data is not supported")
        name = os.fsdecode(data[at + _ENTRY.size : at + _ENTRY.size + name_size])
        usable = (
            entries
            and entries <= MAX_TABLE_ENTRIES
            and offset
            and not offset & (header.cluster_size - 1)
            and not flags & ~_FLAGS
            and kind == 1
            and 9 <= bits <= 31
            and 0 < name_size <= MAX_BACKING_NAME
            and entries << header.cluster_bits <= MAX_PHYSICAL_SIZE
        )
        if not usable:
            raise GenericError(f"Bitmap '{name}' doesn't satisfy the constraints")
        found.append(BitmapEntry(name, offset, entries, flags, 1 << bits))
        if len(found) > header.bitmaps.count:
            raise GenericError("More bitmaps found than specified in header extension")
        at += length
    if len(found) != header.bitmaps.count:
        raise GenericError("Less bitmaps found than specified in header extension")
    return found
