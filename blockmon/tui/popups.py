"""What opens over the screen: the help, made from the bindings, and the menu of actions."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen

from blockmon.tui.actions import Choice
from blockmon.tui.bars import key_name
from blockmon.tui.inspect_text import Pieces, wrap
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane

Row = tuple[tuple[str, str], ...]


class ListPopup(RowsPane):
    """The rows inside a popup."""

    fill = "popup"
    cursor_style = "popup-cursor"

    def __init__(self, look: Look, rows: Sequence[Row], has_cursor: bool, foot: str) -> None:
        super().__init__(look)
        self.rows = rows
        self.has_cursor = has_cursor
        self.show_title = False
        self.foot = foot
        self.on_cursor: Callable[[], None] = lambda: None
        self.on_chosen: Callable[[], None] = lambda: None

    def cursor_moved(self) -> None:
        self.on_cursor()

    def row_chosen(self) -> None:
        self.on_chosen()

    def count(self) -> int:
        return len(self.rows)

    def draw(self, index: int, line: Line) -> Line:
        for text, style in self.rows[index]:
            line.add(text, style)
        return line


class Popup(ModalScreen[str | None]):
    """A frame in the middle of the screen."""

    DEFAULT_CSS = """
    Popup { align: center middle; background: transparent; }
    Popup > Vertical {
        border: round $accent; background: $surface; color: $foreground;
        border-title-color: $accent; border-title-style: bold; border-subtitle-color: $foreground;
        width: auto; height: auto; max-width: 100%; max-height: 100%;
    }
    Popup.-ascii > Vertical { border: ascii $accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "close", "close", key_display="Esc"),
        Binding("f1", "help", "help"),
        Binding("question_mark", "help", "help", key_display="?", show=False),
    ]

    rows_below = 0
    least_width = 0
    """Cells for the rows at least, where there is room."""

    def __init__(self, look: Look, title: str, rows: Sequence[Row], *, has_cursor: bool, foot: str) -> None:
        super().__init__(classes="" if look.symbols.arrow == "→" else "-ascii")
        self.look = look
        self.list = ListPopup(look, rows, has_cursor, foot)
        self._title, self._foot = title, foot

    def compose(self) -> ComposeResult:
        with Vertical() as frame:
            # As content and not as text, for a name may look like markup.
            frame.border_title = Content(self._title)
            frame.border_subtitle = Content(self._foot)
            yield from self.compose_above()
            yield self.list
            yield from self.compose_below()

    def compose_above(self) -> ComposeResult:
        """More widgets above the list."""
        yield from ()

    def compose_below(self) -> ComposeResult:
        """More widgets below the list."""
        yield from ()

    def on_mount(self) -> None:
        self._fit()
        self.list.focus()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        width = max((sum(len(text) for text, _ in row) for row in self.list.rows), default=20)
        self.list.styles.width = min(max(width, len(self._foot) + 2, self.least_width) + 2, self.size.width - 2)
        self.list.styles.height = max(1, min(len(self.list.rows), self.size.height - 2 - self.rows_below))

    def action_close(self) -> None:
        self.dismiss(None)

    def action_help(self) -> None:
        """Show this popup's own keys."""
        ascii_only = self.look.symbols.arrow != "→"
        # What Textual binds on every screen (Tab, copying) does nothing here.
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Popup)]
        own = [binding for kind in kinds for binding in vars(kind).get("BINDINGS", ())]
        sections = [
            (self._title or "Here", binding_lines(own, ascii_only)),
            ("In every list", binding_lines(RowsPane.BINDINGS, ascii_only)),
        ]
        self.app.push_screen(HelpPopup(self.look, sections))


_KEYS_WIDTH = 17
_AROUND = 6
"""Cells of a popup's frame, the margins of its list and a little air."""


