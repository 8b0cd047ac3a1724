"""Reading numbers, sizes and switches from option strings by the rules of QEMU's cutils.

Each function returns None for text it does not take; the caller knows which error text belongs there.
"""

from __future__ import annotations

import math
import re
from typing import Final

_INTEGER: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)\Z")
_SIZE: Final = re.compile(r"[ \t\n\v\f\r]*\+?(0[xX][0-9a-fA-F]+|[0-9]+)(\.[0-9]*)?([bBkKmMgGtTpPeE]?)\Z")
_NUMBER: Final = re.compile(
    r"[ \t\n\v\f\r]*[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\Z"
)
_SHIFTS: Final = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}

_TRUE: Final = frozenset({"on", "yes", "true", "y"})
_FALSE: Final = frozenset({"off", "no", "false", "n"})


def read_integer(text: str) -> int | None:
    """Read an integer of any size, decimal, hexadecimal or octal as in C."""
    match = _INTEGER.match(text)
    if match is None:
        return None
    sign, digits = match.groups()
    if digits[:2] in ("0x", "0X"):
        number = int(digits, 16)
    elif digits[0] == "0":
        if digits.strip("01234567"):
            return None
        number = int(digits, 8)
    else:
        # More digits than int() likes are certainly out of range.
        number = int(digits) if len(digits) < 4000 else 1 << 64
    return -number if sign == "-" else number


def parse_int64(text: str) -> int | None:
    """Read a signed 64-bit integer, decimal, hexadecimal or octal as in C."""
    number = read_integer(text)
    return number if number is not None and -(1 << 63) <= number < 1 << 63 else None


def parse_uint64(text: str) -> int | None:
    """Read an unsigned 64-bit integer as C's strtoull does: a minus sign wraps."""
    number = read_integer(text)
    if number is None or not -(1 << 64) < number < 1 << 64:
        return None
    return number % (1 << 64)


def read_size(text: str) -> int | None:
    """Read a size in bytes, perhaps above 2^64: digits, a fraction, a suffix (B, K, M, G, T, P, E); or hexadecimal.

    As in QEMU 7.2: no exponent, no fraction of a byte, halves round up.
    """
    match = _SIZE.match(text)
    if match is None:
        return None
    digits, fraction, suffix = match.groups()
    shift = _SHIFTS[suffix.upper()]
    if digits[:2] in ("0x", "0X"):
        return None if fraction is not None else int(digits, 16) << shift
    # More digits than int() likes are certainly out of range.
    number = (int(digits) if len(digits) < 4000 else 1 << 64) << shift
    if fraction is not None:
        # A fraction is 64-bit fixed point in QEMU, one that rounds to a whole is lost.
        part = int(float(f"0{fraction}") * 2.0**64) % (1 << 64)
        if part and shift == 0:
            return None
        number += ((part << shift) + (1 << 63)) >> 64
    return number


def parse_size(text: str) -> int | None:
    """Read a size in bytes below 2^64, as ``read_size``."""
    number = read_size(text)
    return number if number is not None and number < 1 << 64 else None


def parse_bool(text: str) -> bool | None:
    """Read a switch: on, yes, true, y; off, no, false, n."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def parse_number(text: str) -> float | None:
    """Read a finite floating-point number."""
    if _NUMBER.match(text) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None
