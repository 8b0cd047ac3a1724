"""
What the terminal shows, cell by cell, and the fewest bytes that make it show something else.

Textual sends whole widgets' lines with the whole style of every piece. Here only cells that differ are sent, and of a
style only what is different from the one before.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate

from blockmon.tui.prompt_cells import single_cells

_ATTRIBUTES = (
    ("bold", 1, 22), ("dim", 2, 22), ("italic", 3, 23), ("underline", 4, 24), ("blink", 5, 25), ("reverse", 7, 27),
    ("strike", 9, 29),
)  # fmt: skip
_SYSTEMS = {
    "truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "standard": ColorSystem.STANDARD,
}  # fmt: skip
_SHORT_GAP = 4
"""Cells between two changes that are cheaper sent again than jumped over."""
_KNOWN_STYLES = 4096


class Pen:
    """A style as the terminal has it: the numbers of its attributes, and the codes of its two colours."""

    __slots__ = ("attributes", "back", "front")

    def __init__(self, attributes: frozenset[tuple[int, int]], front: str, back: str) -> None:
        self.attributes = attributes
        self.front = front
        self.back = back


PLAIN = Pen(frozenset(), "", "")
_BLANK = (" ", PLAIN)

Cell = tuple[str, Pen]


class Painter:
    """Takes in Textual's updates, and hands out what to send. One that was forgotten is painted anew."""

    def __init__(self, colour_system: str | None) -> None:
        self.width = self.height = 0
        self.colours = True
        """Whether any colour may be sent."""
        self._system = _SYSTEMS.get(colour_system or "")
        self._pens: dict[tuple[frozenset[tuple[int, int]], str, str], Pen] = {}
        self._by_style: dict[Style, Pen] = {}
        self._changes: dict[tuple[Pen, Pen], str] = {}
        self._wanted: list[list[Cell]] = []
        self._shown: list[list[Cell] | None] = []
        self.dirty: set[int] = set()
        """Rows that may differ from what the terminal shows."""

    def use_colours(self, colours: bool) -> None:
        """Send colours from now on, or none."""
        if colours != self.colours:
            self.colours = colours
            self._by_style.clear()

    def resize(self, width: int, height: int) -> None:
        """The screen is of this size now; what a terminal of another size did with the old one cannot be known."""
        if (width, height) != (self.width, self.height):
            self.width, self.height = width, height
            self._wanted = [[_BLANK] * width for _ in range(height)]
            self.forget()

    def forget(self) -> None:
        """Assume nothing about what the terminal shows."""
        self._shown = [None] * self.height
        self.dirty = set(range(self.height))

    # Taking in.

    def take(self, update: CompositorUpdate) -> None:
        """Remember what *update* wants shown."""
        if isinstance(update, LayoutUpdate):
            for y, strips in enumerate(update.strips, update.region.y):
                self._put(y, update.region.x, [segment for strip in strips for segment in strip], self.width)
        elif isinstance(update, ChopsUpdate):
            for y, first, last in update.spans:
                for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
                    if strip is not None and x <= last and end > first:
                        self._put(y, x, strip, min(end, last))

    def _put(self, y: int, x: int, segments: Iterable[Segment], end: int) -> None:
        """Cells of row *y* from column *x* on, up to *end*."""
        if not 0 <= y < self.height:
            return
        row, end = self._wanted[y], min(end, self.width)
        cells: list[Cell] = []
        for text, style, control in segments:
            pen = self._pen(style)
            if text.isascii():
                cells += [(char, pen) for char in text]
            elif not control:
                cells += [(piece, pen) for piece, _ in single_cells((Segment(text),))]
        del cells[max(0, end - x) :]
        if cells:
            row[x : x + len(cells)] = cells
            self.dirty.add(y)

    def _pen(self, style: Style | None) -> Pen:
        if style is None:
            return PLAIN
        pen = self._by_style.get(style)
        if pen is None:
            if len(self._by_style) >= _KNOWN_STYLES:
                self._by_style.clear()
            attributes = frozenset((on, off) for name, on, off in _ATTRIBUTES if getattr(style, name))
            key = attributes, self._colour(style.color, True), self._colour(style.bgcolor, False)
            pen = self._pens.get(key)
            if pen is None:
                pen = self._pens[key] = Pen(*key) if key != (frozenset(), "", "") else PLAIN
            self._by_style[style] = pen
        return pen

    def _colour(self, colour: Color | None, front: bool) -> str:
        if colour is None or colour.is_default or not self.colours or self._system is None:
            return ""
        return ";".join(colour.downgrade(self._system).get_ansi_codes(foreground=front))

    # Handing out.

    def frame(self, rows: Iterable[int] | None = None) -> str:
        """What brings *rows* up to date, or all of the screen; the terminal is taken to show that from then on."""
        pieces: list[str] = []
        pen, at = PLAIN, (-1, -1)
        for y in sorted(self.dirty if rows is None else self.dirty.intersection(rows)):
            wanted, shown = self._wanted[y], self._shown[y]
            self.dirty.discard(y)
            for start, end in _spans(wanted, shown):
                pieces.append(_moved(at, start, y))
                for text, cell_pen in wanted[start:end]:
                    if cell_pen is not pen:
                        pieces.append(self._changed(pen, cell_pen))
                        pen = cell_pen
                    pieces.append(text)
                # In the last column terminals differ in where they are afterwards.
                at = (end, y) if end < self.width else (-1, -1)
            self._shown[y] = wanted.copy()
        if pen is not PLAIN:
            pieces.append("\x1b[m")
        return "".join(pieces)

    def _changed(self, before: Pen, after: Pen) -> str:
        """What turns one pen into another."""
        known = self._changes.get((before, after))
        if known is None:
            if len(self._changes) > _KNOWN_STYLES:
                self._changes.clear()
            known = self._changes[before, after] = _change(before, after)
        return known


