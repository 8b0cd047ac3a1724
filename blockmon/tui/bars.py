"""The one-line widgets: header, tabs, the title of the prompt, footer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.screen import Screen
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from blockmon.model.format import elide_middle, rate_short, safe_text
from blockmon.model.refresher import ScreenState
from blockmon.tui.line import Line
from blockmon.tui.look import Look

REMARK_SECONDS = 4.0
NARROW = 60
"""Columns below which the header says only what matters."""
SHORTEST_TITLE = 6


class BarWidget(Widget):
    """A line of the screen that is only sent when it came out different."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "BarWidget { height: 1; width: 1fr; }"

    def __init__(self, look: Look, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = look
        self._drawn: Strip | None = None

    def draw(self, line: Line) -> Strip:
        """Put the line together."""
        raise AssertionError

    def update_line(self) -> None:
        """Draw anew, and send the line if it came out different."""
        if not self.is_mounted or not self.size.area:
            self._drawn = None
            return
        before, self._drawn = self._drawn, self.draw(Line(self.look, self.size.width))
        if before != self._drawn:
            self.refresh()

    def render_line(self, y: int) -> Strip:
        if self._drawn is None or self._drawn.cell_length != self.size.width:
            self._drawn = self.draw(Line(self.look, self.size.width))
        return self._drawn

    def on_resize(self) -> None:
        self._drawn = None


class HeaderBar(BarWidget):
    """What is connected, how much of it there is, and what it reads and writes."""

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self._remark = ""
        self._remark_style = "header"
        self._fading: Timer | None = None

    def say(self, text: str, *, error: bool = False) -> None:
        """Show a remark instead of the totals for some seconds."""
        self._remark, self._remark_style = text, "header-error" if error else "header-strong"
        if self._fading is not None:
            self._fading.stop()
        self._fading = self.set_timer(REMARK_SECONDS * (2 if error else 1), self._be_silent)
        self.update_line()

    def _be_silent(self) -> None:
        self._remark = ""
        self.update_line()

    def draw(self, line: Line) -> Strip:
        state, symbols = self.state, self.look.symbols
        total = state.total_rate()
        pieces: list[tuple[str, str]]
        if state.lost is not None:
            # What is cut off at 80 columns is the end.
            left = state.retry_in
            retry = "" if left is None else f", retrying in {left:.0f} s" if left > 0.5 else ", retrying"
            pieces = [(f"{symbols.error} connection lost{retry}: {safe_text(state.lost)}", "header-error")]
        elif self._remark:
            pieces = [(safe_text(self._remark), self._remark_style)]
        elif not state.connected:
            pieces = [("starting", "header-dim")]
        else:
            nodes, jobs = len(state.graph.nodes), state.jobs.active
            broken = state.graph.broken
            read, write = ("read", "write") if line.width >= 100 else (symbols.read, symbols.write)
            # A storage daemon counts nothing, which is not the same as that nothing happens.
            nothing = "0" if state.graph.counters or not nodes else "-"
            pieces = [
                (f"{nodes}" if state.graph_known else "?", "header-strong"),
                (" node  " if nodes == 1 else " nodes  ", "header-dim"),
                (f"{jobs}", "header-strong"), (" job  " if jobs == 1 else " jobs  ", "header-dim"),
                (f"{symbols.error} {broken} broken  " if broken else "", "header-error"),
                (read, "header-dim"), (f"{rate_short(total.rd_bytes) or nothing:>7}", "header-strong"),
                (f"  {write}", "header-dim"), (f"{rate_short(total.wr_bytes) or nothing:>7}", "header-strong"),
            ]  # fmt: skip
            doubt = safe_text(state.graph_error) if state.graph_error is not None else ""
            if state.unanswered is not None:
                doubt = time.strftime("no answer since %H:%M:%S", time.localtime(state.unanswered))
            if doubt:
                # Rates are the least of it when what is shown is not how things are.
                pieces[5:] = [(f"{symbols.notable} {doubt}", "header-error")]
            elif line.width < NARROW:
                pieces = [(text.strip() or text, style) for text, style in pieces]
                for number, letter in ((1, "n "), (3, "j ")):
                    pieces[number] = letter, pieces[number][1]
                pieces[4] = f"{symbols.error}{broken} " if broken else "", pieces[4][1]
                pieces[7] = f" {pieces[7][0]}", pieces[7][1]
        width = sum(cell_len(text) for text, _ in pieces)
        if line.width >= NARROW:
            line.add(" blockmon ", "header-strong")
        # Both ends tell something: which kind of server, and whether it can only be looked at.
        room = line.room - width - 4
        if room >= SHORTEST_TITLE or line.width >= NARROW:
            line.add(f" {elide_middle(safe_text(state.title), max(10, room), symbols.ellipsis)}", "header")
        line.to(max(line.used + 2, line.width - width - 1), "header")
        for text, style in pieces:
            line.add(text, style)
        return line.finish("header")


class PromptTitle(BarWidget):
    """The rule above the prompt."""

    def __init__(self, look: Look, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.focused_below = False
        self.join_at: int | None = None
        """Where a vertical rule comes down from above."""
        self.key = ""
        """The key that leads here, where it has to be told."""

    def draw(self, line: Line) -> Strip:
        symbols = self.look.symbols
        line.add(symbols.rule, "rule").add(f" {self.key}" if self.key else "", "tab-key")
        line.add(" REPL ", "title-focus" if self.focused_below else "title")
        if self.join_at is not None and self.join_at > line.used:
            line.to(self.join_at, "rule", symbols.rule).add(symbols.rule_up, "rule")
        return line.to(line.width, "rule", symbols.rule).finish()


@dataclass(frozen=True)
class Tab:
    """A pane that can be turned to: its id, its key as shown, its name."""

    id: str
    key: str
    name: str


class TabBar(BarWidget):
    """Names of the panes when only one of them fits."""

    class Picked(Message):
        """A tab was clicked."""

        def __init__(self, id: str) -> None:
            super().__init__()
            self.pane_id = id

    def __init__(self, look: Look, tabs: Sequence[Tab], note: Callable[[str], str], *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.tabs = tabs
        self.active = tabs[0].id
        self._note = note
        self._places: list[tuple[int, int, str]] = []
        self._roomy: list[tuple[str, str]] = []

    def draw(self, line: Line) -> Strip:
        self._places = []
        texts = self._texts(line.width)
        for number, (tab, (key, name)) in enumerate(zip(self.tabs, texts, strict=True)):
            start = line.used
            if tab.id == self.active:
                line.add(f" {key} {name} " if key and name else f" {key}{name} ", "tab-active")
            else:
                line.add(f" {key}" if key else "", "tab-key").add(f" {name} " if name else " ", "tab")
            self._places.append((start, line.used, tab.id))
            if number < len(texts) - 1 and texts is self._roomy:
                line.add(" ", "tab")
        return line.finish("tab")

    def _texts(self, width: int) -> list[tuple[str, str]]:
        """Key and name of each tab, as much as there is room for."""
        notes = [f"{tab.name} {self._note(tab.id)}".rstrip() for tab in self.tabs]
        active = [tab.id == self.active for tab in self.tabs]
        self._roomy = [(tab.key, name) for tab, name in zip(self.tabs, notes, strict=True)]
        names = [("", name) for name in notes]
        keys = [("", name) if here else (tab.key, "") for tab, name, here in zip(self.tabs, notes, active, strict=True)]
        for texts, gap in ((self._roomy, 1), (names, 0)):
            if sum(cell_len(f"{key} {name}".strip()) + 2 + gap for key, name in texts) - gap <= width:
                return texts
        return keys

    def on_click(self, event: events.Click) -> None:
        for start, end, pane in self._places:
            if start <= event.x < end:
                self.post_message(self.Picked(pane))


_KEY_NAMES = {
    "enter": "Enter", "space": "Space", "escape": "Esc", "tab": "Tab", "shift+tab": "S-Tab", "slash": "/",
    "minus": "-", "plus": "+", "equals_sign": "=", "up": "↑", "down": "↓", "left": "←", "right": "→",
    "pageup": "PgUp", "pagedown": "PgDn", "home": "Home", "end": "End", "delete": "Del",
}  # fmt: skip
_ASCII_KEY_NAMES = {"↑": "Up", "↓": "Down", "←": "Left", "→": "Right"}


def key_name(binding: Binding, ascii_only: bool = False) -> str:
    """How a binding's key is written for people."""
    name = binding.key_display or ""
    if not name:
        key = binding.key
        if key in _KEY_NAMES:
            name = _KEY_NAMES[key]
        elif key.startswith("ctrl+"):
            name = f"^{key.removeprefix('ctrl+').upper()}"
        else:
            name = key.upper() if len(key) > 1 and key[0] == "f" and key[1:].isdigit() else key
    return _ASCII_KEY_NAMES.get(name, name) if ascii_only else name


@dataclass(frozen=True)
class FooterEntry:
    """A key of the footer. *weight* tells how soon it gives way: 0 never."""

    key: str
    name: str
    description: str
    weight: int

    @property
    def width(self) -> int:
        """Cells that it takes."""
        return cell_len(self.name) + 1 + cell_len(self.description)


class FooterBar(BarWidget):
    """
    The keys that work now, from the bindings themselves.

    F-keys come first, then those of the focused pane, then the rest. Where there is not room for all, they stand closer
    together; then the F-keys but F1 give way, and then what works everywhere: the pane's own keys stay longest.
    """

    LAST: ClassVar[tuple[str, ...]] = ("ctrl+q",)
    AT_PROMPT: ClassVar[tuple[str, ...]] = ("f8", "f9")
    """Shown where the letters that do the same are typed as text."""

    def __init__(self, look: Look, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.left_out: frozenset[str] = frozenset()
        """Keys that are written elsewhere on the screen."""
        self._places: list[tuple[int, int, str]] = []

    def entries(self) -> list[FooterEntry]:
        """The keys that work, in the order shown."""
        found: list[tuple[tuple[int, int], FooterEntry]] = []
        app, ascii_only = self.app, self.look.symbols.arrow != "→"
        at_prompt = app.focused is not None and app.focused.id == "prompt"
        # What is typed into a pane is no command to it; the line that is typed into tells its own keys.
        typed_into = app.focused if getattr(app.focused, "typing", False) else None
        seen: set[tuple[object, str]] = set()
        for number, (key, active) in enumerate(app.screen.active_bindings.items()):
            binding = active.binding
            shown = binding.show or (at_prompt and key in self.AT_PROMPT)
            if not shown or not active.enabled or key in self.left_out or (active.node, binding.action) in seen:
                continue
            if active.node is typed_into or (typed_into is not None and key == "escape"):
                continue
            seen.add((active.node, binding.action))
            is_f_key = key[0] == "f" and key[1:].isdigit()
            place = (2, number) if key in self.LAST else (0, int(key[1:])) if is_f_key else (1, number)
            if key == "f1" or key in self.LAST:
                weight = 0
            elif is_f_key:
                weight = 3
            else:
                # The way out is as good as a key of the pane's own.
                weight = 2 if active.node is app and key != "escape" else 1
            found.append((place, FooterEntry(key, key_name(binding, ascii_only), binding.description, weight)))
        return [entry for _, entry in sorted(found, key=lambda item: item[0])]

    def draw(self, line: Line) -> Strip:
        entries = self.entries()
        room = line.width - 1
        gap = 2 if sum(entry.width + 2 for entry in entries) <= room else 1
        shown: list[FooterEntry] = []
        for entry in sorted(entries, key=lambda entry: entry.weight):
            if entry.width + (gap if shown else 0) <= room:
                room -= entry.width + (gap if shown else 0)
                shown.append(entry)
        shown.sort(key=entries.index)
        self._places = []
        line.add(" ", "footer")
        for number, entry in enumerate(shown):
            if entry.key in self.LAST:
                line.to(max(line.used, line.width - entry.width - (1 if gap == 2 else 0)), "footer")
            start = line.used
            line.add(entry.name, "footer-key").add(f" {entry.description}", "footer")
            self._places.append((start, line.used, entry.key))
            if number < len(shown) - 1:
                line.add(" " * gap, "footer")
        return line.finish("footer")

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_updated)

    def _bindings_updated(self, screen: Screen[object]) -> None:
        if self.is_mounted and screen is self.screen:
            self.update_line()

    def on_click(self, event: events.Click) -> None:
        for start, end, key in self._places:
            if start <= event.x < end:
                self.app.simulate_key(key)
