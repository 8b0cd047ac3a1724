"""The directory of persistent dirty bitmaps and their tables as they are on disk. Source: qcow2 specification."""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.bitmaps.hbitmap import HBitmap
from engine.drivers.format.qcow2.header import MAX_BACKING_NAME, Header
from engine.drivers.format.qcow2.storage import Child, error, read_bytes, round_up
from engine.drivers.format.qcow2.tables import from_disk
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image

IN_USE: Final = 1
AUTO: Final = 2
_FLAGS: Final = IN_USE | AUTO
"""Those that QEMU accepts; the third of the specification is about extra data, which QEMU does not."""
TABLE_OFFSET: Final = 0x00FFFFFFFFFFFE00
ALL_ONES: Final = 1
"""Table entry of a cluster that is not stored because all its bits are set; 0 means that none is."""
MAX_TABLE_ENTRIES: Final = 0x8000000
MAX_PHYSICAL_SIZE: Final = 0x20000000
MIN_GRANULARITY_BITS: Final = 9
MAX_GRANULARITY_BITS: Final = 31
MAX_NAME: Final = MAX_BACKING_NAME
_DIRTY_TRACKING: Final = 1
_ENTRY: Final = struct.Struct(">QIIBBHI")
_FLAGS_AT: Final = 12


@dataclass(frozen=True, slots=True)
class BitmapEntry:
    """One entry of the directory; granularity in bytes, table_entries of 8 bytes at host offset table_offset."""

    name: str
    table_offset: int
    table_entries: int
    flags: int
    granularity: int

    @property
    def in_use(self) -> bool:
        """Whoever had the image open for writing has not stored the bitmap: its bits mean nothing."""
        return bool(self.flags & IN_USE)

    def encode(self) -> bytes:
        """The entry as on disk."""
        name = os.fsencode(self.name)
        bits = self.granularity.bit_length() - 1
        data = _ENTRY.pack(self.table_offset, self.table_entries, self.flags, _DIRTY_TRACKING, bits, len(name), 0)
        return data + name + bytes(-(len(data) + len(name)) % 8)


def entry_size(name: str) -> int:
    """Bytes that the entry of a bitmap called *name* takes in the directory."""
    return round_up(_ENTRY.size + len(os.fsencode(name)), 8)


def encode_directory(entries: Iterable[BitmapEntry]) -> bytes:
    """A whole directory as on disk."""
    return b"".join(entry.encode() for entry in entries)


def bits_per_cluster(image: Image, granularity: int) -> int:
    """Bytes of the disk that one cluster of a bitmap's bits stands for."""
    return image.cluster_size * 8 * granularity


def read_directory(file: Child, header: Header) -> list[BitmapEntry]:
    """Entries of the valid bitmaps extension, [] without one. Errors: GenericError for a bad one, OSError."""
    if header.bitmaps is None:
        return []
    size = header.bitmaps.directory_size
    if not size:
        raise GenericError("Requested bitmap directory size is zero")
    data = bytes(read_bytes(file, header.bitmaps.directory_offset, size))
    found: list[BitmapEntry] = []
    at = 0
    while at < size:
        if at + _ENTRY.size > size:
            raise GenericError("Broken bitmap directory")
        if len(found) == header.bitmaps.count:
            raise GenericError("More bitmaps found than specified in header extension")
        offset, entries, flags, kind, bits, name_size, extra_size = _ENTRY.unpack_from(data, at)
        length = round_up(_ENTRY.size + extra_size + name_size, 8)
        if extra_size:
            raise GenericError("Bitmap extra data is not supported")
        if at + length > size:
            raise GenericError("Broken bitmap directory")
        name = os.fsdecode(data[at + _ENTRY.size : at + _ENTRY.size + name_size])
        physical = entries << header.cluster_bits
        usable = (
            entries
            and entries <= MAX_TABLE_ENTRIES
            and offset
            and not offset & (header.cluster_size - 1)
            and not flags & ~_FLAGS
            and kind == _DIRTY_TRACKING
            and MIN_GRANULARITY_BITS <= bits <= MAX_GRANULARITY_BITS
            and name_size <= MAX_NAME
            and physical <= MAX_PHYSICAL_SIZE
            and (flags & IN_USE or header.size <= (physical * 8) << bits)
        )
        if not usable:
            raise GenericError(f"Bitmap '{name}' doesn't satisfy the constraints")
        found.append(BitmapEntry(name, offset, entries, flags, 1 << bits))
        at += length
    if len(found) != header.bitmaps.count:
        raise GenericError("Less bitmaps found than specified in header extension")
    return found


