"""The prompt on a terminal: prompt_toolkit's PromptSession around a `ReplSession`."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import shutil
import signal
from collections.abc import Mapping

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import get_app
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText, StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.patch_stdout import patch_stdout

from blockmon.backend import Backend
from blockmon.repl.history import open_history
from blockmon.repl.keys import CONTINUATION, HELP, PROMPT, InputValidator, clear_line, names_changed, prompt_bindings
from blockmon.repl.printers import Fragments, format_notice
from blockmon.repl.session import ReplSession
from blockmon.repl.style import build_style

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class TerminalPrompt:
    """A prompt for *backend*, which must be started. The terminal is prompt_toolkit's of the moment."""

    def __init__(
        self,
        backend: Backend,
        prompt_table: Mapping[str, str],
        syntax_table: Mapping[str, str],
        *,
        history: History | None = None,
    ) -> None:
        # The terminal has a background of its own; the theme's is for the screen.
        tables = {name: style for name, style in prompt_table.items() if name}
        self._style = build_style(tables, syntax_table)
        self.session = ReplSession(
            backend,
            self._print,
            width=self._columns,
            history=history if history is not None else open_history(),
            on_end=self._end,
            on_names=self._names_changed,
        )
        self.prompt: PromptSession[str] = PromptSession(
            PROMPT,
            style=self._style,
            include_default_pygments_style=False,
            lexer=self.session.lexer,
            completer=self.session.completer,
            complete_while_typing=True,
            history=self.session.history,
            validator=InputValidator(self.session),
            validate_while_typing=False,
            multiline=True,
            prompt_continuation=_continuation,
            bottom_toolbar=self._hint,
            key_bindings=merge_key_bindings([prompt_bindings(self.session, self._copy), _terminal_bindings()]),
            enable_open_in_editor=True,
            enable_suspend=True,
            mouse_support=False,
            reserve_space_for_menu=6,
        )
        self._waiting: asyncio.Task[bool] | None = None
        self._signal = 0
        # Events come from elsewhere; only in this context prompt_toolkit knows the prompt they are printed above.
        self._context = contextvars.copy_context()

    async def run(self) -> int:
        """Read and run commands; returns the exit status: 0 after Ctrl+D or a `quit`, 1 when the server is lost, 128
        and its number after a signal."""
        session, loop = self.session, asyncio.get_running_loop()
        await session.start()
        self.notice(f"{session.backend.title}: QMP as JSON or `command key=value`, and HMP; F1 helps, Ctrl+D leaves.")
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._leave, number)
        try:
            # raw: what is printed here is styled already.
            with patch_stdout(raw=True):
                while not session.ended and not self._signal:
                    try:
                        text = await self.prompt.prompt_async(handle_sigint=False)
                    except KeyboardInterrupt:
                        continue
                    except EOFError:
                        break
                    if text.strip():
                        await self._run(text)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            await session.close()
        return 128 + self._signal if self._signal else int(session.lost)

    async def _run(self, text: str) -> None:
        """Run a command; Ctrl+C stops waiting for it."""
        loop = asyncio.get_running_loop()
        task = self._waiting = asyncio.create_task(self.session.submit(text))
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or current is None or current.cancelling():
                raise
            self._print([("", "\n")])  # behind the ^C that the terminal has echoed
            self.notice("stopped waiting; the server may carry the command out all the same")
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self._waiting = None

    def notice(self, text: str) -> None:
        """Print a remark."""
        self._print(format_notice(text))

    def _print(self, fragments: Fragments) -> None:
        self._context.copy().run(
            print_formatted_text,
            FormattedText(fragments),
            end="",
            style=self._style,
            include_default_pygments_style=False,
        )

    def _names_changed(self) -> None:
        app = self.prompt.app
        if app.is_running and app.context is not None:
            app.context.copy().run(names_changed, self.prompt.default_buffer, self.session)

    def _copy(self, text: str) -> None:
        # OSC 52: the terminal's own clipboard, also at the other end of an ssh connection.
        output = self.prompt.app.output
        output.write_raw(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a")
        output.flush()

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

    def _hint(self) -> StyleAndTextTuples:
        buffer = self.prompt.default_buffer
        width = get_app().output.get_size().columns
        return self.session.hint(buffer.text, buffer.cursor_position, width) or [("class:hint", " ")]


def _continuation(width: int, line_number: int, wrap_count: int) -> StyleAndTextTuples:
    return [("class:prompt.continuation", "" if wrap_count else CONTINUATION)]


def _terminal_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-c", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        clear_line(event.current_buffer)

    @bindings.add("f1")
    def _(event: KeyPressEvent) -> None:
        print_formatted_text(HELP, end="")

    return bindings
