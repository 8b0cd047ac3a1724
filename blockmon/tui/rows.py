"""
The base of all panes that list rows: a heading, rows drawn only where they can be seen, a cursor, scrolling, a filter.

Nothing is drawn twice: after a change the visible lines are put together anew and only those that came out different
are sent to the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from blockmon.tui.line import Line, join
from blockmon.tui.look import Look
from blockmon.tui.subject import Subject

PLAIN, LEFT_OF_RULE, RIGHT_OF_RULE = "plain", "left", "right"


class RowsPane(Widget, can_focus=True):
    """A pane of rows. Subclasses say how many there are and draw one."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "RowsPane { width: 1fr; height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False),
        Binding("home,g", "first", "first", show=False),
        Binding("end,G", "last", "last", show=False),
    ]

    class Copied(Message):
        """A text is to go to the clipboard; *what* says in a word or two what it is."""

        def __init__(self, text: str, what: str) -> None:
            super().__init__()
            self.text = text
            self.what = what

    title = ""
    has_cursor = True
    fill = "text"
    """Style of the ground that rows are drawn on."""
    cursor_style = "cursor"

    def __init__(self, look: Look, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = look
        self.top = 0
        self.cursor = 0
        self.show_title = True
        self.rule = ""
        """The character at the left end of the title where a vertical rule runs down this pane's left side."""
        self.filter_text = ""
        self.filtering = False
        self._drawn: list[Strip] | None = None
        self.on_choose: Callable[[Subject | None], None] = lambda subject: None
        """Looks closely at what was chosen. Called, not told by a message: keys typed ahead belong where it leads."""

    # What subclasses provide.

    def count(self) -> int:
        """How many rows there are."""
        raise AssertionError

    def draw(self, index: int, line: Line) -> Line:
        """Put row *index* together."""
        raise AssertionError

    def mark(self, index: int) -> tuple[str, str]:
        """A sign of one cell for the left margin of row *index*, and its style; '' for none."""
        return "", ""

    def heading(self, line: Line) -> Line | None:
        """The line of column titles above the rows, if there is one."""
        return None

    def empty_text(self) -> Sequence[str]:
        """What to say where there are no rows."""
        return ()

    def title_text(self) -> str:
        """The pane's title."""
        return self.title

    def title_note(self) -> str:
        """A remark at the right end of the title."""
        return ""

    def cursor_moved(self) -> None:
        """Called after the cursor came to another row."""

    def filter_changed(self) -> None:
        """Called after `filter_text` changed."""

    # Drawing.

    @property
    def inner_width(self) -> int:
        """Cells for a row: the width without a rule, a margin on the left and the scroll mark on the right."""
        return max(0, self.size.width - 2 - (1 if self.rule else 0))

    @property
    def _above(self) -> int:
        heading = self.heading(Line(self.look, self.inner_width)) is not None
        return int(self.show_title) + int(heading)

    @property
    def visible_rows(self) -> int:
        """How many rows the pane can show at once."""
        return max(1, self.size.height - self._above - int(self._filter_line_shown))

    @property
    def _filter_line_shown(self) -> bool:
        return self.filtering or bool(self.filter_text)

    def update_rows(self) -> None:
        """Draw the pane anew and send what came out different."""
        if not self.is_mounted or not self.size.area:
            self._drawn = None
            return
        before, self._drawn = self._drawn, self._draw_all()
        if before is None or len(before) != len(self._drawn):
            self.refresh()
            return
        width = self.size.width
        regions = [Region(0, y, width, 1) for y, strip in enumerate(self._drawn) if strip != before[y]]
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        """One line of the pane."""
        drawn = self._drawn
        if drawn is None or len(drawn) != self.size.height or (drawn and drawn[0].cell_length != self.size.width):
            drawn = self._drawn = self._draw_all()
        return drawn[y] if y < len(drawn) else Strip.blank(self.size.width, self.look.base)

    def _draw_all(self) -> list[Strip]:
        look, width, height = self.look, self.size.width, self.size.height
        total, visible = self.count(), self.visible_rows
        self.cursor = min(max(0, self.cursor), max(0, total - 1))
        self.top = min(max(0, self.top), max(0, total - visible))
        strips: list[Strip] = []
        if self.show_title:
            strips.append(self._draw_title(width))
        heading = self.heading(Line(look, self.inner_width))
        if heading is not None:
            strips.append(self._framed(heading.finish(), ""))
        thumb = self._thumb(total, visible)
        rows = range(self.top, min(total, self.top + visible))
        for position, index in enumerate(rows):
            over = None
            if self.has_cursor and index == self.cursor:
                over = look.overlay(self.cursor_style if self.has_focus else "cursor-blurred")
            strip = self.draw(index, Line(look, self.inner_width)).finish(self.fill, over)
            strips.append(self._framed(strip, look.symbols.thumb if position in thumb else "", self.mark(index)))
        if not total:
            for text in self.empty_text():
                strips.append(self._framed(Line(look, self.inner_width).add(text, "dim").finish(), ""))
        bottom = [self._draw_filter()] if self._filter_line_shown else []
        while len(strips) < height - len(bottom):
            strips.append(self._framed(Line(look, self.inner_width).finish(self.fill), ""))
        return (strips[: height - len(bottom)] + bottom)[:height]

    def _draw_title(self, width: int) -> Strip:
        symbols = self.look.symbols
        line = Line(self.look, width)
        line.add(self.rule + symbols.rule if self.rule else symbols.rule, "rule")
        note = self.title_note()
        line.add(f" {self.title_text()} ", "title-focus" if self.has_focus else "title", limit=width - 4)
        if note and line.room > len(note) + 4:
            line.to(width - len(note) - 3, "rule", symbols.rule)
            line.add(f" {note} ", "dim")
        return line.to(width, "rule", symbols.rule).finish()

    def _framed(self, row: Strip, mark: str, sign: tuple[str, str] = ("", "")) -> Strip:
        left = Line(self.look, 2 if self.rule else 1)
        if self.rule:
            left.add(self.look.symbols.column, "rule")
        left.add(*sign)
        right = Line(self.look, 1).add(mark, "rule")
        return join(left.finish(self.fill), row, right.finish(self.fill))

    def _thumb(self, total: int, visible: int) -> range:
        """Which of the visible lines carry the scroll mark."""
        if total <= visible:
            return range(0)
        size = max(1, visible * visible // total)
        start = self.top * (visible - size) // max(1, total - visible)
        return range(start, start + size)

    def filter_hint(self) -> str:
        """Which keys there are for the filter."""
        return "Enter keep  Esc clear"

    def _draw_filter(self) -> Strip:
        line = (
            Line(self.look, self.inner_width)
            .add("/", "dim")
            .add(self.filter_text, "match", limit=self.inner_width - 24)
        )
        if self.filtering:
            line.add(self.look.symbols.caret, "strong")
        hint = self.filter_hint()
        line.to(max(line.used + 2, line.width - len(hint))).add(hint, "dim")
        return self._framed(line.finish(), "")

    # Moving.

    def show_row(self, index: int) -> None:
        """Scroll so that row *index* can be seen."""
        visible = self.visible_rows
        if index < self.top:
            self.top = index
        elif index >= self.top + visible:
            self.top = index - visible + 1

    def go_to(self, index: int) -> None:
        """Bring the cursor to row *index*, or scroll there in a pane without a cursor."""
        last = max(0, self.count() - 1)
        if self.has_cursor:
            before = self.cursor
            self.cursor = min(max(0, index), last)
            self.show_row(self.cursor)
            if self.cursor != before:
                self.cursor_moved()
                self.screen.refresh_bindings()
        else:
            self.top = min(max(0, index), max(0, self.count() - self.visible_rows))
            self.cursor_moved()
        self.update_rows()

    @property
    def position(self) -> int:
        """The row that moving starts from."""
        return self.cursor if self.has_cursor else self.top

    def action_move(self, rows: int) -> None:
        self.go_to(self.position + rows)

    def action_page(self, pages: int) -> None:
        self.go_to(self.position + pages * max(1, self.visible_rows - 1))

    def action_first(self) -> None:
        self.go_to(0)

    def action_last(self) -> None:
        self.go_to(self.count() - 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(3, event)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(-3, event)

    def _scroll(self, rows: int, event: events.MouseEvent) -> None:
        event.stop()
        self.top = min(max(0, self.top + rows), max(0, self.count() - self.visible_rows))
        if not self.has_cursor:
            self.cursor_moved()
        self.update_rows()

    def on_click(self, event: events.Click) -> None:
        index = self.top + event.y - self._above
        if self.has_cursor and event.y >= self._above and index < self.count():
            self.go_to(index)
            if event.chain == 2:
                self.row_chosen()

    def row_chosen(self) -> None:
        """Called for Enter and a double click on a row."""

    # The filter is typed into the pane itself.

    def action_filter(self) -> None:
        self.filtering = True
        self.update_rows()
        self.screen.refresh_bindings()

    @property
    def typing(self) -> bool:
        """True while a text is typed into the pane."""
        return self.filtering

    def takes(self, event: events.Key) -> bool:
        """Whether the pane itself does something with a key, whatever it is bound to."""
        return self.typing or (event.key == "escape" and bool(self.filter_text))

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """While a filter is typed, all keys that write belong to it."""
        return self.filtering and bool(character) and str(character).isprintable()

    async def _on_key(self, event: events.Key) -> None:
        if self.filtering:
            if event.key == "enter":
                self.filtering = False
            elif event.key == "escape":
                self.filtering = False
                self._set_filter("")
            elif event.key == "backspace":
                self._set_filter(self.filter_text[:-1])
            elif event.key == "ctrl+u":
                self._set_filter("")
            elif event.is_printable and event.character:
                self._set_filter(self.filter_text + event.character)
            else:
                return
        elif event.key == "escape" and self.filter_text:
            self._set_filter("")
        else:
            return
        event.stop()
        event.prevent_default()
        self.update_rows()
        self.screen.refresh_bindings()

    async def _on_paste(self, event: events.Paste) -> None:
        if self.filtering:
            event.stop()
            self._set_filter(self.filter_text + "".join(char for char in event.text if char.isprintable()))
            self.update_rows()

    def _set_filter(self, text: str) -> None:
        self.filter_text = text
        self.filter_changed()

    def on_focus(self) -> None:
        self.update_rows()

    def on_blur(self) -> None:
        self.filtering = False
        self.update_rows()

    def watch_has_focus(self, has_focus: bool) -> None:
        # on_focus() and on_blur() are called before the widget itself knows.
        super().watch_has_focus(has_focus)
        self.update_rows()

    def on_resize(self) -> None:
        self._drawn = None
        if self.has_cursor and self.cursor < self.count():
            self.show_row(self.cursor)
        self.update_rows()