def check_constraints(image: Image, name: str, granularity: int, length: int) -> None:
    """Whether a bitmap of a disk of *length* bytes can be stored. Errors: GenericError."""
    if granularity >> MAX_GRANULARITY_BITS > 1:
        raise GenericError(f"Granularity exceeds maximum ({1 << MAX_GRANULARITY_BITS} bytes)")
    if granularity < 1 << MIN_GRANULARITY_BITS:
        raise GenericError(f"Granularity is under minimum ({1 << MIN_GRANULARITY_BITS} bytes)")
    if len(os.fsencode(name)) > MAX_NAME:
        raise GenericError(f"Name length exceeds maximum ({MAX_NAME} characters)")
    granules = (length + granularity - 1) // granularity
    needed = (granules + 7) // 8
    if needed > MAX_PHYSICAL_SIZE or needed > MAX_TABLE_ENTRIES * image.cluster_size:
        raise GenericError("Too much space will be occupied by the bitmap. Use larger granularity")


def read_table(image: Image, entry: BitmapEntry) -> array[int]:
    """The table of a bitmap, each entry checked. Errors: OSError, also for an impossible table."""
    table = from_disk(read_bytes(image.file, entry.table_offset, entry.table_entries * 8))
    for word in table:
        offset = word & TABLE_OFFSET
        if word != (offset or word & ALL_ONES) or offset & image.cluster_mask:
            raise error(errno.EINVAL)
    return table


def read_bits(image: Image, entry: BitmapEntry, length: int) -> HBitmap:
    """The bits of a bitmap of a disk of *length* bytes. Errors: GenericError."""
    try:
        table = read_table(image, entry)
    except OSError as exc:
        raise GenericError(
            f"Could not read bitmap_table table from image for bitmap '{entry.name}': {os_error_text(exc)}"
        ) from exc
    try:
        return _read_bits(image, entry, length, table)
    except OSError as exc:
        raise GenericError(f"Could not read bitmap '{entry.name}' from image: {os_error_text(exc)}") from exc


def is_whole(image: Image, entry: BitmapEntry) -> bool:
    """Whether the table and the bits lie within the file. Beyond it all is zeros: a bitmap cut off would lie."""
    end = image.file.length
    if entry.table_offset + entry.table_entries * 8 > end:
        return False
    try:
        return all((word & TABLE_OFFSET) < end for word in read_table(image, entry))
    except OSError:
        return False


def _read_bits(image: Image, entry: BitmapEntry, length: int, table: array[int]) -> HBitmap:
    bits = HBitmap(length, entry.granularity)
    step = bits_per_cluster(image, entry.granularity)
    if len(table) != max(-(-length // step), 0):
        raise error(errno.EINVAL)
    for index, word in enumerate(table):
        start = index * step
        count = min(step, length - start)
        if word == ALL_ONES:
            bits.set(start, count)
        elif word:
            granules = -(-count // entry.granularity)
            bits.deserialise(start, count, bytes(read_bytes(image.file, word, (granules + 7) // 8)))
    return bits


def clusters_of(image: Image, entry: BitmapEntry) -> Iterator[tuple[int, int]]:
    """(host cluster, count) of all that a bitmap occupies; what its table can't be read for is left out."""
    try:
        table = read_table(image, entry)
    except OSError:
        # Nobody knows what belongs to it: the clusters leak, which a check repairs.
        return
    end = image.file.length
    for word in table:
        if 0 < word & TABLE_OFFSET < end:
            yield word >> image.cluster_bits, 1
    if entry.table_offset < end:
        yield entry.table_offset >> image.cluster_bits, -(-entry.table_entries * 8 // image.cluster_size)
