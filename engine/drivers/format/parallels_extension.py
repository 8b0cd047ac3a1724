"""The format extension of parallels images: one cluster with features, of which dirty bitmaps are the only one known.

The bitmaps are loaded when the image is opened read-only; an image open for writing has none, and keeps the extension
as it is (QEMU does the same).
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import TYPE_CHECKING, Final

from engine.bitmaps.dirty import DirtyBitmap, find_bitmap
from engine.bitmaps.hbitmap import HBitmap
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from engine.drivers.format.parallels import ParallelsDriver

MAGIC: Final = 0xAB234CEF23DCEA87
DIRTY_BITMAP: Final = 0x20385FAE252CB34A
SECTOR: Final = 512
_HEADER: Final = struct.Struct("<Q16s")
_FEATURE: Final = struct.Struct("<QQII")
_BITMAP: Final = struct.Struct("<Q16sII")
_ALL_ONES: Final = 1
"""Entry of a bitmap's table: all bits of the part are set. 0: none is."""
_MAX_GRANULARITY: Final = 1 << 31


def load(driver: ParallelsDriver, offset: int) -> None:
    """Give the driver's node the bitmaps of the extension at *offset* of the file. Errors: GenericError, OSError."""
    cluster = driver.cluster
    if offset + cluster > driver.file.length:
        raise GenericError("The format extension is not within the file")
    content = bytearray(cluster)
    driver.file.read(offset, memoryview(content))
    magic, digest = _HEADER.unpack_from(content)
    if magic != MAGIC:
        raise GenericError(f"Wrong parallels Format Extension magic: 0x{magic:x}, expected: 0x{MAGIC:x}")
    rest = memoryview(content)[_HEADER.size :]
    if hashlib.md5(rest, usedforsecurity=False).digest() != digest:
        raise GenericError("Wrong checksum in Format Extension header. Format extension is corrupted.")
    while True:
        if len(rest) < _FEATURE.size:
            raise GenericError(
                f"Can not read feature header, as remaining bytes ({len(rest)}) in Format Extension is less than "
                f"Feature header size ({_FEATURE.size})"
            )
        magic, flags, size, _ = _FEATURE.unpack_from(rest)
        rest = rest[_FEATURE.size :]
        if flags:
            raise GenericError("Flags for extension feature are unsupported")
        if size > len(rest):
            raise GenericError("Feature data_size exceedes Format Extension cluster")
        if magic == 0:
            return
        if magic != DIRTY_BITMAP:
            raise GenericError(f"Unknown feature: 0x{magic:x}")
        _load_bitmap(driver, rest[:size])
        rest = rest[-(-size // 8) * 8 :]


def _load_bitmap(driver: ParallelsDriver, data: memoryview) -> None:
    if len(data) < _BITMAP.size:
        raise GenericError(
            f"Too small Bitmap Feature area in Parallels Format Extension: {len(data)} bytes, "
            f"expected at least {_BITMAP.size} bytes"
        )
    sectors, identifier, granularity, count = _BITMAP.unpack_from(data)
    if _BITMAP.size + count * 8 > len(data):
        raise GenericError("Bitmaps feature corrupted: l1 table exceeds extension data_size")
    if sectors * SECTOR != driver.length:
        raise GenericError(
            f"Bitmap size (in sectors) {sectors} differs from disk size in sectors {driver.length // SECTOR}"
        )
    granularity *= SECTOR
    if granularity > _MAX_GRANULARITY or granularity.bit_count() != 1:
        raise GenericError(f"Bitmap granularity {granularity} is not a power of two between 512 and 2G")
    covered = granularity * driver.cluster * 8
    expected = -(-driver.length // covered)
    if count != expected:
        raise GenericError(
            f"Bitmap table size {count} does not correspond to bitmap size and cluster size. Expected {expected}"
        )
    name = str(uuid.UUID(bytes=identifier))
    if find_bitmap(driver.node, name) is not None:
        raise GenericError(f"Bitmap already exists: {name}")
    bitmap = DirtyBitmap(driver.node, granularity, name)
    bits = HBitmap(bitmap.length, granularity)
    for index, entry in enumerate(struct.unpack_from(f"<{count}Q", data, _BITMAP.size)):
        start = index * covered
        length = min(covered, bitmap.length - start)
        if entry == _ALL_ONES:
            bits.set(start, length)
        elif entry:
            part = bytearray(-(-length // (8 * granularity)))
            try:
                driver.file.read(entry * SECTOR, memoryview(part))
            except OSError as exc:
                raise GenericError(f"Failed to read bitmap data cluster: {os_error_text(exc)}") from exc
            bits.deserialise(start, length, bytes(part))
    bitmap.replace_bits(bits)
    bitmap.readonly = True
    bitmap.attach()
