"""`blockmon run --tui`: the screen, with the script that runs on it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from blockmon.backend import Backend, Event
from blockmon.exitcodes import ExitStatus
from blockmon.lang import ParsedHMP, ParsedQMP
from blockmon.options import CommonOptions, StartupError
from blockmon.repl.printers import format_answer, format_error, format_notice, format_text
from blockmon.repl.session import ReplSession
from blockmon.replay.control import Controls
from blockmon.replay.errors import ScriptError
from blockmon.replay.narration import shown
from blockmon.replay.program import Program, unreadable_script
from blockmon.tui.app import SHORT, BlockmonApp
from blockmon.tui.popups import HelpPopup, binding_lines
from blockmon.tui.script_pane import ScriptPane

if TYPE_CHECKING:
    from blockmon.replay.statements import Statement

LONGEST_ANSWER = 20_000
"""Characters of an answer that are shown."""


def main(options: CommonOptions, scripts: list[str]) -> int:
    """Run *scripts* on the screen; returns the exit status of the run. Errors: StartupError."""
    from blockmon.tui.main import main as show

    problem = unreadable_script(scripts)
    if problem:
        print(f"blockmon: {problem}", file=sys.stderr)
        return ExitStatus.USAGE
    if options.run.trace:
        raise StartupError("--trace", "the screen shows each statement; --tui does without")
    return show(options, partial(ScriptApp, scripts=scripts))


class ScriptApp(BlockmonApp):
    """
    The screen with a pane for *scripts*, which run from when the backend stands. Their answers go to the transcript.

    The screen stays when they have ended. The result is their exit status; 130 when one leaves before.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *BlockmonApp.BINDINGS,
        Binding("f10", "script", "script", priority=True, id="pane.script"),
    ]

    def __init__(
        self, backend: Backend, session: ReplSession, options: CommonOptions, *, scripts: list[str], **more: Any
    ) -> None:
        super().__init__(backend, session, options, **more)
        self.controls = Controls(paused=options.run.step)
        self.program = Program(
            options, scripts, _Answers(session), observer=_Watcher(self), gate=self.controls.gate, say=self._say
        )
        self._told: list[str] = []
        self._script_run: asyncio.Task[int] | None = None

    # The screen.

    def compose(self) -> ComposeResult:
        self.script = ScriptPane(self.look, self.controls, self.abort, id="script")
        for widget in super().compose():
            if widget is self.prompt_title:
                yield self.script
            yield widget

    def focus_first(self) -> None:
        self.script.focus()

    def _prompt_rows(self, rows: int) -> int:
        below = super()._prompt_rows(rows)
        own = 0 if rows < SHORT else max(5, min(16, rows // 3))
        self.script.display = own > 0
        self.script.styles.height = own
        if own and below > 6 and not self._at_prompt:
            below -= 2
        return below + own

    def _arrange(self, width: int | None = None, height: int | None = None) -> None:
        super()._arrange(width, height)
        if self.script.display:
            # The rule between the columns ends at the pane that lies under them.
            self.script.join_at, self.prompt_title.join_at = self.prompt_title.join_at, None
            self.prompt_title.update_line()
        self.script.update_rows()

    def action_script(self) -> None:
        """Turn to the script."""
        if self._zoomed is not None:
            self.action_zoom()
        if self.script.display:
            self.screen_stack[0].set_focus(self.script)
        else:
            self.header.say("the script needs more rows")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if (action == "zoom" and self.focused is self.script) or (action == "script" and len(self.screen_stack) > 1):
            return False
        return super().check_action(action, parameters)

    def action_help(self) -> None:
        if self.focused is self.script:
            lines = binding_lines(ScriptPane.BINDINGS, self.look.symbols.arrow != "→")
            self.push_screen(HelpPopup(self.look, [("Script, where you are", lines)]))
        else:
            super().action_help()

    def under_way(self) -> list[str]:
        told = super().under_way()
        return (
            ["the script has not ended", *told]
            if self._script_run is not None and not self._script_run.done()
            else told
        )

    # The run.

    def started(self) -> None:
        """Begin to run the scripts."""
        self.program.watch_recording(self.backend)
        self._script_run = asyncio.get_running_loop().create_task(self._run_scripts())

    async def _run_scripts(self) -> int:
        try:
            status = await self.program.run_all(self.backend)
        except asyncio.CancelledError:
            status = ExitStatus.INTERRUPTED
        if self.script.is_attached:
            self.script.ended(status)
            self.session.notice(f"the script has ended with exit status {int(status)}; Ctrl+Q leaves with it")
        return status

    def abort(self) -> None:
        """End the run, even while it waits for something; what it deferred still runs."""
        if self._script_run is not None:
            self._script_run.cancel()

    async def finish(self, status: int) -> int:
        """The exit status of the run, which ends now if it has not ended before."""
        if self._script_run is None:
            return status
        self.abort()
        with contextlib.suppress(asyncio.CancelledError):
            result = await self._script_run
            status = status or result
        for text in self._told:
            print(text, file=sys.stderr)
        return self.program.report() or status

    def _say(self, text: str) -> None:
        # What is told is told again when the screen is gone.
        self._told.append(text)
        self.session.emit(format_error("Script", text))


class _Watcher:
    """Observer of a run, for the screen."""

    def __init__(self, app: ScriptApp) -> None:
        self._app = app

    def on_statement(self, statement: Statement) -> None:
        self._app.script.at(statement.file, statement.line, statement.end_line)
        if statement.kind == "command":
            self._app.session.emit([("class:prompt", f"{statement.line}> "), *format_text(shown(statement))])

    def on_answer(self, statement: Statement, value: Any) -> None:
        pass

    def on_failure(self, error: ScriptError) -> None:
        self._app.script.failed(error.file, error.line)

    def on_event(self, events: Sequence[Event]) -> None:
        pass


class _Answers:
    """Output of a run that goes to the prompt's transcript."""

    def __init__(self, session: ReplSession) -> None:
        self._session = session

    def answer(self, statement: Statement, parsed: ParsedQMP | ParsedHMP | None, value: Any, text: str) -> None:
        if len(text) > LONGEST_ANSWER:
            self._session.emit([*format_text(text[:LONGEST_ANSWER])])
            self._session.notice(f"… {len(text) - LONGEST_ANSWER} characters more")
        elif isinstance(parsed, ParsedQMP):
            self._session.emit(format_answer(value, self._session.width()))
        elif text:
            self._session.emit([*format_text(text)])

    def failed(self, statement: Statement, parsed: ParsedQMP | ParsedHMP, cls: str, desc: str) -> None:
        self._session.emit(format_error(cls, desc))

    def echo(self, text: str) -> None:
        self._session.emit(format_notice(text))

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        pass

    def result(self, result: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass
