"""prompt_toolkit's application in the prompt's pane: what stands where, and the keys that are the pane's own."""

from __future__ import annotations

from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.layout import (
    BufferControl,
    CompletionsMenu,
    ConditionalContainer,
    Dimension,
    Float,
    FloatContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    Window,
)
from prompt_toolkit.layout.processors import BeforeInput, HighlightMatchingBracketProcessor, HighlightSearchProcessor
from prompt_toolkit.styles import BaseStyle
from prompt_toolkit.widgets import SearchToolbar, ValidationToolbar
from textual.app import App
from textual.geometry import Size

from blockmon.repl.keys import continuation, editing_mode, prompt_bindings
from blockmon.repl.session import ReplSession

REDRAW_INTERVAL = 1 / 60


class Pane(Protocol):
    """What the application asks of the pane around it."""

    buffer: Buffer

    @property
    def app(self) -> App[object]:
        """Textual's application."""

    @property
    def size(self) -> Size:
        """The pane's, in cells."""

    def hint(self) -> StyleAndTextTuples:
        """The line below the prompt."""

    def rows_above(self) -> int:
        """How many rows the transcript would like to have."""

    def stop_or_clear(self) -> None:
        """Empty the line, or stop waiting for an answer."""

    def clear(self) -> None:
        """Empty the transcript."""

    def quit(self) -> None:
        """Say that the user wants to leave."""

    def take_screen(self) -> None:
        """Show what was drawn."""


def make_application(pane: Pane, session: ReplSession, style: BaseStyle) -> tuple[Application[None], Window]:
    """The application, to be run in a session of its own, and the window that is typed into."""
    search = SearchToolbar()
    control = BufferControl(
        pane.buffer,
        lexer=session.lexer,
        search_buffer_control=search.control,
        input_processors=[
            HighlightSearchProcessor(),
            HighlightMatchingBracketProcessor(max_cursor_distance=500),
            BeforeInput(lambda: session.settings["prompt"], style="class:prompt"),
        ],
        preview_search=True,
    )

    def line_prefix(line: int, wraps: int) -> StyleAndTextTuples:
        if line and not wraps:
            return [("class:prompt.continuation", continuation(session.settings))]
        return []

    def height_above() -> Dimension:
        rows = pane.rows_above()
        return Dimension(min=0, preferred=rows, max=rows)

    window = Window(
        control, wrap_lines=True, dont_extend_height=True, get_line_prefix=line_prefix, height=Dimension(min=1)
    )
    body = HSplit([Window(height=height_above), window, search, ValidationToolbar(), Window()])
    menu = Float(CompletionsMenu(max_height=12, scroll_offset=1), xcursor=True, ycursor=True)
    hint = ConditionalContainer(
        Window(FormattedTextControl(pane.hint), height=1, style="class:hint"),
        filter=Condition(lambda: pane.size.height >= 3),
    )
    app: Application[None] = Application(
        layout=Layout(HSplit([FloatContainer(body, [menu]), hint]), focused_element=window),
        style=style,
        include_default_pygments_style=False,
        key_bindings=merge_key_bindings([prompt_bindings(session, pane.app.copy_to_clipboard), _bindings_of(pane)]),
        editing_mode=editing_mode(session.settings),
        full_screen=True,
        enable_page_navigation_bindings=False,
        mouse_support=False,
        min_redraw_interval=REDRAW_INTERVAL,
        # Textual tells of a new size; polling for it would wake an idle program.
        terminal_size_polling_interval=None,
        after_render=lambda _: pane.take_screen(),
    )
    app.ttimeoutlen = 0.01
    app.timeoutlen = 0.2
    return app, window


def _bindings_of(pane: Pane) -> KeyBindings:
    bindings = KeyBindings()
    at_prompt = has_focus(DEFAULT_BUFFER)

    @bindings.add("c-c", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        pane.stop_or_clear()

    @bindings.add("c-d", filter=at_prompt & Condition(lambda: not pane.buffer.text))
    def _(event: KeyPressEvent) -> None:
        pane.quit()

    @bindings.add("c-l", filter=at_prompt)
    def _(event: KeyPressEvent) -> None:
        pane.clear()

    # What needs a terminal of its own does nothing here: suspending, the editor.
    @bindings.add("c-z")
    @bindings.add("c-x", "c-e")
    def _(event: KeyPressEvent) -> None:
        pane.app.bell()

    return bindings
