"""A line at the bottom of a pane that a text is typed into: what to search for, where to save to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from textual import events

from blockmon.tui.line import Line

_ROOM_FOR_KEYS = 60
"""Cells of a line from which on the keys are told in it."""


class Typed(Enum):
    """What a key did to an entry."""

    NOTHING = "nothing"
    """The key is none that writes."""
    CHANGED = "changed"
    DONE = "done"
    LEFT = "left"


@dataclass
class Entry:
    """A text that is being typed. *label* stands before it, *keys* tells of the keys; *note* is an answer to it."""

    label: str
    text: str = ""
    keys: str = "Enter  Esc"
    note: str = ""
    error: bool = False
    on_change: Callable[[], None] = lambda: None
    on_done: Callable[[], None] = lambda: None
    on_left: Callable[[], None] = lambda: None

    def say(self, note: str, *, error: bool = False) -> None:
        """Answer to what was typed, until it is changed."""
        self.note, self.error = note, error

    def press(self, event: events.Key) -> Typed:
        """Take a key in."""
        if event.key == "enter":
            self.on_done()
            return Typed.DONE
        if event.key == "escape":
            self.on_left()
            return Typed.LEFT
        if event.key in ("backspace", "ctrl+h"):
            text = self.text[:-1]
        elif event.key == "ctrl+u":
            text = ""
        elif event.key == "ctrl+w":
            text = self.text.rstrip(" /").rpartition(" ")[0] if " " in self.text else ""
        elif event.is_printable and event.character:
            text = self.text + event.character
        else:
            return Typed.NOTHING
        self.write(text)
        return Typed.CHANGED

    def write(self, text: str) -> None:
        """Put another text in."""
        if text != self.text:
            self.text = text
            self.say("")
            self.on_change()

    def draw(self, line: Line) -> Line:
        """The line: the end of a long text is what is shown of it."""
        line.add(f"{self.label} ", "dim")
        told = self.note or (self.keys if line.width >= _ROOM_FOR_KEYS else "")
        room = max(8, line.room - len(told) - 4)
        text = self.text
        if len(text) > room:
            text = line.look.symbols.ellipsis + text[len(text) - room + 1 :]
        line.add(text, "match").add(line.look.symbols.caret, "strong")
        line.to(max(line.used + 2, line.width - len(told)))
        return line.add(told, "state.error" if self.error else "dim")
