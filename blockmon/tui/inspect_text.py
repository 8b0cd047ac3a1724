"""Lines of styled text: what the inspector's pages are made of, and how they are broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rich.cells import cell_len

from blockmon.model.details import Answer
from blockmon.model.format import safe_text
from blockmon.model.graph import PERMISSIONS
from blockmon.model.refresher import ScreenState
from blockmon.tui.look import Look

Pieces = list[tuple[str, str]]
"""A line: texts, each with the name of its style."""


class View:
    """What a page is made for: the state, how it is to look, its width in cells, and a way to ask the server."""

    def __init__(self, state: ScreenState, look: Look, width: int, ask: Ask) -> None:
        self.state = state
        self.look = look
        self.width = width
        self.ask = ask

    def has(self, command: str) -> bool:
        """Whether the server has *command*."""
        return command in self.state.commands


Ask = Callable[[str, Mapping[str, Any] | None, float | None], Answer]
"""A command, its arguments, and after how many seconds to ask again (None: when the graph is another)."""

Page = Callable[[View], list[Pieces]]

LABEL = 11
_LETTERS = {"consistent-read": "r", "write": "w", "write-unchanged": "u", "resize": "s"}


def wrap(pieces: Pieces, width: int) -> list[Pieces]:
    """Break a line at *width* cells, between words where that is possible; what follows is indented as the value is."""
    if width <= LABEL + 4 or sum(cell_len(text) for text, _ in pieces) <= width:
        return [pieces]
    labelled = len(pieces) > 1 and cell_len(pieces[0][0]) == LABEL
    lead = pieces[0][0]
    indent = LABEL if labelled else min(len(lead) - len(lead.lstrip()), width // 2)
    lines: list[Pieces] = []
    current: Pieces = []
    used = 0
    for text, style in pieces:
        rest = text
        while rest:
            room = width - used
            if cell_len(rest) <= room:
                current.append((rest, style))
                used += cell_len(rest)
                break
            cut = _cut(rest, room)
            if not cut and used <= indent:
                cut = max(1, room)
            if cut:
                current.append((rest[:cut], style))
            lines.append(current)
            rest = rest[cut:].lstrip(" ")
            current, used = [(" " * indent, "text")], indent
    if len(current) > 1 or not lines:
        lines.append(current)
    return lines


def _cut(text: str, room: int) -> int:
    """How many characters of *text* go into *room* cells: to the last good place to break."""
    used = 0
    best = 0
    for index, char in enumerate(text):
        used += cell_len(char)
        if used > room:
            break
        if char in " /,:":
            best = index + 1
    else:
        return len(text)
    return best if best > room // 3 else (index if room >= 8 else 0)


_JSON_TOKEN = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:))|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d[\d.eE+-]*)
    |(?P<word>true|false|null)|(?P<mark>[{}\[\],:])""",
    re.VERBOSE,
)
_JSON_STYLES = {"key": "syntax.nt", "string": "syntax.s", "number": "syntax.m", "word": "syntax.kc", "mark": "syntax.p"}


def json_lines(value: Any) -> list[Pieces]:
    """A value as indented JSON, in styled pieces a line."""
    lines: list[Pieces] = []
    for text in json.dumps(value, indent=2, ensure_ascii=False).splitlines():
        pieces: Pieces = []
        end = 0
        for match in _JSON_TOKEN.finditer(text):
            if match.start() > end:
                pieces.append((text[end : match.start()], "text"))
            pieces.append((safe_text(match.group()), _JSON_STYLES[match.lastgroup or "mark"]))
            end = match.end()
        if end < len(text):
            pieces.append((safe_text(text[end:]), "text"))
        lines.append(pieces)
    return lines


def labelled(label: str, *value: tuple[str, str] | str) -> Pieces:
    """A line of a label and its value."""
    pieces: Pieces = [(f"{label:<{LABEL}}", "dim")]
    pieces += [(part, "text") if isinstance(part, str) else part for part in value]
    return pieces


def permission_letters(permissions: frozenset[str]) -> str:
    """Permissions as letters in fixed places: read, write, write unchanged, resize (size)."""
    return "".join(_LETTERS[name] if name in permissions else "-" for name in PERMISSIONS)


def table(
    columns: list[tuple[str, int]], rows: list[tuple[Pieces, list[tuple[str, str]]]], first: int, ellipsis: str
) -> list[Pieces]:
    """
    Rows of a name, *first* cells wide, and values at the right of the *columns* of so many cells.

    Names longer than that are cut off.
    """
    lines: list[Pieces] = [[(" " * first + "".join(f"{title:>{width}}" for title, width in columns), "dim")]]
    for name, values in rows:
        line = fit(name, first, ellipsis)
        line += [
            (" " * max(0, width - cell_len(text)) + text, style)
            for (text, style), (_, width) in zip(values, columns, strict=True)
        ]
        lines.append(line)
    return lines


def fit(pieces: Pieces, width: int, ellipsis: str) -> Pieces:
    """Exactly *width* cells of a line: cut off with an ellipsis, or filled up."""
    fitted: Pieces = []
    room = width
    for text, style in pieces:
        if cell_len(text) > room:
            text = text[: max(0, room - len(ellipsis))]
            while cell_len(text) > max(0, room - len(ellipsis)):
                text = text[:-1]
            fitted.append((text + ellipsis if room >= len(ellipsis) else text, style))
            return [*fitted, (" " * (width - sum(cell_len(part) for part, _ in fitted)), "text")]
        fitted.append((text, style))
        room -= cell_len(text)
    return [*fitted, (" " * room, "text")] if room else fitted


def asked(answer: Answer, command: str, look: Look) -> list[Pieces] | None:
    """What to say instead of a page while there is no answer, or where it is an error."""
    if answer.error is not None:
        return [[(safe_text(answer.error), "state.error")]]
    if not answer.known:
        return [[(f"asking {command} {look.symbols.ellipsis}", "dim")]]
    return None


def bar(look: Look, fraction: float, cells: int = 12) -> Pieces:
    """A bar of so many cells."""
    full = min(cells, int(fraction * cells + 0.5))
    return [(look.symbols.bar_full * full, "bar"), (look.symbols.bar_rest * (cells - full), "bar-rest")]
