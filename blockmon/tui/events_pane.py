"""The event log, newest at the top. Scrolling away from the top holds it still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from blockmon.model.events import EventView, LoggedEvent
from blockmon.model.refresher import Changes, ScreenState
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import EventSubject, Subject

_STYLES = {
    "error": "state.error", "notable": "state.notable", "done": "state.completed", "plain": "strong", "trivial": "dim",
}  # fmt: skip


class EventsPane(RowsPane):
    """
    The log of events over a ring of the last 100,000.

    While the cursor is on the newest event, new ones push it along. As soon as it is moved down, what is shown stays
    where it is and the title counts what came since.
    """

    title = "Events"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "inspect", key_display="Enter", id="events.inspect"),
        Binding("space", "pause", "pause", key_display="Space", id="events.pause"),
        Binding("slash", "filter", "filter", key_display="/", id="events.filter"),
        Binding("y", "copy", "copy", id="events.copy"),
    ]

    class Selected(Message):
        """The cursor came to another event."""

        def __init__(self, subject: Subject | None) -> None:
            super().__init__()
            self.subject = subject

    class Chosen(Selected):
        """An event was chosen to be looked at closely."""

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.view = EventView(state.events)
        self._held: int | None = None
        """The end of the log when it was held; None while the newest is shown."""

    # What there is.

    @property
    def paused(self) -> bool:
        """True while new events are not shown."""
        return self._held is not None

    @property
    def _shown(self) -> int:
        """How many events of the view there are to show, from the oldest."""
        return len(self.view) if self._held is None else self.view.index_of(self._held)

    @property
    def newer(self) -> int:
        """How many events came since the log was held."""
        return len(self.view) - self._shown

    def event_at(self, index: int) -> LoggedEvent:
        """The event in row *index*: the newest shown is in row 0."""
        return self.view[self._shown - 1 - index]

    def subject(self) -> Subject | None:
        """What the cursor is on."""
        return EventSubject(self.event_at(self.cursor).number) if self.cursor < self.count() else None

    def count(self) -> int:
        return self._shown

    def model_changed(self, changes: Changes) -> None:
        """Take in new events."""
        if changes.events:
            self.view.refresh()
            self.update_rows()

    def empty_text(self) -> Sequence[str]:
        return ("No event holds that.",) if self.filter_text else ("No events yet.",)

    def title_note(self) -> str:
        if self._held is None:
            return ""
        return f"held, {self.newer} newer" if self.newer else "held"

    def draw(self, index: int, line: Line) -> Line:
        entry = self.event_at(index)
        style = _STYLES[entry.severity]
        sign = {"error": self.look.symbols.error, "notable": self.look.symbols.notable}.get(entry.severity, " ")
        line.add(entry.clock if line.width >= 50 else entry.clock[:8], "dim").add(f" {sign} ", style)
        return line.add(entry.name, style).add("  ").add(entry.summary, "dim" if style == "dim" else "text")

    # Keys.

    def go_to(self, index: int) -> None:
        if index > 0 and self._held is None:
            self._hold(True)
        elif index <= 0 and self._held is not None:
            self._hold(False)
            self.cursor = self.top = 0
        super().go_to(index)

    def _hold(self, hold: bool) -> None:
        self._held = self.state.events.end if hold else None
        self.screen.refresh_bindings()

    def _scroll(self, rows: int, event: object) -> None:
        if rows > 0 and self._held is None:
            self._hold(True)
        super()._scroll(rows, event)  # type: ignore[arg-type]

    def action_pause(self) -> None:
        if self._held is None:
            self._hold(True)
        else:
            self.go_to(0)
        self.update_rows()

    def action_copy(self) -> None:
        if self.cursor < self.count():
            self.post_message(self.Copied(self.event_at(self.cursor).as_json(), "the event"))

    def filter_changed(self) -> None:
        self.view = EventView(self.state.events, self.filter_text)
        self.cursor = self.top = 0

    def cursor_moved(self) -> None:
        self.post_message(self.Selected(self.subject()))

    def row_chosen(self) -> None:
        self.post_message(self.Chosen(self.subject()))

    def action_choose(self) -> None:
        if self.count():
            self.row_chosen()
