"""The qcow2 header and its extensions: parsing with every check an untrusted image needs, and writing.

Source: the qcow2 specification (docs/interop/qcow2.txt of QEMU) and QEMU's limits and error texts.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from dataclasses import dataclass, field

from engine.drivers.format.qcow2.storage import Child, error, read_bytes, round_up
from engine.errors import GenericError, os_error_text

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
V2_HEADER_SIZE = 72
V3_HEADER_SIZE = 104
V3_WRITTEN_SIZE = 112
"""Length of the v3 headers written: with the compression type and its padding."""
SUBCLUSTERS = 32
"""Subclusters of a cluster in images with extended L2 entries."""
MIN_SUBCLUSTER_SIZE = 512

MAX_REFTABLE_BYTES = 8 << 20
MAX_L1_BYTES = 32 << 20
MAX_SNAPSHOTS = 65536
MAX_BACKING_NAME = 1023
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY = MAX_BITMAPS * 1024
SNAPSHOT_HEADER_SIZE = 40
_INT64_MAX = (1 << 63) - 1
_INT_MAX = (1 << 31) - 1


class Incompatible(enum.IntFlag):
    """Incompatible feature bits: an unknown one forbids opening."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4
    ALL = 0x1F


class Compatible(enum.IntFlag):
    """Compatible feature bits: unknown ones may be ignored."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(enum.IntFlag):
    """Autoclear feature bits: a program that does not know one clears it before it writes."""

    BITMAPS = 1 << 0
    RAW_DATA_FILE = 1 << 1
    ALL = 0x3


class ExtensionType(enum.IntEnum):
    """Types of header extensions."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_TABLE = 0x6803F857
    BITMAPS = 0x23852875
    CRYPTO = 0x0537BE77
    DATA_FILE = 0x44415441


ZLIB, ZSTD = 0, 1
"""Compression types."""

