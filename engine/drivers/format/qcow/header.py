"""The header of qcow images, version 1. Error texts are QEMU's."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import read_bytes
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

MAGIC: Final = b"QFI\xfb"
VERSION: Final = 1
_LAYOUT: Final = struct.Struct(">4sIQIIQBBHIQ")
SIZE: Final = _LAYOUT.size
AES: Final = 1
SECTOR: Final = 512
MAX_NAME: Final = 1023
_MAX_L1: Final = 0x7FFFFFFF // 8


@dataclass
class Header:
    """The header's fields; offsets and sizes in bytes."""

    length: int
    cluster_bits: int
    l2_bits: int
    crypt_method: int = 0
    l1_offset: int = 0
    backing_offset: int = 0
    backing_file: bytes = b""

    @property
    def l1_entries(self) -> int:
        return -(-self.length >> (self.cluster_bits + self.l2_bits))

    def encode(self) -> bytes:
        """The header and the backing file's name behind it, filled up to a multiple of 8."""
        name = self.backing_file
        head = _LAYOUT.pack(
            MAGIC,
            VERSION,
            self.backing_offset,
            len(name),
            0,
            self.length,
            self.cluster_bits,
            self.l2_bits,
            0,
            self.crypt_method,
            self.l1_offset,
        )
        return head + name + bytes(-(len(head) + len(name)) % 8)

    def check_tables(self) -> None:
        """Whether the L1 table is one that can be. Errors: GenericError."""
        if self.length > (1 << 64) - 1 - (1 << (self.cluster_bits + self.l2_bits)) or self.l1_entries > _MAX_L1:
            raise GenericError("Image too large")


def parse(file: Child) -> Header:
    """Read and check the header. Errors: GenericError, OSError."""
    raw = read_bytes(file, 0, SIZE)
    magic, version, at, count, _, length, cluster_bits, l2_bits, _, crypt, l1 = _LAYOUT.unpack(raw)
    if magic != MAGIC:
        raise GenericError("Image not in qcow format")
    if version != VERSION:
        hint = "Try the 'qcow2' driver instead." if version in (2, 3) else None
        raise GenericError(f"qcow (v{VERSION}) does not support qcow version {version}", hint=hint)
    if length <= 1:
        raise GenericError("Image size is too small (must be at least 2 bytes)")
    if not 9 <= cluster_bits <= 16:
        raise GenericError("Cluster size must be between 512 and 64k")
    if not 6 <= l2_bits <= 13:
        raise GenericError("L2 table size must be between 512 and 64k")
    header = Header(length, cluster_bits, l2_bits, crypt, l1, at)
    if crypt > AES:
        raise GenericError("invalid encryption method in qcow header")
    if crypt == AES:
        raise GenericError("Encrypted qcow images are not supported")
    header.check_tables()
    if at:
        if count > MAX_NAME:
            raise GenericError("Backing file name too long")
        header.backing_file = bytes(read_bytes(file, at, count)).partition(b"\0")[0]
    return header
