"""CRC-32C (Castagnoli), which VHDX seals its headers, regions and log entries with."""

from __future__ import annotations

from functools import cache


@cache
def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum of *data*."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def sealed(data: bytes | bytearray) -> bytes:
    """*data* with its checksum in bytes 4 to 7, which count as zeros in it."""
    raw = bytearray(data)
    raw[4:8] = bytes(4)
    raw[4:8] = crc32c(raw).to_bytes(4, "little")
    return bytes(raw)


def is_sealed(data: bytes | bytearray) -> bool:
    """Whether the checksum in bytes 4 to 7 is that of *data*."""
    return sealed(data)[4:8] == data[4:8]
