"""The event log, newest at the top. Scrolling away from the top holds it still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from blockmon.model.events import EventFilter, EventView, LoggedEvent, newest_as_json, save_events
from blockmon.model.format import safe_text
from blockmon.model.refresher import Changes, ScreenState
from blockmon.tui.entry import Entry, Typed
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import EventSubject, Subject, subject_of_event

_STYLES = {
    "error": "state.error", "notable": "state.notable", "done": "state.completed", "plain": "strong", "trivial": "dim",
}  # fmt: skip

SLICE = 0.004
"""Seconds that looking through the log may take before it is a key's turn."""
REST = 0.002
SHOWN_EVERY = 0.1
"""Seconds between two pictures of what has been found so far."""
COPIED_AT_ONCE = 48 * 1024
"""Bytes that go to the clipboard at once: terminals pass over OSC 52 sequences of more than some 74,000 characters,
which is what this comes to in base64, with room to spare."""


class EventsPane(RowsPane):
    """
    The log of events over a ring of the last 100,000.

    While the cursor is on the newest event, new ones push it along. As soon as it is moved down the pane holds what
    it shows, however much comes after, and the title counts what came since.
    """

    title = "Events"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "inspect", key_display="Enter", id="events.inspect"),
        Binding("space", "pause", "pause", key_display="Space", id="events.pause"),
        Binding("slash", "filter", "filter", key_display="/", id="events.filter"),
        Binding("s", "search", "search", id="events.search"),
        Binding("n", "search_on(1)", "next match", id="events.next"),
        Binding("N", "search_on(-1)", "match before", show=False, id="events.previous"),
        Binding("o", "jump", "jump", tooltip="go to its job, node or device", id="events.jump"),
        Binding("f", "only_these", "only of this job or node", show=False, id="events.only_these"),
        Binding("y", "copy", "copy", id="events.copy"),
        Binding("Y", "copy_all", "copy all that are listed", show=False, id="events.copy_all"),
        Binding("w", "save", "save", id="events.save"),
    ]

    class Selected(Message):
        """The cursor came to another event."""

        def __init__(self, subject: Subject | None) -> None:
            super().__init__()
            self.subject = subject

    class Told(Message):
        """Something to say for a moment."""

        def __init__(self, text: str, *, error: bool = False) -> None:
            super().__init__()
            self.text = text
            self.error = error

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.view = EventView(state.events)
        """What is listed while nothing is held: kept up in any case, for the count of newer events."""
        self._held: EventView | None = None
        """What is listed while the log is held; None while the newest is shown."""
        self._held_at = 0
        self._entry: Entry | None = None
        self._wanted = EventFilter("")
        self._seeking: tuple[int, int] | None = None
        """The number of the event to look at next for what is searched for, and the direction."""
        self._seek_from = 0
        self._going_on = False
        self._shown_at = 0.0
        self._can: tuple[object, object] = False, False
        self.on_jump: Callable[[Subject], None] = lambda subject: None
        """Turns to the job, node or device that an event tells of."""

    # What there is.

    @property
    def paused(self) -> bool:
        """True while new events are not shown."""
        return self._held is not None

    @property
    def listed(self) -> EventView:
        """What the pane lists, the oldest first."""
        return self.view if self._held is None else self._held

    @property
    def newer(self) -> int:
        """How many events came since the log was held."""
        return 0 if self._held is None else len(self.view) - self.view.index_of(self._held_at)

    def event_at(self, index: int) -> LoggedEvent:
        """The event in row *index*: the newest shown is in row 0."""
        return self.listed[len(self.listed) - 1 - index]

    def subject(self) -> Subject | None:
        """What the cursor is on."""
        if self.cursor >= self.count():
            return None
        entry = self.event_at(self.cursor)
        return EventSubject(entry.number, entry)

    def count(self) -> int:
        return len(self.listed)

    def model_changed(self, changes: Changes) -> None:
        """Take in new events."""
        if changes.events:
            self.view.refresh(SLICE)
            self._go_on()
            self.update_rows()
            can = self.check_action("choose", ()), self.check_action("jump", ())
            if can != self._can and self.has_focus:
                # The event under the cursor is another one, and other keys make sense for it.
                self.screen.refresh_bindings()
            self._can = can

    # Looking through a long log takes its time, in slices between which keys are answered.

    def _go_on(self) -> None:
        if self._going_on or not self.is_mounted:
            return
        if self.view.behind or self.listed.behind or self._seeking is not None:
            self._going_on = True
            self.set_timer(REST, self._next_slice)

    def _next_slice(self) -> None:
        self._going_on = False
        if self.listed.behind:
            self.listed.refresh(SLICE)
        elif self.view.behind:
            self.view.refresh(SLICE)
        elif self._seeking is not None:
            self._seek()
        self._go_on()
        if not self._going_on or time.monotonic() - self._shown_at >= SHOWN_EVERY:
            self._shown_at = time.monotonic()
            self.update_rows()

    def empty_text(self) -> Sequence[str]:
        if self.listed.behind:
            return ("Looking through the log …" if self.look.symbols.ellipsis == "…" else "Looking ...",)
        if not self.filter_text:
            return ("No events yet.",)
        return (
            "No event holds that.",
            "All words must be there: TEXT  event:NAME  job:ID  node:NAME  !WORD for not.",
        )

    def title_note(self) -> str:
        if self._seeking is not None:
            return "searching"
        if self.listed.behind:
            return "looking through the log"
        if self._held is None:
            return ""
        return f"held, {self.newer} newer" if self.newer else "held"

    def draw(self, index: int, line: Line) -> Line:
        entry, symbols = self.event_at(index), self.look.symbols
        style = _STYLES[entry.severity]
        signs = {"error": symbols.error, "notable": symbols.notable, "done": symbols.state("completed")}
        line.add(entry.clock if line.width >= 50 else entry.clock[:8], "dim")
        line.add(f" {signs.get(entry.severity, ' ')} ", style)
        self._add_marked(line, entry.name, style)
        line.add("  ")
        self._add_marked(line, entry.summary, "dim" if style == "dim" else "text")
        return line

    def _add_marked(self, line: Line, text: str, style: str) -> None:
        """Add a text with what is searched for marked in it."""
        folded = text.casefold()
        for wanted in self._wanted.plain:
            start = folded.find(wanted)
            if start >= 0 and len(folded) == len(text):
                end = start + len(wanted)
                line.add(text[:start], style).add(text[start:end], "match").add(text[end:], style)
                return
        line.add(text, style)

    # Holding still.

    def go_to(self, index: int) -> None:
        if index > 0 and self._held is None:
            self._hold(True)
        elif index <= 0 and self._held is not None and self._seeking is None:
            self._hold(False)
            self.cursor = self.top = 0
        super().go_to(index)

    def _hold(self, hold: bool) -> None:
        self._held = self.view.frozen() if hold else None
        self._held_at = self.state.events.end
        if not hold:
            self._seeking = None
        self.screen.refresh_bindings()

    def _scroll(self, rows: int, event: events.MouseEvent) -> None:
        if rows > 0 and self._held is None:
            self._hold(True)
        super()._scroll(rows, event)

    def action_pause(self) -> None:
        if self._held is None:
            self._hold(True)
        else:
            self.go_to(0)
        self.update_rows()

    # Selecting.

    def filter_changed(self) -> None:
        self.view = EventView(self.state.events, self.filter_text, seconds=SLICE)
        self._held = self._seeking = None
        self.cursor = self.top = 0
        self._go_on()

    def action_only_these(self) -> None:
        """Show the events of the job or node that the one under the cursor tells of, and no others."""
        entry = self.event_at(self.cursor)
        subject = f"job:{entry.job}" if entry.job else f"node:{entry.nodes[0]}"
        self._set_filter(f'"{subject}"' if " " in subject else subject)
        self.update_rows()
        self.screen.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing are not there."""
        if action in ("choose", "copy", "copy_all", "save", "search"):
            return self.count() > 0
        if action == "search_on":
            return bool(self._wanted) and self.count() > 0
        if action in ("jump", "only_these"):
            if self.cursor >= self.count():
                return False
            entry = self.event_at(self.cursor)
            return bool(entry.job or entry.nodes)
        return True

    # Searching.

    def action_search(self) -> None:
        """Ask for a text, and go to events that hold it while it is typed."""
        before = self._wanted
        self._seek_from = self.listed.number(len(self.listed) - 1 - self.cursor)

        def changed() -> None:
            self._wanted = EventFilter(entry.text)
            if self._wanted:
                self._start_seeking(self._seek_from, -1)

        def left() -> None:
            self._wanted, self._seeking = before, None
            self._close_entry()

        entry = Entry(
            "search", keys="Enter keep  Esc leave", on_change=changed, on_done=self._close_entry, on_left=left
        )
        self._open_entry(entry)

    def action_search_on(self, step: int) -> None:
        """Go to the next event down, or up with -1, that holds what was searched for."""
        index = len(self.listed) - 1 - self.cursor - step
        if 0 <= index < len(self.listed):
            self._start_seeking(self.listed.number(index), -step)
        else:
            self._not_found(-step)

    def _start_seeking(self, number: int, step: int) -> None:
        if self._held is None:
            self._hold(True)
        self._seeking = (number, step)
        self._seek()
        self._go_on()
        self.update_rows()

    def _seek(self) -> None:
        assert self._seeking is not None
        number, step = self._seeking
        listed = self.listed
        found, on = listed.search(self._wanted, listed.index_of(number), step, SLICE)
        if found is not None:
            self._say_in_entry("")
            # Still seeking, as far as go_to is concerned: the first row too is to be held.
            self.go_to(len(listed) - 1 - found)
            self._seeking = None
        elif 0 <= on < len(listed):
            self._seeking = (listed.number(on), step)
        else:
            self._seeking = None
            self._not_found(step)

    def _not_found(self, step: int) -> None:
        text = "none further down" if step < 0 else "none further up"
        if self._entry is not None:
            self._say_in_entry(text, error=True)
        else:
            self.post_message(self.Told(text))

    def _say_in_entry(self, text: str, *, error: bool = False) -> None:
        if self._entry is not None:
            self._entry.say(text, error=error)

    # To other panes, to the clipboard, to a file.

    def action_jump(self) -> None:
        """Go to the job, node or device that the event tells of."""
        entry = self.event_at(self.cursor)
        subject = subject_of_event(self.state, entry)
        if subject is not None:
            # At once: a key that was typed ahead belongs to the pane that this leads to.
            self.on_jump(subject)
        else:
            name = safe_text(entry.job or entry.nodes[0])
            self.post_message(self.Told(f"{name} is not there any more", error=True))

    def action_copy(self) -> None:
        if self.cursor < self.count():
            self.post_message(self.Copied(self.event_at(self.cursor).as_json(), "the event"))

    def action_copy_all(self) -> None:
        text, copied = newest_as_json(self.listed, COPIED_AT_ONCE)
        total = len(self.listed)
        what = f"{copied} events" if copied == total else f"the newest {copied} of {total} events; w saves them all"
        self.post_message(self.Copied(text, what))

    def action_save(self) -> None:
        """Ask for a file, and write what is listed into it."""
        asked: list[str] = []

        def done() -> None:
            path = entry.text.strip()
            if not path:
                entry.say("a file name is wanted", error=True)
                return
            overwrite = asked == [path]
            asked[:] = [path]
            self._write(path, entry, overwrite)

        name = time.strftime("events-%Y%m%d-%H%M%S.jsonl")
        entry = Entry("save to", name, "Enter save  Esc leave", on_done=done, on_left=self._close_entry)
        self._open_entry(entry)

    def _write(self, path: str, entry: Entry, overwrite: bool) -> None:
        # A frozen view: the log goes on while a thread writes.
        view = self.listed.frozen()
        view.refresh()

        async def write() -> None:
            try:
                count = await asyncio.to_thread(save_events, path, view, overwrite=overwrite)
            except FileExistsError:
                entry.say("it exists: Enter overwrites it", error=True)
            except OSError as error:
                entry.say(error.strerror or str(error), error=True)
            else:
                self.post_message(self.Told(f"{count} events written to {safe_text(path)}"))
                if self._entry is entry:
                    self._close_entry()
            self.update_rows()

        self.run_worker(write(), group="save", exclusive=True)

    # The line that a text is typed into.

    def _open_entry(self, entry: Entry) -> None:
        self._entry = entry
        self.filtering = False
        self.update_rows()
        self.screen.refresh_bindings()

    def _close_entry(self) -> None:
        self._entry = None
        self.update_rows()
        self.screen.refresh_bindings()

    @property
    def _filter_line_shown(self) -> bool:
        return self._entry is not None or super()._filter_line_shown

    def _draw_filter(self) -> Strip:
        if self._entry is None:
            return super()._draw_filter()
        return self._framed(self._entry.draw(Line(self.look, self.inner_width)).finish(), "")

    @property
    def typing(self) -> bool:
        return self._entry is not None or self.filtering

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """While a text is typed, all keys that write belong to it."""
        if self._entry is not None:
            return bool(character) and str(character).isprintable()
        return super().check_consume_key(key, character)

    async def _on_key(self, event: events.Key) -> None:
        if self._entry is None:
            return  # The base class, which Textual calls next, may be typing a filter.
        if self._entry.press(event) is not Typed.NOTHING:
            event.stop()
            event.prevent_default()
            self.update_rows()

    async def _on_paste(self, event: events.Paste) -> None:
        if self._entry is not None:
            event.stop()
            event.prevent_default()
            self._entry.write(self._entry.text + "".join(char for char in event.text if char.isprintable()))
            self.update_rows()

    def on_blur(self) -> None:
        if self._entry is not None:
            self._entry.on_left()

    def cursor_moved(self) -> None:
        self.post_message(self.Selected(self.subject()))

    def row_chosen(self) -> None:
        self.on_choose(self.subject())

    def action_choose(self) -> None:
        if self.count():
            self.row_chosen()