class HelpPopup(Popup):
    """All keys, by where they work, and what the signs mean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "close", "close help"),
        Binding("question_mark", "close", "close help", key_display="?", show=False),
    ]

    def __init__(self, look: Look, sections: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> None:
        self._sections = list(sections)
        keys = "PgUp PgDn scroll" if look.symbols.arrow != "→" else "↑ ↓ scroll"
        foot = f"{keys} {look.symbols.dot} Esc close"
        super().__init__(look, "Help", self._rows(), has_cursor=False, foot=foot)

    def _rows(self, width: int = 1000) -> list[Row]:
        rows: list[Row] = []
        keys = _KEYS_WIDTH if width >= 2 * _KEYS_WIDTH + 24 else _KEYS_WIDTH // 2
        for title, lines in self._sections:
            if rows:
                rows.append((("", "popup"),))
            rows.append(((title, "popup-title"),))
            for left, right in lines:
                name = f"  {left} "
                if cell_len(name) > keys:
                    rows.append(((name, "popup-key"),))
                    name = ""
                for text in textwrap.wrap(right, max(12, width - keys)) or [""]:
                    rows.append(((f"{name:<{keys}}", "popup-key"), (text, "popup")))
                    name = ""
        return rows

    def _fit(self) -> None:
        # What it says is broken where it does not fit, not cut off.
        self.list.rows = self._rows(self.size.width - _AROUND)
        super()._fit()


class _CommandText(RowsPane):
    """The command of the choice under the cursor, in as many lines as it takes."""

    fill = "popup"
    has_cursor = False
    can_focus = False

    def __init__(self, look: Look) -> None:
        super().__init__(look)
        self.show_title = False
        self.text = ""

    def _lines(self) -> list[Pieces]:
        return wrap([(self.text, "popup-command")], self.inner_width)

    def count(self) -> int:
        return len(self._lines())

    def draw(self, index: int, line: Line) -> Line:
        for text, style in self._lines()[index]:
            line.add(text, style)
        return line


class ActionsPopup(Popup):
    """What can be done to one thing. Choosing closes it with the command as its result."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "pick", "write into the prompt", key_display="Enter")]
    DEFAULT_CSS = "ActionsPopup _CommandText { height: 3; margin: 1 0 0 0; }"
    rows_below = 4
    least_width = 69

    def __init__(self, look: Look, title: str, choices: Sequence[Choice]) -> None:
        self.choices = list(choices)
        rows: list[Row] = [((f"{choice.key:<3}", "popup-key"), (choice.name, "popup")) for choice in self.choices]
        foot = f"Enter takes it to the prompt {look.symbols.dot} Esc close"
        super().__init__(look, title, rows, has_cursor=True, foot=foot)
        self.command = _CommandText(look)
        self.list.on_cursor = self._show_command
        self.list.on_chosen = self.action_pick

    def compose_below(self) -> ComposeResult:
        yield self.command

    def _fit(self) -> None:
        super()._fit()
        self.command.styles.width = self.list.styles.width
        self._show_command()

    def _show_command(self) -> None:
        self.command.text = self.choices[self.list.cursor].command
        self.command.update_rows()

    def action_pick(self) -> None:
        self.dismiss(self.choices[self.list.cursor].command)

    def on_key(self, event: events.Key) -> None:
        """Pick by the action's own key."""
        for choice in self.choices:
            if choice.key and choice.key == event.character:
                event.stop()
                self.dismiss(choice.command)
                return


def binding_lines(bindings: Iterable[BindingType], ascii_only: bool = False) -> list[tuple[str, str]]:
    """Keys and what they do, from a class's bindings; several keys for one thing share a line."""
    lines: list[tuple[str, str]] = []
    for item in bindings:
        binding = item if isinstance(item, Binding) else Binding(*item)
        if not binding.description:
            continue
        names = [
            key_name(Binding(key, binding.action, key_display=binding.key_display if number == 0 else None), ascii_only)
            for number, key in enumerate(binding.key.split(","))
        ]
        lines.append((" ".join(dict.fromkeys(names)), binding.tooltip or binding.description))
    return lines
