"""Lists of objects as compact tables: the columns that tell most, in the width there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prompt_toolkit.utils import get_cwidth

from blockmon.model.format import elide_middle, safe_text, size_short

Fragment = tuple[str, str]

HEADER = "class:pygments.name.tag"
STRING = "class:pygments.literal.string"
NUMBER = "class:pygments.literal.number"
CONSTANT = "class:pygments.keyword.constant"
PUNCTUATION = "class:pygments.punctuation"
NOTICE = "class:notice"

SAMPLE = 300
"""Of many rows, so many at the beginning, at the end and between decide about the columns."""

WIDEST = 40
NARROWEST = 6
"""Columns of the terminal that a cell takes at most; that one is squeezed to at least before it is left out."""

GAP = 2

USELESS = 100
"""What a column loses in which there is nothing but false, 0, off, "" and empty lists."""
ENOUGH = 3
"""So many columns that tell something do without those."""

# What identifies an object and what one looks for first, in this order. The names are QAPI's.
_FIRST = (
    *("id", "job-id", "device", "node-name", "name", "event", "parent", "child", "qdev", "type", "drv", "driver"),
    *("status", "state", "io-status", "current-progress", "total-progress", "offset", "len", "speed", "error"),
    *(
        "ro",
        "file",
        "filename",
        "size",
        "virtual-size",
        "actual-size",
        "backing_file",
        "dirty-bitmaps",
        "image",
        "inserted",
    ),
)
_RANKS = {name: rank for rank, name in enumerate(_FIRST)}
# Objects within an object of which some members tell more than the whole in a few words.
_INSIDE = {
    "image": ("virtual-size", "actual-size"),
    "inserted": ("node-name", "drv", "ro", "file"),
    "stats": ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations"),
}
_NAMES = ("id", "node-name", "name", "device", "filename")

_BYTES = frozenset(
    {
        *("size", "virtual-size", "actual-size", "cluster-size", "granularity", "len", "offset", "vm-state-size"),
        *("speed", "current-progress", "total-progress", "count", "rd_bytes", "wr_bytes", "bytes"),
    }
)
_ALWAYS_SIZE = frozenset({"size", "virtual-size", "actual-size", "cluster-size", "granularity", "vm-state-size"})


def is_table(value: Any) -> bool:
    """Whether *value* is shown as a table: a list of objects that have members."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) and row for row in value)


@dataclass(slots=True)
class _Column:
    name: str
    width: int
    right: bool


@dataclass(slots=True)
class _Cell:
    style: str
    text: str


def iter_table(rows: Sequence[Mapping[str, Any]], width: int) -> Iterator[Fragment]:
    """*rows* as a table of at most *width* columns of the terminal, piece by piece, ending with a line end. Where it
    does not show everything a last line says so."""
    total = len({name for row in _sample(rows) for name in row})
    rows = [_opened(row) for row in rows]
    sample = _sample(rows)
    names = _in_order(sample)
    if len(names) == 1:
        yield from _listing(names[0], rows, width)
        return
    columns, cut = _fit(names, sample, rows, width)
    yield from _line([_Cell(HEADER, safe_text(column.name)) for column in columns], columns, width)
    for row in rows:
        cells = [_cell(column.name, row[column.name]) if column.name in row else _Cell("", "") for column in columns]
        yield from _line(cells, columns, width)
    left_out = len(columns) < len(names) or len(names) < total
    if left_out or cut:
        what = f"{min(len(columns), total)} of {total} columns" if left_out else "shortened"
        yield NOTICE, f"{len(rows)} row{'' if len(rows) == 1 else 's'}, {what}; \\json shows everything\n"


