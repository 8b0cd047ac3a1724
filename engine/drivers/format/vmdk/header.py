"""Headers of sparse extents: hosted (KDMV), ESX (COWD) and SE sparse; each comes down to one Geometry."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from array import array

    from engine.drivers.format.qcow2.storage import Child

SECTOR: Final = 512
HOSTED_MAGIC: Final = b"KDMV"
ESX_MAGIC: Final = b"COWD"

REDUNDANT: Final = 1 << 1
ZEROED_GRAINS: Final = 1 << 2
COMPRESSED: Final = 1 << 16
MARKERS: Final = 1 << 17
NEWLINE_TEST: Final = 1 << 0
DEFLATE: Final = 1
GD_AT_END: Final = 0xFFFFFFFFFFFFFFFF
"""Offset of the grain directory that means: the footer knows."""

MAX_GRAIN_SECTORS: Final = 0x200000
MAX_COMPRESSED_GRAIN_SECTORS: Final = 1 << 16
"""Grains that are decompressed as a whole; QEMU takes compressed ones of 1 GiB, too, and as much memory."""
MAX_DIRECTORY: Final = 32 << 20
"""Most entries of a grain directory."""
MAX_TABLE: Final = 512
"""Most entries of a hosted grain table."""

HOSTED: Final = struct.Struct("<IIQQQQIQQQ5sH")
"""version, flags, capacity, grain, descriptor offset and size, entries a table, redundant directory, directory,
overhead (all in sectors), unclean shutdown and the bytes that a transfer as text would change, compression."""
_ESX: Final = struct.Struct("<IIIIIII")
_SE: Final = struct.Struct("<26Q")
_MARKER: Final = struct.Struct("<QII")
_FOOTER_MARKER: Final = 3


def to_little_endian(table: array[int]) -> None:
    """Swap the bytes of entries in memory on machines of the other byte order; the same the other way round."""
    if sys.byteorder != "little":
        table.byteswap()


@dataclass(slots=True)
class Geometry:
    """Where a sparse extent keeps what. Offsets and sizes in bytes, sectors where they are called so.

    directory_entries, table_entries: entries of the grain directory, of one grain table. backup: offset of the second
    directory, 0 for none. tables, grains: for SE sparse, where its numbers of tables and grains count from.
    """

    sectors: int
    grain_sectors: int
    directory: int
    directory_entries: int
    table_entries: int
    backup: int = 0
    entry_size: int = 4
    version: int = 1
    compressed: bool = False
    markers: bool = False
    zeroed_grains: bool = False
    se_sparse: bool = False
    tables: int = 0
    grains: int = 0

    def check(self) -> None:
        """Hold the numbers against the limits. Errors: GenericError."""
        if self.grain_sectors > MAX_GRAIN_SECTORS:
            raise GenericError("Invalid granularity, image may be corrupt")
        if self.directory_entries > MAX_DIRECTORY:
            raise GenericError("L1 size too big")
        if not self.grain_sectors or not self.table_entries:
            raise GenericError("L1 entry size is invalid")
        if self.compressed and self.grain_sectors > MAX_COMPRESSED_GRAIN_SECTORS:
            raise GenericError("Invalid granularity, image may be corrupt")
        if self.sectors >= 1 << 54:
            raise GenericError("The extent is too large")


def fetch(file: Child, offset: int, size: int, name: str, what: str = "header") -> bytearray:
    """Read a header; *name*: the file's, for the error. Errors: GenericError."""
    buffer = bytearray(size)
    try:
        file.read(offset, memoryview(buffer))
    except OSError as exc:
        raise GenericError(f"Could not read {what} from file '{name}': {os_error_text(exc)}") from exc
    return buffer


@dataclass(frozen=True, slots=True)
class Hosted:
    """The fields of a KDMV header that matter, in its own units."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    table_entries: int
    redundant: int
    directory: int
    overhead: int
    compression: int

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Hosted:
        """*data*: what follows the magic."""
        f = HOSTED.unpack_from(data)
        return cls(f[0], f[1], f[2], f[3], f[4], f[6], f[7], f[8], f[9], f[11])


def read_hosted(file: Child, name: str) -> Hosted:
    """The KDMV header at the start of *file*. Errors: GenericError."""
    return Hosted.parse(fetch(file, 4, HOSTED.size, name))


def _footer(file: Child) -> Hosted:
    """The header's second copy, with the markers around it, at the end of a stream. Errors: GenericError."""
    data = bytearray(3 * SECTOR)
    start = file.length // SECTOR * SECTOR - len(data)
    if start < 0:
        raise GenericError("Invalid footer")
    try:
        file.read(start, memoryview(data))
    except OSError as exc:
        raise GenericError(f"Failed to read footer: {os_error_text(exc)}") from exc
    _, size, kind = _MARKER.unpack_from(data)
    if (
        data[SECTOR : SECTOR + 4] != HOSTED_MAGIC
        or size
        or kind != _FOOTER_MARKER
        or _MARKER.unpack_from(data, 2 * SECTOR) != (0, 0, 0)
    ):
        raise GenericError("Invalid footer")
    return Hosted.parse(data[SECTOR + 4 :])