def _change(before: Pen, after: Pen) -> str:
    anew = ["", *(str(on) for on, _ in sorted(after.attributes)), *filter(None, (after.front, after.back))]
    gone = {off for _, off in before.attributes - after.attributes}
    # 22 ends both bold and dim.
    new = {on for on, off in after.attributes if (on, off) not in before.attributes or off in gone}
    step = [*(str(code) for code in sorted(gone)), *(str(code) for code in sorted(new))]
    for old_colour, colour, default in ((before.front, after.front, "39"), (before.back, after.back, "49")):
        if old_colour != colour:
            step.append(colour or default)
    return min((f"\x1b[{';'.join(codes)}m" for codes in (step, anew)), key=len)


def _moved(at: tuple[int, int], x: int, y: int) -> str:
    if at == (x, y):
        return ""
    if at[1] == y and x > at[0] >= 0:
        return f"\x1b[{x - at[0]}C" if x - at[0] > 1 else "\x1b[C"
    return f"\x1b[{y + 1};{x + 1}H" if x else f"\x1b[{y + 1}H"


def _spans(wanted: list[Cell], shown: list[Cell] | None) -> list[tuple[int, int]]:
    """The columns [start, end) that differ; those with little between them as one."""
    width = len(wanted)
    if shown is None or len(shown) != width:
        return [(0, width)] if width else []
    if wanted == shown:
        return []
    spans: list[tuple[int, int]] = []
    for x in range(width):
        if wanted[x] == shown[x]:
            continue
        last = spans[-1][1] if spans else -width
        if x - last <= _SHORT_GAP and all(cell[1] is wanted[last - 1][1] for cell in wanted[last:x]):
            spans[-1] = spans[-1][0], x + 1
        else:
            spans.append((x, x + 1))
    return [_whole(wanted, start, end) for start, end in spans]


def _whole(row: list[Cell], start: int, end: int) -> tuple[int, int]:
    """Never half a wide character; its second cell is empty."""
    while start > 0 and not row[start][0]:
        start -= 1
    while end < len(row) and not row[end][0]:
        end += 1
    return start, end
