"""The prompt on a terminal: prompt_toolkit's PromptSession around a `ReplSession`."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import errno
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import create_app_session, get_app
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText, StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.layout.processors import HighlightMatchingBracketProcessor
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from blockmon.backend import Backend
from blockmon.repl.following import follow
from blockmon.repl.history import open_history
from blockmon.repl.host import PIECE, Host, PromptError
from blockmon.repl.keys import (
    HELP,
    InputValidator,
    clear_line,
    continuation,
    editing_mode,
    names_changed,
    prompt_bindings,
)
from blockmon.repl.paging import coloured, page, pager_command
from blockmon.repl.printers import Fragment, Fragments
from blockmon.repl.session import ReplSession
from blockmon.repl.settings import Settings
from blockmon.repl.style import build_style, colour_depth

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class TerminalPrompt(Host):
    """A prompt for *backend*, which must be started. The terminal is prompt_toolkit's of the moment."""

    def __init__(
        self,
        backend: Backend,
        prompt_table: Mapping[str, str],
        syntax_table: Mapping[str, str],
        *,
        history: History | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._style = _style(prompt_table, syntax_table)
        self._depth = colour_depth(prompt_table, syntax_table)
        self.session = ReplSession(
            backend,
            self._print,
            width=self._columns,
            history=history if history is not None else open_history(),
            settings=settings,
            on_end=self._end,
            on_names=self._names_changed,
        )
        self.session.host = self
        self.prompt: PromptSession[str] = PromptSession(
            lambda: self.session.settings["prompt"],
            style=self._style,
            color_depth=self._depth,
            include_default_pygments_style=False,
            lexer=self.session.lexer,
            completer=self.session.completer,
            complete_while_typing=True,
            history=self.session.history,
            validator=InputValidator(self.session),
            validate_while_typing=False,
            multiline=True,
            prompt_continuation=self._continuation,
            input_processors=[HighlightMatchingBracketProcessor(max_cursor_distance=500)],
            bottom_toolbar=self._hint,
            key_bindings=merge_key_bindings([prompt_bindings(self.session, self._copy), _terminal_bindings()]),
            editing_mode=editing_mode(self.session.settings),
            enable_open_in_editor=True,
            enable_suspend=True,
            mouse_support=False,
            reserve_space_for_menu=6,
        )
        self._held: list[Fragments] | None = None
        """What is to be printed when the pager has ended."""
        self._waiting: asyncio.Task[bool] | None = None
        self._signal = 0
        # Events come from elsewhere; only in this context prompt_toolkit knows the prompt they are printed above.
        self._context = contextvars.copy_context()

    async def run(self) -> int:
        """Read and run commands; returns the exit status: 0 after Ctrl+D or a `quit`, 1 when the server is lost, 128
        and its number after a signal."""
        session, loop = self.session, asyncio.get_running_loop()
        await session.start()
        self.notice(
            f"{session.backend.title}: QMP as JSON or `command key=value`, and HMP; \\help or F1 helps, Ctrl+D leaves."
        )
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._leave, number)
        before = loop.get_exception_handler()
        loop.set_exception_handler(self._failed)
        try:
            # raw: what is printed here is styled already.
            with patch_stdout(raw=True):
                while not session.ended and not self._signal:
                    try:
                        text = await self.prompt.prompt_async(handle_sigint=False, set_exception_handler=False)
                    except KeyboardInterrupt:
                        continue
                    except EOFError:
                        break
                    if text.strip():
                        await self._run(text)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._signal = signal.SIGHUP  # the terminal is gone
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            await session.close()
            loop.set_exception_handler(before)
        return 128 + self._signal if self._signal else int(session.lost)

    async def _run(self, text: str) -> None:
        """Run a command; Ctrl+C stops waiting for it."""
        loop = asyncio.get_running_loop()
        task = self._waiting = asyncio.create_task(self.session.submit(text))
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or current is None or current.cancelling():
                raise
            self._print([("", "\n")])  # behind the ^C that the terminal has echoed
            self.session.stopped()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self._waiting = None

    def _interrupt(self) -> None:
        # A pager has the terminal, and Ctrl+C is for it.
        if self._waiting is not None and self._held is None:
            self._waiting.cancel()

    def notice(self, text: str) -> None:
        """Print a remark."""
        self.session.notice(text)

    def _print(self, fragments: Fragments) -> None:
        if self._held is not None:
            self._held.append(fragments)
            return
        self._context.copy().run(
            print_formatted_text,
            FormattedText(fragments),
            end="",
            style=self._style,
            color_depth=self._depth,
            include_default_pygments_style=False,
        )

    # What the session asks for -----------------------------------------------------------------------------------

    async def show(self, fragments: Iterable[Fragment]) -> None:
        """Print an answer, by the pager if it is longer than the terminal."""
        session, rows = self.session, self.prompt.app.output.get_size().rows
        if not session.settings.on("pager"):
            await super().show(fragments)
            return
        begin: Fragments = []
        lines = 0
        rest = iter(fragments)
        for number, fragment in enumerate(rest):
            begin.append(fragment)
            lines += fragment[1].count("\n")
            if number % PIECE == PIECE - 1:
                await asyncio.sleep(0)
        if lines < rows:
            await super().show(begin)
            return
        text = coloured(begin, self._style, self.prompt.app.color_depth)
        session.keep_answer(begin)
        self._held = []
        try:
            command = pager_command()
            could = await page(text, command)
        finally:
            held, self._held = self._held, None
            for piece in held:
                self._print(piece)
        if could:
            self.notice(f"{lines} lines by {command}; \\set pager off prints them here")
        else:
            self.notice(f"{command}: cannot be run; \\set pager off does without")
            await super().show(begin)

    async def follow(self, frames: AsyncIterator[Fragments]) -> None:
        """Show frames in their place."""
        with create_app_session(input=self.prompt.app.input, output=self.prompt.app.output):
            last = await follow(frames, self._style)
        self.emit(last, answer=True)

    def changed(self, setting: str) -> None:
        """Take other keys; everything else is looked up when it is needed."""
        if setting == "keys":
            self.prompt.editing_mode = editing_mode(self.session.settings)

    def use_theme(self, name: str) -> None:
        """Take the colours of a theme."""
        from blockmon.themes import ThemeError, find_theme

        try:
            theme, problems = find_theme(name)
        except ThemeError as error:
            raise PromptError(str(error)) from None
        self._style = _style(theme.prompt, theme.syntax)
        self.prompt.style = self._style
        self._depth = self.prompt.color_depth = colour_depth(theme.prompt, theme.syntax)
        for problem in problems:
            self.notice(problem)

    def _names_changed(self) -> None:
        app = self.prompt.app
        if app.is_running and app.context is not None:
            app.context.copy().run(names_changed, self.prompt.default_buffer, self.session)

    def _copy(self, text: str) -> None:
        # OSC 52: the terminal's own clipboard, also at the other end of an ssh connection.
        output = self.prompt.app.output
        output.write_raw(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a")
        output.flush()

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something failed that nobody waits for."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno == errno.EIO:
            self._leave(signal.SIGHUP)  # the terminal is gone
            return
        if logging.getLogger().handlers:  # without --log it would come out here
            _log.error("%s", context["message"], exc_info=error)
        self.notice(f"internal error: {error!r}" if error is not None else f"internal error: {context['message']}")

    def _leave(self, number: int) -> None:
        # A terminal that hangs up must not cost the images their last writes: the caller closes the engine in order.
        self._signal = number
        self._end()

    def _end(self) -> None:
        """Stop reading and waiting."""
        app = self.prompt.app
        if app.is_running:
            app.exit(exception=EOFError)
        elif self._signal and self._waiting is not None:
            self._waiting.cancel()

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns

    def _continuation(self, width: int, line_number: int, wrap_count: int) -> StyleAndTextTuples:
        return [("class:prompt.continuation", "" if wrap_count else continuation(self.session.settings))]

    def _hint(self) -> StyleAndTextTuples:
        buffer = self.prompt.default_buffer
        width = get_app().output.get_size().columns
        return self.session.hint(buffer.text, buffer.cursor_position, width) or [("class:hint", " ")]


def _style(prompt_table: Mapping[str, str], syntax_table: Mapping[str, str]) -> Style:
    # The terminal has a background of its own; the theme's is for the screen.
    return build_style({name: style for name, style in prompt_table.items() if name}, syntax_table)


def _terminal_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-c", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        clear_line(event.current_buffer)

    @bindings.add("f1")
    def _(event: KeyPressEvent) -> None:
        print_formatted_text(HELP, end="")

    return bindings