def hosted_geometry(file: Child, header: Hosted, *, writable: bool) -> Geometry:
    """Check a KDMV header. Errors: GenericError."""
    if header.directory == GD_AT_END:
        header = _footer(file)
    compressed = header.compression == DEFLATE
    if header.version > 3:
        raise GenericError(f"Unsupported VMDK version {header.version}")
    if header.version == 3 and writable and not compressed:
        raise GenericError("VMDK version 3 must be read only")
    if header.table_entries > MAX_TABLE:
        raise GenericError("L2 table size too big")
    covered = header.table_entries * header.grain
    if not covered:
        raise GenericError("L1 entry size is invalid")
    if -(-file.length // SECTOR) < header.overhead:
        raise GenericError(f"File truncated, expecting at least {header.overhead * SECTOR} bytes")
    geometry = Geometry(
        sectors=header.capacity,
        grain_sectors=header.grain,
        directory=header.directory * SECTOR,
        directory_entries=-(-header.capacity // covered),
        table_entries=header.table_entries,
        backup=header.redundant * SECTOR if header.flags & REDUNDANT else 0,
        version=header.version,
        compressed=compressed,
        markers=bool(header.flags & MARKERS),
        zeroed_grains=bool(header.flags & ZEROED_GRAINS),
    )
    geometry.check()
    return geometry


def esx_geometry(file: Child, name: str) -> Geometry:
    """Check the COWD header at the start of *file*. Errors: GenericError."""
    _, _, sectors, grain, directory, entries, _ = _ESX.unpack_from(fetch(file, 4, _ESX.size, name))
    geometry = Geometry(
        sectors=sectors,
        grain_sectors=grain,
        directory=directory * SECTOR,
        directory_entries=entries,
        table_entries=4096,
    )
    geometry.check()
    return geometry


def se_geometry(file: Child, name: str) -> Geometry:
    """Check the headers of an SE sparse extent. Errors: GenericError."""
    data = fetch(file, 0, SECTOR, name, "const header")
    f = _SE.unpack_from(data)
    magic, version, capacity, grain, table, flags = f[:6]
    if magic != 0xCAFEBABE:
        raise GenericError(f"Bad const header magic: {magic:#018x}")
    if version != 0x200000001:
        raise GenericError(f"Unsupported version: {version:#018x}")
    if grain != 8:
        raise GenericError(f"Unsupported grain size: {grain}")
    if table != 64:
        raise GenericError(f"Unsupported grain table size: {table}")
    if flags:
        raise GenericError(f"Unsupported flags: {flags:#018x}")
    if any(f[6:10]):
        raise GenericError("Unsupported reserved bits: " + " ".join(f"{value:#018x}" for value in f[6:10]))
    if any(data[_SE.size :]):
        raise GenericError("Unsupported non-zero const header padding")
    volatile = fetch(file, f[10] * SECTOR, SECTOR, name, "volatile header") if f[10] < 1 << 54 else bytearray(SECTOR)
    magic, _, _, replay = struct.unpack_from("<4Q", volatile)
    if magic != 0xCAFECAFE:
        raise GenericError(f"Bad volatile header magic: {magic:#018x}")
    if replay:
        raise GenericError("Image is dirty, Replaying journal not supported")
    if any(volatile[32:]):
        raise GenericError("Unsupported non-zero volatile header padding")
    geometry = Geometry(
        sectors=capacity,
        grain_sectors=grain,
        directory=f[16] * SECTOR,
        directory_entries=f[17] * SECTOR // 8,
        table_entries=table * SECTOR // 8,
        entry_size=8,
        se_sparse=True,
        tables=f[18],
        grains=f[24],
    )
    geometry.check()
    return geometry
