"""prompt_toolkit's grid of cells as Textual's strips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit.layout.screen import Char, Screen, Transparent
from prompt_toolkit.styles import BaseStyle
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

_CURSOR = Style(reverse=True)
_BLANK = Char(" ", "")
_ANSI_NAMES = {"ansigray": "white", "ansiwhite": "bright_white", "ansidefault": "default"}

Cell = tuple[str, Style | None]


class CellPainter:
    """Turns cells and fragments into strips, remembering what every style string looks like."""

    def __init__(self, style: Callable[[], BaseStyle], base: Callable[[], Style]) -> None:
        self._source = style
        self._base = base
        self._styles: dict[str, Style] = {}

    def forget(self) -> None:
        """The styles or the colours under them have changed."""
        self._styles.clear()

    def style(self, name: str) -> Style:
        """The look of prompt_toolkit's style string *name*."""
        known = self._styles.get(name)
        if known is None:
            attrs = self._source().get_attrs_for_style_str(name)
            known = self._styles[name] = self._base() + Style(
                color=_rich_color(attrs.color),
                bgcolor=_rich_color(attrs.bgcolor),
                bold=attrs.bold or None,
                dim=attrs.dim or None,
                italic=attrs.italic or None,
                underline=attrs.underline or None,
                strike=attrs.strike or None,
                reverse=attrs.reverse or None,
            )
        return known

    def printed(self, fragments: Iterable[tuple[str, str]], width: int) -> Strip:
        """A row of the transcript."""
        segments = [Segment(text, self.style(style)) for style, text in fragments]
        return Strip(segments).adjust_cell_length(width, self.style(""))

    def row(self, screen: Screen, y: int, width: int, cursor: int = -1) -> Strip:
        """Row *y* of the screen, with the cursor on column *cursor* unless that is negative."""
        return self._cells(screen.data_buffer.get(y, {}), 0, width, cursor)

    def overlaid(self, under: Strip, screen: Screen, y: int, width: int) -> Strip:
        """*under*, covered by what is drawn on row *y* of the screen: a menu that reaches over the transcript."""
        cells: Mapping[int, Char] = screen.data_buffer.get(y, {})
        # The renderer has filled what nobody drew with transparent blanks.
        drawn = [x for x, char in cells.items() if not char.style.startswith(Transparent)]
        if not drawn:
            return under
        left, right = min(drawn), min(max(drawn) + 1, width)
        return Strip.join([under.crop(0, left), self._cells(cells, left, right, -1), under.crop(right, width)])

    def _cells(self, cells: Mapping[int, Char], start: int, end: int, cursor: int) -> Strip:
        """The cells start … end of a row; those of one style that stand together make one segment."""
        segments: list[Segment] = []
        text, style, x = "", "", start
        while x < end:
            char = cells.get(x, _BLANK)
            if x == cursor or char.style != style:
                if text:
                    segments.append(Segment(text, self.style(style)))
                text, style = "", char.style
            if x == cursor:
                segments.append(Segment(char.char or " ", self.style(style) + _CURSOR))
            else:
                text += char.char
            x += max(char.width, 1)
        if text:
            segments.append(Segment(text, self.style(style)))
        return Strip(segments).adjust_cell_length(end - start, self.style(""))


def _rich_color(color: str | None) -> str | None:
    """prompt_toolkit's name of a colour as Rich's."""
    if not color or color == "default":
        return None
    if color in _ANSI_NAMES:
        return _ANSI_NAMES[color]
    if color.startswith("ansibright"):
        return "bright_" + color.removeprefix("ansibright")
    if color.startswith("ansi"):
        return color.removeprefix("ansi")
    return "#" + color


def difference(before: Strip, after: Strip) -> tuple[int, int] | None:
    """The columns [start, end) in which two rows differ; None when they are equal."""
    if before is after or list(before) == list(after):
        return None
    old, new = single_cells(before), single_cells(after)
    if len(old) != len(new):
        return 0, max(len(old), len(new))
    start = next((x for x in range(len(new)) if old[x] != new[x]), None)
    if start is None:
        return None
    end = next(x for x in range(len(new), 0, -1) if old[x - 1] != new[x - 1])
    # Never half a wide character.
    while start > 0 and not (new[start][0] and old[start][0]):
        start -= 1
    while end < len(new) and not (new[end][0] and old[end][0]):
        end += 1
    return start, end


def single_cells(strip: Iterable[Segment]) -> list[Cell]:
    """A row cell by cell; the second cell of a wide character is empty."""
    cells: list[Cell] = []
    for text, style, _ in strip:
        if text.isascii():
            cells += [(char, style) for char in text]
            continue
        for char in text:
            size = cell_len(char)
            if size:
                cells.append((char, style))
                cells += [("", style)] * (size - 1)
            elif cells:
                cells[-1] = (cells[-1][0] + char, style)
    return cells
