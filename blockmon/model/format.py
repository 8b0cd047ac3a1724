"""Numbers and names as the screen shows them: short, of a predictable width, free of control characters."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_LONG_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

SPARK_BLOCKS = "▁▂▃▄▅▆▇"
"""The full block is left out, so that the pictures of two rows do not run into each other."""
SPARK_ASCII = ".:-=+*#@"


def _scaled(size: float) -> tuple[float, int]:
    """The value in the largest unit that keeps it below 1000, so that it never needs four digits."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return value, unit


def size_short(size: float | None) -> str:
    """Bytes in at most five characters: ``512``, ``64K``, ``1.2G``; ``-`` when unknown."""
    if size is None:
        return "-"
    value, unit = _scaled(max(0, size))
    if unit and value < 9.95 and abs(value - round(value)) >= 0.05:
        return f"{value:.1f}{_UNITS[unit]}"
    return f"{value:.0f}{_UNITS[unit]}"


def size_long(size: float | None) -> str:
    """Bytes with a spelled-out binary unit: ``1.2 GiB``; ``unknown`` when unknown."""
    if size is None:
        return "unknown"
    value, unit = _scaled(max(0, size))
    text = f"{value:.2f}".rstrip("0").rstrip(".") if unit and value < 9.995 else f"{value:.1f}".removesuffix(".0")
    return f"{text} {_LONG_UNITS[unit]}"


def size_exact(size: int) -> str:
    """Bytes in full, with the spelled-out unit before them where that says more: ``1 GiB (1,073,741,824 bytes)``."""
    if size < 1024:
        return f"{size} bytes"
    return f"{size_long(size)} ({size:,} bytes)"


def rate_short(rate: float | None) -> str:
    """Bytes per second in at most seven characters (``1.1G/s``); empty when unknown or below one byte."""
    if rate is None or rate < 1:
        return ""
    return f"{size_short(rate)}/s"


def count_short(count: float) -> str:
    """A plain number in at most five characters, in thousands: ``950``, ``1.2k``, ``34M``."""
    value, unit = float(max(0, count)), 0
    while value >= 999.5 and unit < 4:
        value /= 1000
        unit += 1
    digits = 1 if unit and value < 9.95 else 0
    return f"{value:.{digits}f}{('', 'k', 'M', 'G', 'T')[unit]}"


def percent(done: float, total: float) -> int | None:
    """Whole per cent, rounded down so that 100 is said only of what is complete; None when the total is unknown."""
    if total <= 0:
        return None
    return max(0, min(100, int(done * 100 // total)))


def duration_short(seconds: float | None) -> str:
    """A time span in at most six characters: ``5s``, ``2m05s``, ``3h07m``, ``4d02h``; empty when unknown."""
    if seconds is None or seconds != seconds or seconds < 0:
        return ""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole < 100 * 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    return ">99d"


def clock_time(timestamp: float) -> str:
    """Local wall-clock time of day with milliseconds: ``14:02:10.123``."""
    millis = int(timestamp * 1000)
    return f"{time.strftime('%H:%M:%S', time.localtime(millis // 1000))}.{millis % 1000:03d}"


def safe_text(text: object) -> str:
    """
    Text fit for a terminal: whatever is not printable is escaped as in a Python string.

    Image files name their backing files; such a name may hold escape sequences, line breaks or marks that turn
    the writing direction round, and must not reach the terminal as they are.
    """
    string = str(text)
    if string.isprintable():
        return string
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in string)


def basename(filename: str) -> str:
    """The last part of a file name or URL; of a ``json:`` name that of the file in it, empty where there is none."""
    if filename.startswith("json:"):
        filename = _file_in_json(filename)
    return filename.rstrip("/").rpartition("/")[2] or filename


@lru_cache(maxsize=1024)
def _file_in_json(filename: str) -> str:
    try:
        options = json.loads(filename.removeprefix("json:"))
    except ValueError:
        return filename
    while isinstance(options, dict):
        for key in ("filename", "file.filename", "path", "export"):
            if isinstance(options.get(key), str):
                return str(options[key])
        options = options.get("file")
    return ""


def elide_middle(text: str, width: int, ellipsis: str = "…") -> str:
    """Cut *text* to *width* characters, keeping its start and (a little more of) its end."""
    if len(text) <= width:
        return text
    if width <= len(ellipsis):
        return ellipsis[:width]
    keep = width - len(ellipsis)
    head = keep * 2 // 5
    return text[:head] + ellipsis + text[len(text) - (keep - head) :]


def sparkline(values: Sequence[float], levels: str = SPARK_BLOCKS) -> str:
    """One character a value, scaled to the largest; a blank where there was nothing at all."""
    peak = max(values, default=0)
    if peak <= 0:
        return " " * len(values)
    top = len(levels)
    return "".join(levels[min(top - 1, int(value * top / peak))] if value > 0 else " " for value in values)
