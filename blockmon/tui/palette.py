"""The palette: every command of the server, and all that the screen itself can do, found by a few letters of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.strip import Strip

from blockmon.model.schema import ArgInfo, Members, Schema, in_order
from blockmon.repl.matching import INSIDE, fold, loosely, rank
from blockmon.repl.summaries import SUMMARIES
from blockmon.tui.bars import BarWidget
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.popups import ListPopup, Popup

_WIDEST, _TALLEST = 100, 24
_NAME = 40
_IN_NOTE = INSIDE + 1
_DEEPEST = 3
"""Objects in a command's arguments are written out down to here."""


@dataclass(frozen=True)
class PaletteItem:
    """One thing that can be done: its name, what it is, and what does it."""

    name: str
    note: str
    run: Callable[[], None]


def _score(words: Sequence[tuple[str, str]], item: PaletteItem, loose: bool) -> int | None:
    """How well an item fits what was typed, 0 the best; None when it does not."""
    total = 0
    for word, folded in words:
        found = rank(word, folded, item.name)
        if found is None and folded in fold(item.note):
            found = _IN_NOTE
        if found is None and loose:
            found = loosely(folded, item.name)
        if found is None:
            return None
        total += found
    return total


def matching(items: Iterable[PaletteItem], text: str) -> list[PaletteItem]:
    """
    The items that fit all words of *text*, the best first and otherwise in the order given.

    Only where none does, those that have the letters in their order, short names first: the letters say more of them.
    """
    items = list(items)
    words = [(word, fold(word)) for word in text.split()]
    if not words:
        return items
    for loose in (False, True):
        found: list[tuple[int, int, int]] = []
        for number, item in enumerate(items):
            score = _score(words, item, loose)
            if score is not None:
                found.append((score, len(item.name) if loose else 0, number))
        if found:
            return [items[number] for *_, number in sorted(found)]
    return []


def template(schema: Schema, command: str) -> tuple[str, int]:
    """A command with the arguments that it demands, and where the first value is to be typed."""
    keys = _demanded(schema.arguments_of(command), "", 0)
    if not keys:
        # A blank makes the prompt offer the arguments there are.
        text = f"{command} " if len(schema.arguments_of(command)) else command
        return text, len(text)
    first = f"{command} {keys[0]}="
    return " ".join((first, *(f"{key}=" for key in keys[1:]))), len(first)


def _demanded(members: Members, prefix: str, depth: int) -> list[str]:
    keys: list[str] = []
    for info in in_order(members.common.values(), first=() if members.tag is None else (members.tag,)):
        if not info.optional:
            keys += _keys_of(info, prefix + info.name, depth)
    return keys


def _keys_of(info: ArgInfo, key: str, depth: int) -> list[str]:
    if depth < _DEEPEST and info.kind == "object":
        return _demanded(info.members, f"{key}.", depth + 1)
    if depth < _DEEPEST and info.kind == "array" and info.element is not None:
        inner = _keys_of(info.element, f"{key}.0", depth + 1)
        return inner or [key]
    return [key]


def describe(schema: Schema, command: str) -> str:
    """A few words on a command; where nobody has written any, what it demands."""
    known = SUMMARIES.get(command)
    if known is not None:
        return known
    keys = _demanded(schema.arguments_of(command), "", 0)
    return f"takes {', '.join(keys)}" if keys else ""


class _Query(BarWidget):
    """The line that is typed into."""

    def __init__(self, look: Look) -> None:
        super().__init__(look)
        self.text = ""
        self.found = self.total = 0

    def draw(self, line: Line) -> Strip:
        count = f"{self.found} of {self.total} "
        line.add(" : ", "popup-key").add(self.text, "popup-title", limit=max(4, line.room - len(count) - 3))
        line.add(self.look.symbols.caret, "popup-key")
        line.to(line.width - len(count), "popup").add(count, "popup-dim")
        return line.finish("popup")


class _Found(ListPopup):
    """The list below it, whose rows are put together only when they are seen."""

    def __init__(self, look: Look, typed: Callable[[events.Key], bool]) -> None:
        super().__init__(look, (), has_cursor=True, foot="")
        self.items: list[PaletteItem] = []
        self._typed = typed

    def count(self) -> int:
        return len(self.items)

    def draw(self, index: int, line: Line) -> Line:
        item = self.items[index]
        name = min(_NAME, max(12, line.width // 2))
        line.add(item.name, "popup-title", limit=max(name, line.width - len(item.note) - 2)).add("  ", "popup")
        line.to(max(name + 2, line.used), "popup")
        return line.add(item.note, "popup-dim")

    def empty_text(self) -> Sequence[str]:
        return ("Nothing fits that.",)

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """All keys that write go into the line above."""
        return bool(character) and str(character).isprintable()

    async def _on_key(self, event: events.Key) -> None:
        if self._typed(event):
            event.stop()
            event.prevent_default()


class PalettePopup(Popup):
    """The palette. Choosing closes it and then does what was chosen."""

    DEFAULT_CSS = "PalettePopup { align: center top; } PalettePopup _Query { height: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "pick", "do it", key_display="Enter", tooltip="do it; a command is written into the prompt"),
        Binding("up", "step(-1)", "up", show=False),
        Binding("down", "step(1)", "down", show=False),
        Binding("ctrl+p", "step(-1)", "up", show=False),
        Binding("ctrl+n", "step(1)", "down", show=False),
    ]

    def __init__(self, look: Look, items: Sequence[PaletteItem]) -> None:
        super().__init__(look, "Commands and views", (), has_cursor=True, foot=f"Enter {look.symbols.dot} Esc close")
        self.items = list(items)
        self.query_line = _Query(look)
        self.list = self.found = _Found(look, self._typed)
        self.found.on_chosen = self.action_pick
        self._take("")

    def compose_above(self) -> ComposeResult:
        yield self.query_line

    def _fit(self) -> None:
        width = min(_WIDEST, self.size.width - 2)
        self.query_line.styles.width = self.list.styles.width = width
        # One size whatever is found, so that typing sends only the rows.
        self.list.styles.height = max(1, min(_TALLEST, len(self.items), self.size.height - 4))

    def _take(self, text: str) -> None:
        self.found.items = matching(self.items, text)
        self.found.cursor = self.found.top = 0
        self.query_line.text = text
        self.query_line.found, self.query_line.total = len(self.found.items), len(self.items)
        if self.is_mounted:
            self.query_line.update_line()
            self.found.update_rows()

    def _typed(self, event: events.Key) -> bool:
        text = self.query_line.text
        if event.key in ("backspace", "ctrl+h"):
            if not text:
                return False
            self._take(text[:-1])
        elif event.key in ("ctrl+u", "ctrl+w"):
            self._take("" if event.key == "ctrl+u" else text.rstrip().rpartition(" ")[0])
        elif event.is_printable and event.character:
            self._take(text + event.character)
        else:
            return False
        return True

    def on_key(self, event: events.Key) -> None:
        """Letters typed right after the key that opens the palette come before its list has the focus."""
        if self._typed(event):
            event.stop()
            event.prevent_default()

    def action_step(self, rows: int) -> None:
        self.found.action_move(rows)

    def action_pick(self) -> None:
        if self.found.items:
            chosen = self.found.items[self.found.cursor]
            self.dismiss(None)
            self.app.call_later(chosen.run)
