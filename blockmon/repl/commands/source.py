"""`\\source`: run a command file here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blockmon.backend.connection import connection_of
from blockmon.options import RunOptions
from blockmon.repl.commands import PromptCommand
from blockmon.repl.commands.save import complete_file, in_full
from blockmon.repl.host import PromptError
from blockmon.repl.lexers import InputLexer, lexed
from blockmon.repl.printers import format_answer

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession
    from blockmon.replay.errors import ScriptError
    from blockmon.replay.output import Parsed
    from blockmon.replay.statements import Statement


_VARIABLE = re.compile(r"\s+(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>\S*)$")


class _Shown:
    """Shows a run at the prompt: each statement, and what it has brought."""

    def __init__(self, session: ReplSession) -> None:
        self._session = session
        self._echoes: list[Statement] = []
        """What is begun, and not shown yet: the runner looks ahead of a command that the script may want to fail."""

    def catch_up(self, line: int | None = None) -> None:
        """Echo what was begun as if it were typed; of a run that ends at *line* nothing behind it."""
        prompt = [("class:prompt", self._session.settings["prompt"])]
        for statement in self._echoes:
            if line is None or statement.line <= line:
                self._session.emit([*prompt, *lexed(statement.text.strip(), InputLexer()), ("", "\n")])
        self._echoes.clear()

    # What the runner writes.

    def answer(self, statement: Statement, parsed: Parsed | None, value: Any, text: str) -> None:
        """A command's value."""
        self.catch_up()
        self._session.runner.remember(value)
        if value not in ({}, ""):
            self._session.emit(format_answer(value, self._session.width()), answer=True)

    def failed(self, statement: Statement, parsed: Parsed, cls: str, desc: str) -> None:
        """Perhaps what the script expects; else `on_failure` tells it."""

    def echo(self, text: str) -> None:
        """A line of @echo."""
        self.catch_up()
        self._session.emit(format_answer(text + "\n"))

    def result(self, result: Mapping[str, Any]) -> None:
        """Told at the end by whoever runs it."""

    def flush(self) -> None:
        """Everything is shown at once."""

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """The session shows events itself."""

    # What it observes.

    def on_statement(self, statement: Statement) -> None:
        """Echo it when it is known to run."""
        self._echoes.append(statement)

    def on_answer(self, statement: Statement, value: Any) -> None:
        """Shown by `answer`."""

    def on_event(self, events: Sequence[Mapping[str, Any]]) -> None:
        """The session shows events itself."""

    def on_failure(self, error: ScriptError) -> None:
        """Tell where and why."""
        self.catch_up(error.line)
        self._session.host.fail("Script", str(error))


def _taken_apart(argument: str) -> tuple[str, dict[str, str]]:
    """The file's name, and the variables behind it."""
    variables: dict[str, str] = {}
    while (match := _VARIABLE.search(argument)) is not None:
        variables.setdefault(match["name"], match["value"])
        argument = argument[: match.start()]
    return argument, variables


async def run(session: ReplSession, argument: str) -> bool:
    """Run the file up to its end or the first failure."""
    if not argument:
        raise PromptError("needs a FILE of commands")
    from blockmon.replay.errors import Skipped
    from blockmon.replay.reader import unreadable
    from blockmon.replay.runner import Runner

    argument, variables = _taken_apart(argument)
    path = in_full(argument)
    problem = unreadable(path)
    if problem:
        raise PromptError(f"{argument}: {problem}")
    shown = _Shown(session)
    session.last_answer = ""
    remote = connection_of(session.backend) is not None
    runner = Runner(session.backend, shown, RunOptions(variables=variables), observer=shown, remote=remote)
    try:
        await runner.run(path)
    except Skipped as reason:
        raise PromptError(f"{argument}: {reason}") from None
    finally:
        shown.catch_up()
        runner.close()
        session.after_command("source")
    if runner.ended:
        session.end()
    failures = len(runner.failures)
    if not failures:
        session.notice(f"{argument}: {runner.statements} statement{'' if runner.statements == 1 else 's'}, all well")
    return not failures


COMMAND = PromptCommand(
    "source",
    "FILE [NAME=VALUE ...]",
    "run a command file",
    run,
    complete_file,
    more="The file is of the kind that `blockmon run` replays (\\help files), with the variables ${NAME}. It ends\n"
    "at the first failure, or by Ctrl+C; what it has deferred runs then all the same. @shell is not allowed here.",
    files=True,
)
