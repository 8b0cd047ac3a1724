"""The header of QED images. Error texts are QEMU's."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import read_bytes
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

MAGIC: Final = b"QED\0"
_LAYOUT: Final = struct.Struct("<4s3I5Q2I")
SIZE: Final = _LAYOUT.size
"""Bytes of the header that mean something; a backing file name follows."""
MIN_CLUSTER, MAX_CLUSTER, DEFAULT_CLUSTER = 4096, 64 << 20, 65536
MIN_TABLE, MAX_TABLE, DEFAULT_TABLE = 1, 16, 4
_MAX_NAME: Final = 4095
_WORD: Final = (1 << 64) - 1
SECTOR: Final = 512


class Feature(enum.IntFlag):
    """Features that a reader has to know."""

    BACKING_FILE = 1
    NEED_CHECK = 2
    BACKING_RAW = 4
    """The backing file is raw; without this flag its format is probed."""
    ALL = 7


def cluster_size_valid(size: int) -> bool:
    return MIN_CLUSTER <= size <= MAX_CLUSTER and not size & (size - 1)


def table_size_valid(size: int) -> bool:
    return MIN_TABLE <= size <= MAX_TABLE and not size & (size - 1)


def max_length(cluster_size: int, table_size: int) -> int:
    """The longest virtual disk that the tables can map, as QEMU reckons: in 64 bits, where some sizes end up at 0."""
    entries = cluster_size * table_size // 8
    return (entries * entries * cluster_size) & _WORD


def length_valid(length: int, cluster_size: int, table_size: int) -> bool:
    return length % SECTOR == 0 and length <= max_length(cluster_size, table_size)


@dataclass
class Header:
    """The header's fields; header_size and table_size in clusters, all else in bytes."""

    cluster_size: int
    table_size: int
    header_size: int = 1
    features: int = 0
    compat_features: int = 0
    autoclear_features: int = 0
    l1_offset: int = 0
    length: int = 0
    backing_offset: int = 0
    backing_size: int = 0
    backing_file: bytes = b""

    @property
    def table_bytes(self) -> int:
        return self.cluster_size * self.table_size

    def encode(self) -> bytes:
        """The fields as they lie at offset 0; the backing file name is not among them."""
        return _LAYOUT.pack(
            MAGIC,
            self.cluster_size,
            self.table_size,
            self.header_size,
            self.features,
            self.compat_features,
            self.autoclear_features,
            self.l1_offset,
            self.length,
            self.backing_offset,
            self.backing_size,
        )

    def cluster_valid(self, offset: int, file_size: int) -> bool:
        """Whether a cluster can be at *offset* of a file with *file_size* bytes."""
        return not offset % self.cluster_size and self.header_size * self.cluster_size <= offset < file_size

    def table_valid(self, offset: int, file_size: int) -> bool:
        """Whether a table can be at *offset*. QEMU takes none of a single cluster."""
        end = (offset + (self.table_size - 1) * self.cluster_size) & _WORD
        return end > offset and self.cluster_valid(offset, file_size) and self.cluster_valid(end, file_size)


def parse(file: Child) -> Header:
    """Read and check the header. Errors: GenericError."""
    try:
        raw = read_bytes(file, 0, SIZE)
    except OSError as exc:
        raise GenericError(f"Failed to read QED header: {os_error_text(exc)}") from exc
    magic, cluster, table, size, features, compat, autoclear, l1, length, at, count = _LAYOUT.unpack(raw)
    header = Header(cluster, table, size, features, compat, autoclear, l1, length, at, count)
    if magic != MAGIC:
        raise GenericError("Image not in QED format")
    if features & ~int(Feature.ALL):
        raise GenericError(f"Unsupported QED features: {features & ~int(Feature.ALL):x}")
    if not cluster_size_valid(cluster):
        raise GenericError("QED cluster size is invalid")
    file_size = file.length & -cluster
    if not table_size_valid(table):
        raise GenericError("QED table size is invalid")
    if not length_valid(length, cluster, table):
        raise GenericError("QED image size is invalid")
    if not header.table_valid(l1, file_size):
        raise GenericError("QED table offset is invalid")
    if header.header_size * cluster > 0xFFFFFFFF:
        raise GenericError("QED header size is too large")
    if features & Feature.BACKING_FILE:
        if at + count > cluster * header.header_size:
            raise GenericError("QED backing filename offset is invalid")
        header.backing_file = _read_name(file, at, count)
    return header


def _read_name(file: Child, offset: int, size: int) -> bytes:
    if size > _MAX_NAME:
        raise GenericError("Failed to read backing filename: Invalid argument")
    try:
        return bytes(read_bytes(file, offset, size)).partition(b"\0")[0]
    except OSError as exc:
        raise GenericError(f"Failed to read backing filename: {os_error_text(exc)}") from exc
