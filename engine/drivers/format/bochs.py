"""bochs: growing disks of the Bochs emulator, read-only. Error texts are QEMU's."""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final

from engine.drivers.format.qcow2.storage import read_bytes
from engine.errors import GenericError
from engine.graph.driver import Driver, Limits, Opening, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Role

_HEADER: Final = struct.Struct("<32s16s16s5I")
_HEADER_SIZE: Final = 512
_V1, _V2 = 0x00010000, 0x00020000
_SECTOR: Final = 512
_NOT_ALLOCATED: Final = 0xFFFFFFFF
_MAX_CATALOG: Final = 0x100000
_MAX_EXTENT: Final = 0x800000


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _is_bochs(head: bytes) -> bool:
    magic, kind, subkind, version, *_ = _HEADER.unpack_from(head)
    return (
        _text(magic) == b"Bochs Virtual HD Image"
        and _text(kind) == b"Redolog"
        and _text(subkind) == b"Growing"
        and version in (_V1, _V2)
    )


@register
class BochsDriver(Driver):
    """Bochs images of type growing: a catalog of extents, each with a bitmap of the sectors that are there."""

    name = "bochs"
    Options = BlockdevOptionsGenericFormat

    file: Edge

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if len(head) >= _HEADER_SIZE and _is_bochs(head) else 0

    def open(self, opening: Opening) -> None:
        opening.fall_back_to_read_only("Image is read-only")
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        head = bytes(read_bytes(file, 0, _HEADER_SIZE))
        if not _is_bochs(head):
            raise GenericError("Image not in Bochs format")
        version, start, entries, bitmap, extent = _HEADER.unpack_from(head)[3:]
        (disk,) = struct.unpack_from("<Q", head, _HEADER.size + (0 if version == _V1 else 4))
        if entries > _MAX_CATALOG:
            raise GenericError("Catalog size is too large")
        self._catalog = array("I", bytes(read_bytes(file, start, entries * 4)))
        if sys.byteorder == "big":
            self._catalog.byteswap()
        self._data = start + entries * 4
        # A bitmap of 0 bytes wraps around, as it does in QEMU.
        self._bitmap_blocks = 1 + ((bitmap - 1) & 0xFFFFFFFF) // _SECTOR
        if extent < _SECTOR:
            raise GenericError("Extent size must be at least 512")
        if extent & (extent - 1):
            raise GenericError(f"Extent size {extent} is not a power of two")
        if extent > _MAX_EXTENT:
            raise GenericError(f"Extent size {extent} is too large")
        self._extent = extent
        sectors = disk // _SECTOR
        if entries < -(-sectors // (extent // _SECTOR)):
            raise GenericError("Catalog size is too small for this disk size")
        self.length = sectors * _SECTOR

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=_SECTOR)

    def read(self, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            inside = (offset + at) % self._extent
            run = min(len(buffer) - at, self._extent - inside)
            number = self._catalog[(offset + at) // self._extent]
            if number == _NOT_ALLOCATED:
                buffer[at : at + run] = bytes(run)
            else:
                self._read_extent(number, inside, buffer[at : at + run])
            at += run

    def _read_extent(self, number: int, inside: int, buffer: memoryview) -> None:
        """Fill *buffer* from *inside* the extent of this number, as its bitmap says."""
        blocks = self._bitmap_blocks + self._extent // _SECTOR
        bitmap = self._data + number * blocks * _SECTOR
        first, end = inside // _SECTOR, (inside + len(buffer)) // _SECTOR
        bits = read_bytes(self.file, bitmap + first // 8, (end - 1) // 8 - first // 8 + 1)
        sector = first
        while sector < end:
            there = self._bit(bits, first, sector)
            stop = sector + 1
            while stop < end and self._bit(bits, first, stop) == there:
                stop += 1
            part = buffer[(sector - first) * _SECTOR : (stop - first) * _SECTOR]
            if there:
                self.file.read(bitmap + (self._bitmap_blocks + sector) * _SECTOR, part)
            else:
                part[:] = bytes(len(part))
            sector = stop

    @staticmethod
    def _bit(bits: bytearray, first: int, sector: int) -> bool:
        return bool(bits[sector // 8 - first // 8] >> sector % 8 & 1)