_FEATURE_NAMES: tuple[tuple[int, int, bytes], ...] = (
    (0, 0, b"dirty bit"),
    (0, 1, b"corrupt bit"),
    (0, 2, b"external data file"),
    (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"),
    (1, 0, b"lazy refcounts"),
    (2, 0, b"bitmaps"),
    (2, 1, b"raw external data"),
)
"""(kind, bit, name) of the feature name table: kind 0 is incompatible, 1 compatible, 2 autoclear."""
_FEATURE_ENTRY = struct.Struct(">BB46s")
FEATURE_TABLE_MIN_CLUSTER = 8192
"""Smaller clusters get no feature name table: it would crowd out the backing file name (QEMU does the same)."""

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BITMAPS = struct.Struct(">IIQQ")


@dataclass(slots=True)
class BitmapsExtension:
    """Where the directory of persistent bitmaps is."""

    count: int
    directory_size: int
    directory_offset: int


@dataclass(slots=True)
class Header:
    """All the header says. Offsets and sizes are bytes unless named otherwise; names are decoded as file names are.

    extensions: those of unknown type as (type, data), kept when the header is rewritten. bitmaps: None unless the
    extension is valid. stale_bitmaps: its bytes when the autoclear bit says that it is out of date.
    """

    version: int = 3
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = 0
    l1_size: int = 0
    l1_offset: int = 0
    reftable_offset: int = 0
    reftable_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = ZLIB
    unknown_fields: bytes = b""
    backing_file: str = ""
    backing_format: str = ""
    data_file: str = ""
    crypto: tuple[int, int] | None = None
    bitmaps: BitmapsExtension | None = None
    stale_bitmaps: bytes = b""
    extensions: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        return bool(self.incompatible & Incompatible.EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        return bool(self.incompatible & Incompatible.DATA_FILE)

    @property
    def data_file_raw(self) -> bool:
        return self.has_data_file and bool(self.autoclear & Autoclear.RAW_DATA_FILE)

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_coverage(self) -> int:
        """Bytes of the guest's disk that one L2 table maps."""
        return (self.cluster_size // self.l2_entry_size) << self.cluster_bits

    def l1_entries_for(self, size: int) -> int:
        """L1 entries needed for a disk of *size* bytes."""
        return -(-size // self.l2_coverage)


def check_table(header: Header, offset: int, entries: int, entry_size: int, limit: int, what: str) -> None:
    """Refuse a table that is too large (*limit* bytes), misaligned, or reaches past any file. Errors: GenericError."""
    if entries > limit // entry_size:
        raise GenericError(f"{what} too large")
    if offset > _INT64_MAX - entries * entry_size or offset & (header.cluster_size - 1):
        raise GenericError(f"{what} offset invalid")


def _decode(name: bytes) -> str:
    return os.fsdecode(name.split(b"\0", 1)[0])


def _unsupported_features(unknown: int, table: bytes) -> GenericError:
    names = []
    for at in range(0, len(table) - _FEATURE_ENTRY.size + 1, _FEATURE_ENTRY.size):
        kind, bit, name = _FEATURE_ENTRY.unpack_from(table, at)
        if kind == 0 and bit < 64 and unknown & (1 << bit):
            names.append(name.split(b"\0", 1)[0].decode("utf-8", "replace"))
            unknown &= ~(1 << bit)
    if unknown:
        names.append(f"Unknown incompatible feature: {unknown:x}")
    return GenericError(f"Unsupported qcow2 feature(s): {', '.join(names)}")


def parse(file: Child, *, writable: bool = False, check: bool = False) -> Header:
    """Read and check the header of *file*.

    writable: refuse images marked corrupt. check: let pass what a repair can deal with. Errors: GenericError; OSError
    when reading fails.
    """
    try:
        head = bytes(read_bytes(file, 0, V3_WRITTEN_SIZE))
    except OSError as exc:
        raise GenericError(f"Could not read qcow2 header: {os_error_text(exc)}") from exc
    fields = _V2.unpack_from(head)
    magic, version, backing_offset, backing_size, cluster_bits = fields[:5]
    if magic != MAGIC:
        raise GenericError("Image is not in qcow2 format")
    if not 2 <= version <= 3:
        raise GenericError(f"Unsupported qcow2 version {version}")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise GenericError(f"Unsupported cluster size: 2^{cluster_bits}")
    header = Header(version, cluster_bits, *fields[5:])
    cluster_size = header.cluster_size
    header_length = V2_HEADER_SIZE
    if version == 3:
        (
            header.incompatible,
            header.compatible,
            header.autoclear,
            header.refcount_order,
            header_length,
        ) = _V3.unpack_from(head, V2_HEADER_SIZE)
        if header_length < V3_HEADER_SIZE:
            raise GenericError("qcow2 header too short")
    if header_length > cluster_size:
        raise GenericError("qcow2 header exceeds cluster size")
    if header_length > V3_HEADER_SIZE:
        header.compression_type = head[V3_HEADER_SIZE]
    if header_length > V3_WRITTEN_SIZE:
        header.unknown_fields = bytes(read_bytes(file, V3_WRITTEN_SIZE, header_length - V3_WRITTEN_SIZE))
    if backing_offset > cluster_size:
        raise GenericError("Invalid backing file offset")
    end = backing_offset or cluster_size
    area = bytes(read_bytes(file, 0, cluster_size))

    unknown = header.incompatible & ~int(Incompatible.ALL)
    if unknown:
        raise _unsupported_features(unknown, _feature_table(area, header_length, end))
    _check_features(header, writable and not check)
    _check_tables(header, check)
    _parse_extensions(header, area, header_length, end)
    if backing_offset:
        if backing_size > min(MAX_BACKING_NAME, cluster_size - backing_offset):
            raise GenericError("Backing file name too long")
        header.backing_file = os.fsdecode(area[backing_offset : backing_offset + backing_size])
    return header


def _check_features(header: Header, writable: bool) -> None:
    if header.incompatible & Incompatible.CORRUPT and writable:
        raise GenericError("qcow2: Image is corrupt; cannot be opened read/write")
    has_bit = bool(header.incompatible & Incompatible.COMPRESSION)
    if header.compression_type not in (ZLIB, ZSTD):
        raise GenericError(f"qcow2: unknown compression type: {header.compression_type}")
    if header.compression_type != ZLIB and not has_bit:
        raise GenericError("qcow2: Compression type incompatible feature bit must be set")
    if header.compression_type == ZLIB and has_bit:
        raise GenericError("qcow2: Compression type incompatible feature bit must not be set")
    if header.extended_l2 and header.cluster_size // SUBCLUSTERS < MIN_SUBCLUSTER_SIZE:
        raise GenericError(f"Unsupported subcluster size: {header.cluster_size // SUBCLUSTERS}")
    if header.refcount_order > 6:
        raise GenericError("Reference count entry width too large; may not exceed 64 bits")
    if header.crypt_method > 2:
        raise GenericError(f"Unsupported encryption method {header.crypt_method}")


def _check_tables(header: Header, check: bool) -> None:
    entries = header.reftable_clusters << (header.cluster_bits - 3)
    if not entries and not check:
        raise GenericError("Image does not contain a reference count table")
    check_table(header, header.reftable_offset, entries, 8, MAX_REFTABLE_BYTES, "Reference count table")
    limit = SNAPSHOT_HEADER_SIZE * MAX_SNAPSHOTS
    check_table(header, header.snapshots_offset, header.nb_snapshots, SNAPSHOT_HEADER_SIZE, limit, "Snapshot table")
    check_table(header, header.l1_offset, header.l1_size, 8, MAX_L1_BYTES, "Active L1 table")
    needed = header.l1_entries_for(header.size)
    if needed > _INT_MAX:
        raise GenericError("Image is too big")
    if header.l1_size < needed:
        raise GenericError("L1 table is too small")


def _walk_extensions(area: bytes, start: int, end: int) -> list[tuple[int, bytes]]:
    found = []
    at = start
    while at + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(area, at)
        at += _EXTENSION.size
        if size > end - at:
            raise GenericError("Header extension too large")
        if kind == ExtensionType.END:
            break
        found.append((kind, area[at : at + size]))
        at += round_up(size, 8)
    return found


def _feature_table(area: bytes, start: int, end: int) -> bytes:
    """The feature name table for an error text; b'' when it can't be found."""
    try:
        found = _walk_extensions(area, start, end)
    except GenericError:
        return b""
    return next((data for kind, data in found if kind == ExtensionType.FEATURE_TABLE), b"")


def _parse_extensions(header: Header, area: bytes, start: int, end: int) -> None:
    for kind, data in _walk_extensions(area, start, end):
        if kind == ExtensionType.BACKING_FORMAT:
            if len(data) >= 16:
                raise GenericError(f"ERROR: ext_backing_format: len={len(data)} too large (>=16)")
            header.backing_format = _decode(data)
        elif kind == ExtensionType.DATA_FILE:
            header.data_file = _decode(data)
        elif kind == ExtensionType.CRYPTO:
            header.crypto = _parse_crypto(header, data)
        elif kind == ExtensionType.BITMAPS:
            _parse_bitmaps(header, data)
        elif kind != ExtensionType.FEATURE_TABLE:
            header.extensions.append((kind, data))


def _parse_crypto(header: Header, data: bytes) -> tuple[int, int]:
    if header.crypt_method != 2:
        raise GenericError("CRYPTO header extension only expected with LUKS encryption method")
    if len(data) != 16:
        raise GenericError(f"CRYPTO header extension size {len(data)}, but expected size 16")
    offset, length = struct.unpack(">QQ", data)
    if offset & (header.cluster_size - 1):
        raise GenericError(
            f"Encryption header offset '{offset}' is not a multiple of cluster size '{header.cluster_size}'"
        )
    return offset, length


def _parse_bitmaps(header: Header, data: bytes) -> None:
    if len(data) != _BITMAPS.size:
        raise GenericError("bitmaps_ext: Invalid extension length")
    if not header.autoclear & Autoclear.BITMAPS:
        header.stale_bitmaps = data
        return
    count, reserved, size, offset = _BITMAPS.unpack(data)
    if reserved:
        raise GenericError("bitmaps_ext: Reserved field is not zero")
    if count > MAX_BITMAPS:
        raise GenericError(
            f"bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}"
        )
    if not count:
        raise GenericError("found bitmaps extension with zero bitmaps")
    if offset & (header.cluster_size - 1):
        raise GenericError("bitmaps_ext: invalid bitmap directory offset")
    if size > MAX_BITMAP_DIRECTORY:
        raise GenericError(
            f"bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size ({MAX_BITMAP_DIRECTORY})"
        )
    header.bitmaps = BitmapsExtension(count, size, offset)


def encode_bitmaps(found: BitmapsExtension) -> bytes:
    """The bitmaps extension's data as on disk."""
    return _BITMAPS.pack(found.count, 0, found.directory_size, found.directory_offset)


def _extension(kind: int, data: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


def encode(header: Header) -> bytes:
    """The header with extensions and backing file name as on disk. Errors: OSError ENOSPC if it exceeds a cluster."""
    parts = []
    if header.backing_format:
        parts.append(_extension(ExtensionType.BACKING_FORMAT, os.fsencode(header.backing_format)))
    if header.has_data_file and header.data_file:
        parts.append(_extension(ExtensionType.DATA_FILE, os.fsencode(header.data_file)))
    if header.crypto is not None:
        parts.append(_extension(ExtensionType.CRYPTO, struct.pack(">QQ", *header.crypto)))
    if header.version >= 3 and header.cluster_size >= FEATURE_TABLE_MIN_CLUSTER:
        table = b"".join(_FEATURE_ENTRY.pack(*entry) for entry in _FEATURE_NAMES)
        parts.append(_extension(ExtensionType.FEATURE_TABLE, table))
    if header.bitmaps is not None:
        parts.append(_extension(ExtensionType.BITMAPS, encode_bitmaps(header.bitmaps)))
    elif header.stale_bitmaps:
        parts.append(_extension(ExtensionType.BITMAPS, header.stale_bitmaps))
    parts.extend(_extension(kind, data) for kind, data in header.extensions)
    parts.append(_EXTENSION.pack(ExtensionType.END, 0))
    extensions = b"".join(parts)

    header_length = V2_HEADER_SIZE if header.version == 2 else V3_WRITTEN_SIZE + len(header.unknown_fields)
    name = os.fsencode(header.backing_file)
    if len(name) > MAX_BACKING_NAME:
        raise error(errno.EINVAL)
    backing_offset = header_length + len(extensions) if name else 0
    head = _V2.pack(
        MAGIC,
        header.version,
        backing_offset,
        len(name),
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_offset,
        header.reftable_offset,
        header.reftable_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    )
    if header.version >= 3:
        head += _V3.pack(header.incompatible, header.compatible, header.autoclear, header.refcount_order, header_length)
        head += bytes([header.compression_type]) + bytes(7) + header.unknown_fields
    whole = head + extensions + name
    if len(whole) > header.cluster_size:
        raise error(errno.ENOSPC)
    return whole


def encode_features(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the three feature words alone."""
    return V2_HEADER_SIZE, struct.pack(">QQQ", header.incompatible, header.compatible, header.autoclear)


def encode_l1_location(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the place and size of the L1 table."""
    return 36, struct.pack(">IQ", header.l1_size, header.l1_offset)


def encode_reftable_location(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the place and size of the refcount table."""
    return 48, struct.pack(">QI", header.reftable_offset, header.reftable_clusters)


def encode_snapshots_location(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the number of snapshots and the place of their table."""
    return 60, struct.pack(">IQ", header.nb_snapshots, header.snapshots_offset)


def encode_size_and_l1(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the virtual size and of the L1 table's size and place: they change in one go."""
    return 24, struct.pack(">QIIQ", header.size, header.crypt_method, header.l1_size, header.l1_offset)


def encode_size(header: Header) -> tuple[int, bytes]:
    """(offset, bytes) of the virtual size."""
    return 24, struct.pack(">Q", header.size)
