"""Keys and checks that the prompt has beyond prompt_toolkit's own, alone as in the TUI."""

from __future__ import annotations

import re
from collections.abc import Callable

from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import Condition, emacs_mode, has_focus, has_selection
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.validation import ValidationError, Validator

from blockmon.repl.session import ReplSession
from blockmon.repl.settings import Settings

KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "runs the command, or goes on with the next line while brackets are open"),
    ("Alt+Enter", "begins a new line in any case"),
    ("Tab", "completes, Esc closes the menu"),
    ("Up and Down", "walk through the history"),
    ("Ctrl+R", "searches the history"),
    ("Ctrl+C", "clears the line, or stops waiting for an answer"),
    ("Ctrl+D", "leaves, when the line is empty"),
    ("Alt+W", "copies the last answer to the clipboard"),
    ("Alt+E", "shows or hides events"),
    ("Alt+M", "changes between emacs and vi keys"),
    ("\\help", "lists the prompt's own commands, which begin with a backslash"),
)
"""The prompt's keys beyond those of every line editor, for the help."""

HELP = "".join(f"{key} {text}.\n" for key, text in KEYS)

_GOES_ON = ("=", ".", "/", " ")
_STRINGS = re.compile(r'"(?:[^"\\\n]|\\.)*"?')


class InputValidator(Validator):
    """Keeps text that cannot be a command in the prompt, with the cursor where it is wrong."""

    def __init__(self, session: ReplSession) -> None:
        self._session = session

    def validate(self, document: Document) -> None:
        """Raise prompt_toolkit's error for text that is no command."""
        error = self._session.check(document.text).error
        if error is not None:
            position = document.translate_row_col_to_index(error.line - 1, error.column - 1)
            raise ValidationError(min(position, len(document.text)), error.message)


def prompt_bindings(session: ReplSession, copy: Callable[[str], object]) -> KeyBindings:
    """The bindings that both prompts share. *copy* puts a text on the clipboard."""
    bindings = KeyBindings()
    at_prompt = has_focus(DEFAULT_BUFFER)
    completion_is_open = Condition(lambda: get_app().current_buffer.complete_state is not None)

    @bindings.add("enter", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is not None and state.current_completion is not None:
            # The first Enter takes the chosen completion, the next one runs the command.
            take_completion(buffer)
        elif session.check(buffer.text).complete:
            buffer.validate_and_handle()
        else:
            new_line(buffer)

    @bindings.add("tab", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is None:
            buffer.start_completion(insert_common_part=True)
        elif len(state.completions) == 1:
            take_completion(buffer)
        else:
            buffer.complete_next()

    @bindings.add("escape", "enter", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        new_line(event.current_buffer)

    @bindings.add("escape", "e", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        session.toggle_events()

    @bindings.add("escape", "m", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        keys = "emacs" if session.settings["keys"] == "vi" else "vi"
        session.settings.set("keys", keys)
        session.notice(f"{keys} keys")

    @bindings.add("escape", filter=at_prompt & completion_is_open & emacs_mode)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    @bindings.add("escape", "w", filter=at_prompt & ~has_selection)
    def _(event: KeyPressEvent) -> None:
        if session.last_answer:
            copy(session.last_answer)
            session.notice(f"copied the last answer ({len(session.last_answer)} characters)")

    return bindings


def editing_mode(settings: Settings) -> EditingMode:
    """The line editor that the settings say."""
    return EditingMode.VI if settings["keys"] == "vi" else EditingMode.EMACS


def continuation(settings: Settings) -> str:
    """What stands in front of the second line and those below it, as wide as the prompt."""
    width = get_cwidth(settings["prompt"])
    return ("." * min(3, max(width - 1, 0)) + " ").rjust(width) if width else ""


def take_completion(buffer: Buffer) -> None:
    """Take the chosen completion, or the only one, and show what can follow it: a value behind ``=``, a file behind a
    directory."""
    state = buffer.complete_state
    if state is not None and state.complete_index is None:
        buffer.go_to_completion(0)
    buffer.complete_state = None
    if buffer.document.text_before_cursor.endswith(_GOES_ON):
        buffer.start_completion()


def names_changed(buffer: Buffer, session: ReplSession) -> None:
    """Bring the menu up to date, unless the user is choosing from it; open it where nothing was found before. To be
    called in the prompt's own context."""
    state = buffer.complete_state
    if state is not None:
        if state.complete_index is None:
            buffer.complete_state = None  # while it is set nothing is asked for anew
            buffer.start_completion()
    elif buffer.text and session.completer.unanswered == (buffer.text, buffer.cursor_position):
        buffer.start_completion()


def clear_line(buffer: Buffer) -> None:
    """Begin anew; what was typed can be had back from the history."""
    if buffer.text:
        buffer.append_to_history()
        buffer.reset()


def new_line(buffer: Buffer) -> None:
    """Begin a line, indented by the brackets that are open."""
    before = _STRINGS.sub("", buffer.document.text_before_cursor)
    depth = sum(before.count(bracket) for bracket in "{[") - sum(before.count(bracket) for bracket in "}]")
    buffer.insert_text("\n" + "  " * max(depth, 0))
