"""Numbers in and out as qemu-io has them: sizes, times, reports, dumps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.qapi import scalars

REQUEST_MAX: Final = ((1 << 31) - 1) & -512
"""Largest request, bytes."""
_UNITS: Final = (("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10))
_INT64_MAX: Final = (1 << 63) - 1


class UsageError(Exception):
    """The command is not understood; the text is what is printed."""


def read_number(text: str) -> int:
    """A number of bytes, with a suffix perhaps. Errors: UsageError."""
    value = scalars.read_size(text)
    if value is None:
        raise UsageError(f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
    if value > _INT64_MAX:
        raise UsageError(f"Parsing error: argument too large -- {text}")
    return value


def read_pattern(text: str) -> int:
    """A byte, 0 to 255. Errors: UsageError."""
    value = scalars.read_integer(text)
    if value is None or not 0 <= value <= 255:
        raise UsageError(f"{text} is not a valid pattern byte")
    return value


def amount(value: float) -> str:
    """An amount of bytes, as ``1.500 KiB``; a fraction that begins with three zeros is left out."""
    unit, shift = next((entry for entry in _UNITS if value >= 1 << entry[1]), ("bytes", 0))
    text = f"{value / (1 << shift):.3f}" if shift else f"{value:f}"
    whole, zeros, _ = text.partition(".000")
    return f"{whole if zeros else text} {unit}"


def duration(seconds: float, *, fixed: bool) -> str:
    """A time, as ``00.02 sec``, or as hours, minutes and seconds where it is long or a *fixed* form is wanted."""
    whole = int(seconds)
    hundredths = int((seconds - whole) * 100)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if fixed or hours or minutes:
        return f"{hours}:{minutes:02d}:{rest:02d}.{hundredths:02d}"
    return f"{rest:02d}.{hundredths:02d} sec"


def report(what: str, seconds: float, offset: int, count: int, *, machine: bool) -> str:
    """What a request took. machine: for programs (-C)."""
    seconds = max(seconds, 1e-9)
    if machine:
        return f"{count},1,{duration(seconds, fixed=True)},{count / seconds:.3f},{1 / seconds:.3f}\n"
    return (
        f"{what} {count}/{count} bytes at offset {offset}\n"
        f"{amount(count)}, 1 ops; {duration(seconds, fixed=False)} "
        f"({amount(count / seconds)}/sec and {1 / seconds:.4f} ops/sec)\n"
    )


def dump(data: memoryview, offset: int) -> Iterator[str]:
    """Lines of 16 bytes, in hexadecimal and, where they are letters or digits, as they are."""
    for at in range(0, len(data), 16):
        row = bytes(data[at : at + 16])
        letters = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else "." for byte in row)
        yield f"{offset + at:08x}:  {row.hex(' ')}  {letters}\n"
