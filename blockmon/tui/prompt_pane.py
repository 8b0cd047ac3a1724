"""The prompt in the TUI: a real prompt_toolkit application that draws into a Textual widget.

prompt_toolkit lays out the input line, the menu and the hint on a grid of cells; the transcript above is drawn by the
widget itself, so that output of any amount costs prompt_toolkit nothing. The traps of having both libraries on one
event loop are in ui-notes.md, section 1; the code that avoids each says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping

from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.layout.screen import Screen
from prompt_toolkit.styles import BaseStyle
from textual import events
from textual.geometry import Offset, Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from blockmon.repl.keys import InputValidator, clear_line, continuation, editing_mode, names_changed
from blockmon.repl.lexers import InputLexer, lexed
from blockmon.repl.printers import Fragments
from blockmon.repl.session import ReplSession
from blockmon.repl.style import build_style
from blockmon.repl.transcript import Transcript
from blockmon.tui.prompt_application import make_application
from blockmon.tui.prompt_cells import CellPainter, difference
from blockmon.tui.prompt_host import PaneHost, WidgetOutput
from blockmon.tui.prompt_keys import key_sequence

APP_KEYS = frozenset({"ctrl+q", "ctrl+z", *(f"f{number}" for number in range(1, 13))})
"""Keys that the prompt leaves to the application around it."""

LONGEST_ECHO = 2000
NAMES_INTERVAL = 0.1
"""Seconds between two updates of an open menu for what the server tells."""


class PromptPane(Widget, can_focus=True):
    """The prompt of a `ReplSession`, which the pane's owner starts and closes. The pane is the session's sink."""

    DEFAULT_CSS = """
    PromptPane { height: 1fr; min-height: 2; }
    """

    class Quit(Message):
        """The user wants to leave: Ctrl+D, or a `quit` that was carried out."""

    class Submitted(Message):
        """A text was handed to the session."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Answered(Message):
        """What was submitted has run; *succeeded* tells whether all of it did."""

        def __init__(self, text: str, succeeded: bool) -> None:
            super().__init__()
            self.text = text
            self.succeeded = succeeded

    def __init__(
        self,
        session: ReplSession,
        *,
        prompt_table: Mapping[str, str] | None = None,
        syntax_table: Mapping[str, str] | None = None,
        app_keys: Collection[str] = APP_KEYS,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.session = session
        self.transcript = Transcript()
        self._app_keys = frozenset(app_keys)
        self._pipe: PipeInput | None = None
        self._strips: list[Strip] = []
        self._painter = CellPainter(self._current_style, lambda: self.rich_style)
        self._pending: list[asyncio.Task[bool]] = []
        self._watching = False
        session.host = PaneHost(self)
        session.sink = self.write
        session.width = lambda: max(self.size.width, 20)
        session.on_end = self.quit
        session.on_names = self._names_changed
        self.buffer = Buffer(
            name=DEFAULT_BUFFER,
            multiline=True,
            completer=session.completer,
            complete_while_typing=True,
            history=session.history,
            validator=InputValidator(session),
            validate_while_typing=False,
            accept_handler=self._accept,
        )
        self._prompt_style = build_style(prompt_table or {}, syntax_table or {})
        # Made when the widget is mounted, in a session of prompt_toolkit's of its own.
        self.prompt_app: Application[None] | None = None
        self._names_timer: asyncio.TimerHandle | None = None
        self.keep: Callable[[str], bool] = lambda text: False
        """Asked before a line is run; True keeps it at the prompt."""

    # For the application around ------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What stands at the prompt."""
        return self.buffer.text

    def set_input(self, text: str, cursor: int | None = None) -> None:
        """Write *text* into the prompt in place of what is there, ready to edit at *cursor*, or at its end."""
        cursor = len(text) if cursor is None else cursor

        def put() -> None:
            self.buffer.set_document(Document(text, cursor), bypass_readonly=True)
            if text[:cursor].endswith("="):
                # What is legal here is shown at once.
                self.buffer.start_completion()

        self._in_prompt(put)
        self._invalidate()

    def run_line(self, text: str) -> None:
        """Run *text* as if it had been typed; what stands at the prompt stays there."""
        self.session.history.append_string(text)
        self._run(text)

    def leave_to_application(self, keys: Collection[str]) -> None:
        """Take no notice of *keys*, in Textual's names."""
        self._app_keys = frozenset(keys)

    def write(self, fragments: Fragments) -> None:
        """Append output to the transcript."""
        self.transcript.write(fragments, max(self.size.width, 1))
        self._invalidate()

    async def follow(self, frames: AsyncIterator[Fragments]) -> None:
        """Show *frames* one in place of the other, as long as nothing else is printed between them."""
        self._watching = True
        mark, last = None, list[tuple[str, str]]()
        try:
            async for last in frames:
                mark = self.transcript.replace(mark, last, max(self.size.width, 1))
                self._invalidate()
            self._watching = False
        finally:
            self.session.keep_answer(last)

    def settings_changed(self, name: str) -> None:
        """Put a setting of the session into effect."""
        if name == "keys" and self.prompt_app is not None:
            self.prompt_app.editing_mode = editing_mode(self.session.settings)
        self._invalidate()

    def clear(self) -> None:
        """Empty the transcript."""
        self.transcript.clear()
        self._invalidate()

    def apply_theme(self, prompt_table: Mapping[str, str], syntax_table: Mapping[str, str]) -> None:
        """Use the tables [prompt] and [syntax] of another theme."""
        self._prompt_style = build_style(prompt_table, syntax_table)
        self._painter.forget()
        if self.prompt_app is not None:
            self.prompt_app.style = self._prompt_style
            self._invalidate()

    # prompt_toolkit's application ----------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Start prompt_toolkit."""
        self.run_worker(self._run_prompt(), group="prompt", exit_on_error=True)

    async def _run_prompt(self) -> None:
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=WidgetOutput(self)):
            self._pipe = pipe
            app, self._window = make_application(self, self.session, self._prompt_style)
            self.prompt_app = app
            winch = signal.getsignal(signal.SIGWINCH)

            def give_back_winch() -> None:
                # prompt_toolkit has taken SIGWINCH from Textual's driver.
                asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
                signal.signal(signal.SIGWINCH, winch)

            def before_run() -> None:
                if winch is not None:
                    asyncio.get_running_loop().call_soon(give_back_winch)

            try:
                # Textual handles SIGINT and exceptions itself.
                await app.run_async(pre_run=before_run, handle_sigint=False, set_exception_handler=False)
            except EOFError:
                pass
            finally:
                self._pipe = None
                self.prompt_app = None

    async def on_unmount(self) -> None:
        """Let prompt_toolkit end, and stop waiting for answers."""
        if self._names_timer is not None:
            self._names_timer.cancel()
        for task in self._pending:
            task.cancel()
        app = self.prompt_app
        if app is not None and app.is_running:
            app.exit()

    def stop_or_clear(self) -> None:
        """Empty the line; where it is empty, stop waiting for the answer to the oldest command."""
        if self.buffer.text:
            clear_line(self.buffer)
        elif self._pending:
            self._pending[0].cancel()

    def rows_above(self) -> int:
        """How many rows the transcript would like to have."""
        return self.transcript.height(max(self.size.width, 1), max(self.size.height, 1))

    def hint(self) -> StyleAndTextTuples:
        """The line below the prompt."""
        width = max(self.size.width, 1)
        if self.transcript.offset:
            return [("class:hint", f"{self.transcript.offset} more rows below; PgDn goes there"[:width])]
        hint = self.session.hint(self.buffer.text, self.buffer.cursor_position, width)
        if not hint and self._pending:
            text = "Ctrl+C or Enter ends it" if self._watching else "waiting for the answer; Ctrl+C stops waiting"
            return [("class:hint", text[:width])]
        return hint

    def _in_prompt(self, function: Callable[[], object]) -> None:
        """Run *function* where prompt_toolkit's get_app() is this prompt's; elsewhere it is a dummy."""
        context = self.prompt_app.context if self.prompt_app is not None else None
        if context is None:
            function()
        else:
            context.copy().run(function)

    def _names_changed(self) -> None:
        # Thousands of events a second may each tell of other names; the menu follows at a pace that can be read.
        # Not a timer of Textual's: this is called from outside of its context.
        if self._names_timer is None:
            self._names_timer = asyncio.get_running_loop().call_later(NAMES_INTERVAL, self._tell_names)

    def _tell_names(self) -> None:
        self._names_timer = None
        if self.prompt_app is not None and self.prompt_app.is_running:
            self._in_prompt(lambda: names_changed(self.buffer, self.session))

    def quit(self) -> None:
        """Say that the user wants to leave."""
        self.post_message(self.Quit())

    def _current_style(self) -> BaseStyle:
        # The application's own, which adds prompt_toolkit's defaults.
        return self.prompt_app.renderer.style if self.prompt_app is not None else self._prompt_style

    def _invalidate(self) -> None:
        if self.prompt_app is not None:
            self.prompt_app.invalidate()

    # Running commands ------------------------------------------------------------------------------------------------

    def _accept(self, buffer: Buffer) -> bool:
        if self._watching and self._pending and not buffer.text.strip():
            self._pending[0].cancel()
            return False
        if self.keep(buffer.text):
            return True
        self._run(buffer.text)
        return False

    def _run(self, text: str) -> None:
        self._echo(text)
        if text.strip():
            task = asyncio.get_running_loop().create_task(self.session.submit(text))
            self._pending.append(task)
            task.add_done_callback(lambda done: self._finished(done, text))
            self.post_message(self.Submitted(text))

    def _finished(self, task: asyncio.Task[bool], text: str) -> None:
        self._pending.remove(task)
        if task.cancelled():
            if not self._watching:
                self.session.stopped()
            self._watching = False
            return
        error = task.exception()
        if error is not None:
            raise error  # a fault of the program: the event loop reports it
        self.post_message(self.Answered(text, task.result()))
        self._invalidate()

    def _echo(self, text: str) -> None:
        self.transcript.offset = 0
        shown = text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO]
        fragments: Fragments = [("class:prompt", self.session.settings["prompt"])]
        for style, piece in lexed(shown, InputLexer()):
            first, *others = piece.split("\n")
            fragments.append((style, first))
            for other in others:
                fragments += [("class:prompt.continuation", "\n" + continuation(self.session.settings)), (style, other)]
        if len(text) > len(shown):
            fragments.append(("class:notice", f" … ({len(text)} characters)"))
        self.write([*fragments, ("", "\n")])

    # Drawing ---------------------------------------------------------------------------------------------------------

    def take_screen(self) -> None:
        """Compare what prompt_toolkit has drawn with what is shown, and have Textual draw the difference alone."""
        app = self.prompt_app
        screen = app.renderer.last_rendered_screen if app is not None else None
        width, height = self.size
        if app is None or screen is None or not width or not height:
            return
        strips = self._compose_rows(app, screen, width, height)
        old, self._strips = self._strips, strips
        if len(old) != len(strips):
            self.refresh()
            return
        changed = []
        for y, (before, after) in enumerate(zip(old, strips, strict=True)):
            span = difference(before, after)
            if span is not None:
                changed.append(Region(span[0], y, span[1] - span[0], 1))
        if changed:
            self.refresh(*changed)

    def _compose_rows(self, app: Application[None], screen: Screen, width: int, height: int) -> list[Strip]:
        position = screen.visible_windows_to_write_positions.get(self._window)
        above = position.ypos if position is not None else 0
        cursor = screen.get_cursor_position(app.layout.current_window)
        printed = self.transcript.view(width, above)
        # A view that begins above the first line, or one scrolled up by less than a page, may be short.
        printed += [[]] * (above - len(printed))
        paint = self._painter
        strips = [
            paint.overlaid(paint.printed(fragments, width), screen, y, width) for y, fragments in enumerate(printed)
        ]
        for y in range(above, height):
            strips.append(paint.row(screen, y, width, cursor.x if y == cursor.y and self.has_focus else -1))
        if self.has_focus:
            self.app.cursor_position = self.content_region.offset + Offset(cursor.x, cursor.y)
        return strips

    def render_line(self, y: int) -> Strip:
        """One row of the widget."""
        width = self.size.width
        if y < len(self._strips):
            return self._strips[y].adjust_cell_length(width, self.rich_style)
        return Strip.blank(width, self.rich_style)

    # Input -----------------------------------------------------------------------------------------------------------

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Tell the footer which keys go to the prompt."""
        return key not in self._app_keys and (key in _SCROLL_KEYS or key_sequence(key, character) is not None)

    async def on_key(self, event: events.Key) -> None:
        """Hand a key to prompt_toolkit as the terminal would."""
        if event.key in self._app_keys or self._pipe is None:
            return
        pages = _SCROLL_KEYS.get(event.key)
        sequence = key_sequence(event.key, event.character)
        if pages is None and sequence is None:
            return
        event.stop()
        event.prevent_default()
        if pages is not None:
            self._scroll(pages * max(self.size.height - 3, 1))
        elif sequence is not None:
            if self.transcript.offset:
                self.transcript.offset = 0
                self._invalidate()
            self._pipe.send_text(sequence)

    async def on_paste(self, event: events.Paste) -> None:
        """Insert pasted text. Not through the pipe: more than it holds would block the event loop for ever."""
        event.stop()
        event.prevent_default()
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        self.transcript.offset = 0
        self._in_prompt(lambda: self.buffer.insert_text(text))
        self._invalidate()

    def _scroll(self, rows: int) -> None:
        self.transcript.scroll(rows, max(self.size.width, 1), max(self.size.height - 2, 1))
        self._invalidate()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll the transcript."""
        event.stop()
        self._scroll(3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll the transcript."""
        event.stop()
        self._scroll(-3)

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self._invalidate()

    def on_focus(self) -> None:
        """Show the cursor."""
        self._invalidate()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self._invalidate()

    def notify_style_update(self) -> None:
        """Textual's own colours have changed; they are what shows through."""
        super().notify_style_update()
        with contextlib.suppress(AttributeError):
            self._painter.forget()
            self._invalidate()


_SCROLL_KEYS = {"pageup": 1, "pagedown": -1, "shift+pageup": 1, "shift+pagedown": -1}
