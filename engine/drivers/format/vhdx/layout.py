"""What a VHDX file is made of: headers, regions, metadata; read with every length checked, and written anew."""

from __future__ import annotations

import errno
import os
import struct
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import read_bytes
from engine.drivers.format.vhdx.crc32c import is_sealed, sealed
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

MIB: Final = 1 << 20
SIGNATURE: Final = b"vhdxfile"
HEADERS: Final = (64 << 10, 128 << 10)
_HEADER_SIZE: Final = 4096
_HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
REGION_TABLES: Final = (192 << 10, 256 << 10)
REGION_TABLE_SIZE: Final = 64 << 10
_REGION: Final = struct.Struct("<16sQII")
_ITEM: Final = struct.Struct("<16sIII4x")
_MAX_ENTRIES: Final = 2047
_ITEMS_AT: Final = 64 << 10
NO_GUID: Final = bytes(16)
MIN_BLOCK, MAX_BLOCK = MIB, 256 * MIB
MAX_LENGTH: Final = 64 << 40


def guid(text: str) -> bytes:
    """A GUID as it lies in the file."""
    return uuid.UUID(text).bytes_le


BAT: Final = guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA: Final = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS: Final = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE: Final = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID: Final = guid("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR: Final = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR: Final = guid("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT: Final = guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_NEEDED: Final = (FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR)
HAS_PARENT: Final = 2
_REQUIRED: Final = 4


def invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@dataclass
class Header:
    """One of the two headers; log_length and log_offset in bytes. place: where it lies."""

    sequence: int
    file_guid: bytes
    data_guid: bytes
    log_guid: bytes
    log_length: int
    log_offset: int
    place: int = HEADERS[0]

    def encode(self) -> bytes:
        head = _HEADER.pack(
            b"head",
            0,
            self.sequence,
            self.file_guid,
            self.data_guid,
            self.log_guid,
            0,
            1,
            self.log_length,
            self.log_offset,
        )
        return sealed(head.ljust(_HEADER_SIZE, b"\0"))


@dataclass
class Layout:
    """Where everything is. regions: (start, end) of what blocks must keep off. All in bytes."""

    header: Header
    bat_offset: int = 0
    bat_size: int = 0
    metadata_offset: int = 0
    metadata_size: int = 0
    block_size: int = 0
    length: int = 0
    sector_size: int = 512
    regions: list[tuple[int, int]] = field(default_factory=list)

    @property
    def chunk_ratio(self) -> int:
        """Blocks after which an entry of a sector bitmap comes in the table."""
        return (self.sector_size << 23) // self.block_size

    @property
    def bat_entries(self) -> int:
        blocks = -(-self.length // self.block_size)
        return blocks + max(blocks - 1, 0) // self.chunk_ratio


def read_header(file: Child) -> Header:
    """The newer of the two headers. Errors: GenericError, OSError."""
    if read_bytes(file, 0, 8) != SIGNATURE:
        raise invalid()
    best: Header | None = None
    for place in HEADERS:
        raw = read_bytes(file, place, _HEADER_SIZE)
        magic, _, sequence, file_guid, data_guid, log_guid, _, version, length, offset = _HEADER.unpack_from(raw)
        if magic != b"head" or version != 1 or not is_sealed(raw):
            continue
        if best is None or sequence > best.sequence:
            best = Header(sequence, file_guid, data_guid, log_guid, length, offset, place)
    if best is None:
        raise GenericError("No valid VHDX header found")
    return best


def read_layout(file: Child, header: Header) -> Layout:
    """Regions and metadata. Errors: GenericError, OSError EINVAL for what can't be, ENOTSUP for what isn't known."""
    layout = Layout(header)
    _claim(layout, 0, MIB)
    if header.log_length:
        _claim(layout, header.log_offset, header.log_length)
    _read_regions(file, layout)
    _read_metadata(file, layout)
    if layout.bat_entries * 8 > layout.bat_size:
        raise invalid()
    return layout


def _claim(layout: Layout, start: int, size: int) -> None:
    end = start + size
    if end > 1 << 63:
        raise invalid()
    for other, other_end in layout.regions:
        if start < other_end and other < end:
            raise GenericError(f"VHDX region {start}-{end} overlaps with region {other}-{other_end}")
    layout.regions.append((start, end))


def _read_regions(file: Child, layout: Layout) -> None:
    for place in REGION_TABLES:
        raw = bytes(read_bytes(file, place, REGION_TABLE_SIZE))
        if raw[:4] == b"regi" and is_sealed(raw):
            break
    else:
        raise invalid()
    count = int.from_bytes(raw[8:12], "little")
    if count > _MAX_ENTRIES:
        raise invalid()
    seen: set[bytes] = set()
    for at in range(16, 16 + count * _REGION.size, _REGION.size):
        name, offset, size, required = _REGION.unpack_from(raw, at)
        if name in seen or offset < MIB or offset % MIB or size % MIB:
            raise invalid()
        seen.add(name)
        _claim(layout, offset, size)
        if name == BAT:
            layout.bat_offset, layout.bat_size = offset, size
        elif name == METADATA:
            layout.metadata_offset, layout.metadata_size = offset, size
        elif required & 1:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if not (layout.bat_offset and layout.metadata_offset):
        raise invalid()


def _read_metadata(file: Child, layout: Layout) -> None:
    start, room = layout.metadata_offset, layout.metadata_size
    raw = bytes(read_bytes(file, start, _ITEMS_AT))
    count = int.from_bytes(raw[10:12], "little")
    if raw[:8] != b"metadata" or count > _MAX_ENTRIES:
        raise invalid()
    found: dict[bytes, bytes] = {}
    for at in range(32, 32 + count * _ITEM.size, _ITEM.size):
        name, offset, _, flags = _ITEM.unpack_from(raw, at)
        if name in found:
            raise invalid()
        if name in _NEEDED:
            if offset < _ITEMS_AT or offset + 16 > room:
                raise invalid()
            found[name] = bytes(read_bytes(file, start + offset, 16))
        elif flags & _REQUIRED and name != PARENT:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if len(found) < len(_NEEDED):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    block, flags = struct.unpack_from("<II", found[FILE_PARAMETERS])
    layout.block_size = block
    layout.length = int.from_bytes(found[DISK_SIZE][:8], "little")
    layout.sector_size = int.from_bytes(found[LOGICAL_SECTOR][:4], "little")
    if flags & HAS_PARENT:
        # Differencing images: their parents are named in ways that QEMU, too, knows nothing of.
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & (block - 1):
        raise invalid()
    if layout.sector_size != 512:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if layout.length > MAX_LENGTH or layout.length % layout.sector_size:
        raise invalid()


def write_header(file: Child, header: Header) -> None:
    """Make *header* the current one: it takes the other's place, with the next number. Errors: OSError."""
    header.sequence += 1
    header.place = HEADERS[1] if header.place == HEADERS[0] else HEADERS[0]
    file.write(header.place, memoryview(header.encode()))
    file.flush()


def region_table(entries: list[tuple[bytes, int, int]]) -> bytes:
    """A region table of (guid, offset, size)."""
    raw = struct.pack("<4sIII", b"regi", 0, len(entries), 0)
    raw += b"".join(_REGION.pack(name, offset, size, 1) for name, offset, size in entries)
    return sealed(raw.ljust(REGION_TABLE_SIZE, b"\0"))


def metadata_region(length: int, block_size: int, *, fixed: bool) -> bytes:
    """The table of metadata and its items, from the region's begin on."""
    items = (
        (FILE_PARAMETERS, struct.pack("<II", block_size, 1 if fixed else 0), 4),
        (DISK_SIZE, length.to_bytes(8, "little"), 6),
        (DISK_ID, uuid.uuid4().bytes, 6),
        (LOGICAL_SECTOR, (512).to_bytes(4, "little"), 6),
        (PHYSICAL_SECTOR, (512).to_bytes(4, "little"), 6),
    )
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    body = b""
    for name, value, flags in items:
        table += _ITEM.pack(name, _ITEMS_AT + len(body), len(value), flags)
        body += value
    return table.ljust(_ITEMS_AT, b"\0") + body.ljust(4096, b"\0")