def _sample(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(rows) <= 4 * SAMPLE:
        return rows
    between = rows[SAMPLE:-SAMPLE]
    return [*rows[:SAMPLE], *islice(between, 0, None, len(between) // SAMPLE), *rows[-SAMPLE:]]


def _opened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """*row* with the members of what is inside it in place of the whole."""
    if not any(isinstance(row.get(name), dict) for name in _INSIDE):
        return row
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in _INSIDE and isinstance(value, dict):
            found.update({inner: value[inner] for inner in _INSIDE[name] if inner in value and inner not in row})
        else:
            found[name] = value
    return found


def _in_order(sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """The members' names, the most telling first."""
    present: dict[str, int] = {}
    for row in sample:
        for name in row:
            present[name] = present.get(name, 0) + 1
    order = {name: place for place, name in enumerate(present)}

    def score(name: str) -> tuple[int, int]:
        if name in _RANKS:
            return _RANKS[name], 0
        values = [row[name] for row in sample if name in row]
        points = 100
        if not any(value not in ("off", "none") and value for value in values):
            points += USELESS
        elif len(sample) > 1 and len(values) == len(sample) and all(value == values[0] for value in values):
            points += 30  # the same everywhere
        if 2 * len(values) < len(sample):
            points += 20
        if any(isinstance(value, (dict, list)) for value in values):
            points += 10
        return points, order[name]

    scores = {name: score(name) for name in present}
    # What is the same nothing everywhere is worth no column, unless there is little else.
    telling = [name for name in present if scores[name][0] < 100 + USELESS]
    return sorted(telling if len(telling) >= ENOUGH else present, key=scores.__getitem__)


def _fit(
    names: Sequence[str], sample: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], width: int
) -> tuple[list[_Column], bool]:
    """The columns there is room for, and whether some cell is shortened."""
    room, columns, cut = width, list[_Column](), False
    for name in names:
        values = [row[name] for row in sample if name in row]
        widest = max((get_cwidth(_cell(name, value).text) for value in values), default=0)
        if name in _NAMES and len(rows) > len(sample):
            # A name that is cut off names nothing, so all of them are looked at.
            widest = max(widest, *(len(row[name]) for row in rows if isinstance(row.get(name), str)), 0)
        wanted = max(min(widest, WIDEST), get_cwidth(safe_text(name)))
        gap = GAP if columns else 0
        if columns and wanted + gap > room:
            # A long text may be squeezed, as long as something is left of it; a number may not.
            squeezed = max(room - gap, 0)
            if squeezed < max(NARROWEST * 2, get_cwidth(name)) or not any(isinstance(v, str) for v in values):
                continue
            wanted = squeezed
        wanted = max(min(wanted, room - gap), 1)
        cut = cut or widest > wanted or any(isinstance(value, (dict, list)) and value for value in values)
        numbers = bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        columns.append(_Column(name, wanted, numbers))
        room -= wanted + gap
    return columns, cut


def _line(cells: Sequence[_Cell], columns: Sequence[_Column], width: int) -> Iterator[Fragment]:
    last = max((index for index, cell in enumerate(cells) if cell.text), default=-1)
    for index, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        if index > last:
            break
        text = cell.text
        size = get_cwidth(text)
        if size > column.width:
            text = _shortened(text, column.width)
            size = get_cwidth(text)
        pad = " " * max(column.width - size, 0)
        gap = " " * GAP if index else ""
        if column.right:
            yield "", gap + pad
            yield cell.style, text
        else:
            if gap:
                yield "", gap
            yield cell.style, text
            if index < last and pad:
                yield "", pad
    yield "", "\n"


def _shortened(text: str, width: int) -> str:
    if get_cwidth(text) <= width:
        return text
    shorter = elide_middle(text, width)
    while get_cwidth(shorter) > width and shorter:
        shorter = elide_middle(text, len(shorter) - 1) if len(shorter) > 1 else ""
    return shorter


def _listing(name: str, rows: Sequence[Mapping[str, Any]], width: int) -> Iterator[Fragment]:
    """Objects with one member each: their values side by side, as `ls` does."""
    cells = [_cell(name, row[name]) for row in rows if name in row]
    widest = min(max(get_cwidth(cell.text) for cell in cells), max(width, 1))
    across = max((width + GAP) // (widest + GAP), 1)
    down = -(-len(cells) // across)
    yield HEADER, _shortened(safe_text(name), width)
    yield "", "\n"
    for y in range(down):
        line = cells[y::down]
        for index, cell in enumerate(line):
            text = _shortened(cell.text, widest) if get_cwidth(cell.text) > widest else cell.text
            yield cell.style, text
            if index + 1 < len(line):
                yield "", " " * (widest - get_cwidth(text) + GAP)
        yield "", "\n"


def _cell(name: str, value: Any) -> _Cell:
    if isinstance(value, bool):
        return _Cell(CONSTANT, "yes" if value else "no")
    if value is None:
        return _Cell(CONSTANT, "null")
    if isinstance(value, (int, float)):
        if name in _BYTES and isinstance(value, int) and (value >= 10_000 or (name in _ALWAYS_SIZE and value >= 1024)):
            return _Cell(NUMBER, size_short(value))
        return _Cell(NUMBER, json.dumps(value))
    if isinstance(value, str):
        return _Cell(STRING, safe_text(value))
    return _Cell(PUNCTUATION, summary(value))


def summary(value: Any) -> str:
    """An object or a list in a few words."""
    if isinstance(value, list):
        if not value:
            return "[]"
        words = [_name_of(item) for item in value[:5]]
        if all(word is not None for word in words):
            text = "[" + " ".join(str(word) for word in words) + (" …" if len(value) > 5 else "") + "]"
            if len(text) <= WIDEST:
                return text
        return f"[{len(value)} item{'' if len(value) == 1 else 's'}]"
    if not value:
        return "{}"
    parts: list[str] = []
    known = sorted(value, key=lambda name: _RANKS.get(name, 100))
    for name in known:
        if not isinstance(value[name], (dict, list)) and len(parts) < 3:
            parts.append(f"{safe_text(name)}={_cell(name, value[name]).text}")
    more = " …" if len(parts) < len(value) else ""
    return "{" + " ".join(parts) + more + "}" if parts else f"{{{len(value)} members}}"


def _name_of(item: Any) -> str | None:
    if isinstance(item, dict):
        name = next((item[key] for key in _NAMES if isinstance(item.get(key), str)), None)
        return None if name is None else safe_text(name)
    if isinstance(item, list):
        return None
    return safe_text(item) if isinstance(item, str) else json.dumps(item)
