"""Bits of one granularity as bits of another, many at a time: little-endian in each byte, whole bytes."""

from __future__ import annotations

_FOLD = bytes(sum((byte >> 2 * i & 3 != 0) << i for i in range(4)) for byte in range(256))
"""Byte → four bits: which of its pairs have a bit set."""
_SPREAD = bytes(sum((nibble >> i & 1) * 3 << 2 * i for i in range(4)) for nibble in range(16))
_SPREAD_LOW = bytes(_SPREAD[byte & 15] for byte in range(256))
_SPREAD_HIGH = bytes(_SPREAD[byte >> 4] for byte in range(256))


def fold(data: bytes, steps: int) -> bytes:
    """Make one bit, the OR, of every 2**steps; *data* has a multiple of that many bytes."""
    for _ in range(steps):
        halves = data.translate(_FOLD)
        size = len(halves) // 2
        low, high = int.from_bytes(halves[::2], "little"), int.from_bytes(halves[1::2], "little")
        data = (low | high << 4).to_bytes(size, "little")
    return data


def spread(data: bytes, steps: int) -> bytes:
    """Make 2**steps equal bits of every bit."""
    for _ in range(steps):
        out = bytearray(2 * len(data))
        out[::2] = data.translate(_SPREAD_LOW)
        out[1::2] = data.translate(_SPREAD_HIGH)
        data = bytes(out)
    return data
