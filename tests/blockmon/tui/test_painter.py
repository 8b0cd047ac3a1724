"""The bytes that are sent, put into a small terminal: it must show what was meant."""

import random
import re

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from blockmon.tui.painted import Pace
from blockmon.tui.painter import Painter

_PIECE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([^\x1b])")
_ON = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 5: "blink", 7: "reverse", 9: "strike"}
_OFF = {
    22: {"bold", "dim"}, 23: {"italic"}, 24: {"underline"}, 25: {"blink"}, 27: {"reverse"}, 29: {"strike"},
}  # fmt: skip


class SmallTerminal:
    """Understands moving, SGR and text, as xterm does."""

    def __init__(self, width: int, height: int) -> None:
        self.rows: list[list[tuple[str, object]]] = [[("?", None)] * width for _ in range(height)]
        self.x = self.y = 0
        self.attributes: set[str] = set()
        self.front = self.back = ""

    def feed(self, data: str) -> None:
        """Take in *data*; fails on anything unknown."""
        for match in _PIECE.finditer(data):
            numbers, letter, char = match.groups()
            if char is not None:
                width = cell_len(char)
                for place, text in enumerate([char, *[""] * (width - 1)]):
                    self.rows[self.y][self.x + place] = text, (frozenset(self.attributes), self.front, self.back)
                self.x += width
            elif letter == "H":
                y, _, x = numbers.partition(";")
                self.x, self.y = int(x or 1) - 1, int(y or 1) - 1
            elif letter == "C":
                self.x += int(numbers or 1)
            else:
                assert letter == "m"
                self._style([int(number or 0) for number in numbers.split(";")])

    def _style(self, codes: list[int]) -> None:
        while codes:
            code = codes.pop(0)
            if code == 0:
                self.attributes, self.front, self.back = set(), "", ""
            elif code in _ON:
                self.attributes.add(_ON[code])
            elif code in _OFF:
                self.attributes -= _OFF[code]
            else:
                count = {2: 4, 5: 2}[codes[0]] if code in (38, 48) else 0
                colour = str(codes[:count] or code % 10)
                del codes[:count]
                if code // 10 in (3, 9):
                    self.front = "" if code == 39 else f"{code // 10}:{colour}"
                else:
                    self.back = "" if code == 49 else f"{code // 10}:{colour}"


STYLES = [
    None, Style(bold=True), Style(dim=True), Style(bold=True, reverse=True), Style(italic=True, color="red"),
    Style(bold=True, dim=True), Style(color="#102030", bgcolor="#fefefe"),
    Style(color="bright_blue", underline=True), Style(bgcolor="color(200)"),
]  # fmt: skip


def random_row(chance: random.Random, width: int) -> list[Segment]:
    """Pieces of text in styles, *width* cells all together."""
    strip = Strip([])
    while strip.cell_length < width:
        text = "".join(chance.choice("ab ─█漢 é") for _ in range(chance.randint(1, 5)))
        strip = Strip([*strip, Segment(text, chance.choice(STYLES))])
    return list(strip.adjust_cell_length(width))


def layout(rows: list[list[Segment]], width: int) -> LayoutUpdate:
    """Textual's update of a whole screen."""
    return LayoutUpdate([[Strip(row)] for row in rows], Region(0, 0, width, len(rows)))


@pytest.mark.parametrize("system", ["truecolor", "256", "standard", None])
def test_differences_come_to_the_same_as_painting_anew(system: str | None) -> None:
    chance = random.Random(7)
    width, height = 30, 6
    painter = Painter(system)
    painter.resize(width, height)
    shown = SmallTerminal(width, height)
    rows = [random_row(chance, width) for _ in range(height)]
    for _ in range(60):
        for y in range(height):
            if chance.random() < 0.4:
                rows[y] = random_row(chance, width)
        painter.take(layout(rows, width))
        # Some of the rows first, as with little bandwidth, and the rest then.
        shown.feed(painter.frame([chance.randrange(height)]))
        shown.feed(painter.frame())
        fresh = Painter(system)
        fresh.resize(width, height)
        fresh.take(layout(rows, width))
        anew = SmallTerminal(width, height)
        anew.feed(fresh.frame())
        assert shown.rows == anew.rows
    assert painter.frame() == ""


def test_one_changed_letter_is_a_few_bytes() -> None:
    painter = Painter("truecolor")
    painter.resize(80, 24)
    style = Style(color="#102030", bgcolor="#fefefe")
    rows = [[Segment("x" * 80, style)] for _ in range(24)]
    painter.take(layout(rows, 80))
    painter.frame()
    rows[5] = [Segment("x" * 40 + "y" + "x" * 39, style)]
    painter.take(layout(rows, 80))
    assert painter.frame() == "\x1b[6;41H\x1b[38;2;16;32;48;48;2;254;254;254my\x1b[m"


def test_an_update_of_a_part_leaves_the_rest() -> None:
    painter = Painter(None)
    painter.resize(10, 2)
    painter.take(layout([[Segment("0123456789")], [Segment("abcdefghij")]], 10))
    painter.frame()
    painter.take(ChopsUpdate([{}, {0: None, 4: Strip([Segment("WXYZ")]), 8: None}], [(1, 4, 6)], [[], [4, 8, 10]]))
    shown = SmallTerminal(10, 2)
    shown.feed(painter.frame())
    assert "".join(text for text, _ in shown.rows[1]) == "????WX????"
    painter.forget()
    shown.feed(painter.frame())
    assert ["".join(text for text, _ in row) for row in shown.rows] == ["0123456789", "abcdWXghij"]


def test_without_colours_only_attributes_are_sent() -> None:
    painter = Painter("truecolor")
    painter.use_colours(False)
    painter.resize(4, 1)
    painter.take(layout([[Segment("ab", Style(bold=True, color="red")), Segment("cd", Style(bgcolor="blue"))]], 4))
    assert painter.frame() == "\x1b[1H\x1b[1mab\x1b[mcd"


def test_the_budget() -> None:
    now = 100.0
    pace = Pace(rate=1000, burst=500, interval=0.5, clock=lambda: now)
    assert pace.wait() == 0
    pace.spend(1300)  # one picture may be too large; it is waited for then
    assert pace.wait() == pytest.approx(0.8)
    pace.spend(5000)
    assert pace.wait() == pytest.approx(1.0)  # but not for long
    now += 1.0
    assert pace.wait() == 0
    pace.spend(10)
    assert pace.wait() == pytest.approx(0.5)
    now += 60
    assert pace.wait() == 0
    pace.spend(600)
    assert pace.wait() == pytest.approx(0.5)
    sent, end = 0, now + 20
    while now < end:
        now += pace.wait()
        pace.spend(1000)
        sent += 1000
    assert sent <= 20 * 1000 + 500 + 1000
