"""Runs the statements of a script one after the other on a backend."""

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from blockmon.backend import CommandError
from blockmon.backend.connection import connection_of
from blockmon.exitcodes import ExitStatus
from blockmon.lang import ParsedHMP, ParsedQMP, ParseError
from blockmon.options import RunOptions
from blockmon.replay.commands import Commands
from blockmon.replay.control import Decision
from blockmon.replay.directives import EXPECTATIONS, parse_directive
from blockmon.replay.errors import CommandFailed, OutputLost, ScriptError, StatementFailed
from blockmon.replay.execution import Execution
from blockmon.replay.output import Held, Output
from blockmon.replay.reader import unreadable
from blockmon.replay.statements import Body, FileStatements, Statement, Statements
from blockmon.replay.update import Edit, Updates
from blockmon.replay.variables import UNKNOWN, Expanded, expand

if TYPE_CHECKING:
    from blockmon.backend import Backend, Event
    from blockmon.lang import Schema

MAX_DEPTH = 64
"""Files included in one another."""

MAX_FAILURES = 1000
"""Of one script that keeps going so many are kept; all are told the observer."""


class Observer(Protocol):
    """Is told what a run does. Called on the runner's loop, and must not take long."""

    def on_statement(self, statement: Statement) -> None:
        """Before a statement runs, and before a gate holds it."""

    def on_answer(self, statement: Statement, value: Any) -> None:
        """A command's value; {"class", "desc"} of one that failed as @error may want it."""

    def on_failure(self, error: ScriptError) -> None:
        """A statement failed, or cannot be understood."""

    def on_event(self, events: "Sequence[Event]") -> None:
        """Events, as they come."""


class Runner:
    """Runs scripts on *backend*, which is started, and writes what they produce to *out*.

    A front end drives it by *gate*, which is awaited in front of each statement and says what becomes of it (see
    `control.Controls`), and watches it by *observer*. With either, each statement goes to the engine by itself;
    otherwise commands that nothing stands between go there together, in their order, and none behind one that fails.
    *on_failure* is told what went wrong, as it happens.
    """

    def __init__(
        self,
        backend: "Backend",
        out: Output,
        options: RunOptions | None = None,
        *,
        remote: bool = False,
        observer: Observer | None = None,
        gate: Callable[[Statement], Awaitable[Decision]] | None = None,
        on_failure: Callable[[ScriptError], None] | None = None,
    ) -> None:
        self.options = options if options is not None else RunOptions()
        self.remote = remote
        self.dry = self.options.dry_run
        self.variables: dict[str, str] = dict(self.options.variables)
        self.timeout: float | None = None
        """Seconds that waits take at most, by @timeout."""
        self.mode = ""
        """"qmp" or "hmp" when @mode says so."""
        self.failures: list[ScriptError] = []
        """What failed in the script that ran last; at most MAX_FAILURES of them."""
        self.statements = 0
        """How many statements ran in it."""
        self.updates = Updates()
        """New expected answers, when they are to be written."""
        self._backend = backend
        self._observer = observer
        self._gate = gate
        self._on_failure = on_failure
        self._syntax = Commands(self)
        self._execution = Execution(
            backend, out, observer, self._settle_failure, alone=observer is not None or gate is not None
        )
        self.watch = self._execution.watch
        self._problems: list[ScriptError] = []
        self._told: set[str] = set()
        self._source = Statements("")
        self._last: Statement | None = None
        self._files: list[str] = []
        self._deferred: list[Statement] = []
        self._fatal = False
        connection = connection_of(backend)
        if connection is not None:
            connection.on_loss(lambda reason: self.watch.lose(f"the connection is lost: {reason}"))

    def close(self) -> None:
        """Stop listening to the backend."""
        self._execution.close()

    @property
    def ended(self) -> bool:
        """True once a script has said quit: nothing runs after that."""
        return self._execution.ended

    # Scripts ---------------------------------------------------------------------------------------------------------

    async def run(self, path: str) -> ExitStatus:
        """Run the script *path* ("-" is standard input) and what it deferred, and tell how it went.

        What failed is told the observer and kept in `failures`. Raises Skipped when @require found something missing,
        and CancelledError (what is deferred has run then).
        """
        self.failures, self.statements, self._fatal = [], 0, False
        self.variables, self.timeout = dict(self.options.variables), None
        self._execution.forget()
        self._told.clear()
        name = "<stdin>" if path == "-" else path
        try:
            await self._guarded(self._file(path, name))
        finally:
            await self._finish()
        return self.failures[0].status if self.failures else ExitStatus.OK

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ScriptError as error:
            self._note(error)

    def _note(self, error: ScriptError) -> None:
        if self.dry:
            # Every round of a loop finds the same.
            if str(error) in self._told:
                return
            self._told.add(str(error))
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(error)
        if self._on_failure is not None:
            self._on_failure(error)
        if self._observer is not None:
            self._observer.on_failure(error)

    async def _finish(self) -> None:
        """Run what is deferred, the last one first; a failure of one does not keep the others from running."""
        self._execution.forget()
        gate, self._gate = self._gate, None
        try:
            while self._deferred:
                statement = self._deferred.pop()
                if self.ended and statement.kind == "command":
                    continue
                await self._guarded(self._end(statement))
        finally:
            self._gate = gate
            try:
                self._execution.out.flush()
            except OutputLost as error:
                if not self._fatal:
                    self._note(ScriptError(str(error), *self._place_now()))

    async def _end(self, statement: Statement) -> None:
        await self._perform(statement)
        await self._settle()

    async def _file(self, path: str, name: str) -> None:
        outer, mode = self._source, self.mode
        self._source = FileStatements(path, name, self.commands, self.flush)
        self._files.append(_identity(path))
        self.mode = ""
        try:
            await self._play(self._source)
            await self._settle()
        finally:
            self._files.pop()
            self._source, self.mode = outer, mode

    async def _play(self, source: Statements) -> None:
        while not self.ended:
            try:
                statement = await source.next()
            except ScriptError:
                # What is wrong in front of it comes first.
                await self._settle()
                raise
            except (StatementFailed, OSError) as error:
                # Of asking the server for its commands.
                raise self._lost(error) from None
            if statement is None:
                return
            try:
                await self._statement(statement)
            except ScriptError as error:
                self._go_on(error)

    def _go_on(self, error: ScriptError) -> None:
        """Raise *error*, unless what follows is to run all the same."""
        keeps_going = self.options.keep_going and error.status != ExitStatus.USAGE and not self._fatal
        if not (keeps_going or (self.dry and not self._fatal)) or isinstance(self._execution.out, Held):
            raise error
        self._note(error)

    async def include(self, path: str) -> str:
        """Run the statements of another file; returns why it cannot be."""
        if _identity(path) in self._files:
            return f"{path} includes itself"
        if len(self._files) >= MAX_DEPTH:
            return f"more than {MAX_DEPTH} files include one another"
        problem = unreadable(path)
        if problem:
            return f"{path}: {problem}"
        await self._file(path, path)
        return ""

    async def loop(self, opening: Statement, rounds: Iterable[Mapping[str, str]]) -> None:
        """Run the statements up to the @end of *opening* once for each of *rounds*, with its variables."""
        body = await self._source.block(opening)
        outer = self._source
        try:
            for variables in rounds:
                if self.ended:
                    return
                self.variables.update(variables)
                self._source = Body(outer.name, body)
                await self._play(self._source)
        finally:
            self._source = outer

    async def retry(self, times: int, pause: float) -> bool:
        """Run the next command with its expectations up to *times* times, until nothing fails; False when no command
        comes."""
        first = await self._source.next()
        if first is None or first.kind != "command":
            return False
        unit = [first]
        while (following := await self._source.peek()) is not None and _expects(following):
            unit.append(following)
            await self._source.next()
        out, outer = self._execution.out, self._source
        for left in reversed(range(1 if self.dry else times)):
            held = Held()
            self._execution.out, self._source = held, Body(outer.name, unit)
            error: ScriptError | None = None
            try:
                await self._play(self._source)
                await self._settle()
            except ScriptError as failed:
                error = failed
            finally:
                self._execution.out, self._source = out, outer
                self._execution.take_failure()
                final = error is None or not left or error.status == ExitStatus.USAGE or self._fatal
                held.release(out, only_events=not final)
            if error is None:
                return True
            if final:
                if times > 1 and not left:
                    error = ScriptError(
                        f"{error.message} (tried {times} times)", error.file, error.line, error.column, error.status
                    )
                raise error
            await asyncio.sleep(pause)
        return True

    async def defer(self, statement: Statement) -> None:
        """Run *statement* when the script ends. Raises ScriptError when it cannot be understood."""
        if statement.kind == "command":
            parsed = await self._parse(statement)
            if self.dry:
                await self._check(statement, *parsed)
        else:
            self._parse_directive(statement)
        if not self.dry:
            self._deferred.append(statement)

    # Statements ------------------------------------------------------------------------------------------------------

    async def _statement(self, statement: Statement) -> None:
        if self._observer is not None:
            self._observer.on_statement(statement)
        if self._gate is not None:
            match await self._gate(statement):
                case Decision.SKIP:
                    return
                case Decision.STOP:
                    self._fatal = True
                    where = (statement.file, statement.line, statement.column)
                    raise ScriptError("stopped here", *where, ExitStatus.INTERRUPTED)
        self.statements += 1
        self._last = statement
        await self._perform(statement)

    async def _perform(self, statement: Statement) -> None:
        if statement.kind == "command":
            if not self._execution.waiting:
                await self._settle()
            try:
                parsed, text = await self._parse(statement)
            except ScriptError:
                # What stands in front of it runs all the same.
                await self._settle()
                raise
            try:
                await self._command(statement, parsed, text)
            except (OutputLost, OSError) as error:
                raise self._lost(error) from None
            return
        await self.flush()
        if statement.directive != "error":
            await self._settle()
        try:
            if statement.kind == "answer":
                await self._compare(statement)
                return
            expanded, checked, action = self._parse_directive(statement)
            if checked or not self.dry:
                try:
                    await action(self)
                except ParseError as error:
                    raise self._place(statement, expanded, error) from None
            elif statement.directive == "error":
                self._problems.clear()
        except (StatementFailed, OSError) as failed:
            # OSError: the connection to the backend is gone.
            raise self._failed(statement, failed) from None

    def _failed(self, statement: Statement, failed: Exception) -> ScriptError:
        self._fatal |= isinstance(failed, OSError | OutputLost)
        status = failed.status if isinstance(failed, StatementFailed) else ExitStatus.FAILED
        return ScriptError(str(failed), statement.file, statement.line, statement.column, status)

    @staticmethod
    def _place(statement: Statement, expanded: Expanded, error: ParseError) -> ScriptError:
        line, column = expanded.origin(error.line, error.column)
        return ScriptError(error.message, statement.file, statement.line + line - 1, column, ExitStatus.USAGE)

    def _place_now(self) -> tuple[str, int, int]:
        """Where the run has got to, for what is no statement's own failure."""
        last = self._last
        return (last.file, last.line, last.column) if last is not None else (self._source.name, 1, 1)

    def _expand(self, statement: Statement) -> Expanded:
        try:
            return expand(statement.text, self.variables)
        except ParseError as error:
            raise self._place(statement, Expanded(statement.text, statement.text, []), error) from None

    def _parse_directive(self, statement: Statement) -> tuple[Expanded, bool, Callable[["Runner"], Awaitable[None]]]:
        expanded = self._expand(statement)
        try:
            known, action = parse_directive(statement, expanded.text)
        except ParseError as error:
            if self.dry and UNKNOWN in expanded.text:
                return expanded, True, _nothing  # what it says is known in a real run only
            raise self._place(statement, expanded, error) from None
        return expanded, known.checked, action

    async def _parse(self, statement: Statement) -> tuple[ParsedQMP | ParsedHMP, Expanded]:
        expanded = self._expand(statement)
        try:
            return await self._syntax.parse(expanded.text, self.mode), expanded
        except ParseError as error:
            raise self._place(statement, expanded, error) from None
        except (StatementFailed, OSError) as failed:
            raise self._failed(statement, failed) from None

    # Commands --------------------------------------------------------------------------------------------------------

    async def _command(self, statement: Statement, parsed: ParsedQMP | ParsedHMP, expanded: Expanded) -> None:
        if self.dry:
            await self._check(statement, parsed, expanded)
            return
        if isinstance(parsed, ParsedQMP) and parsed.oob:
            error = ParseError("exec-oob: not available in this version")
            raise self._place(statement, expanded, error)
        await self._execution.put(statement, parsed)

    async def flush(self) -> None:
        """Execute the commands that wait for their turn, and let their answers be seen. Raises ScriptError."""
        try:
            await self._execution.flush()
        except (OutputLost, OSError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> ScriptError:
        """The answers can't be written, or the engine is gone: nothing runs any more."""
        self._fatal = True
        return ScriptError(str(error), *self._place_now())

    async def _settle(self) -> None:
        """Nothing has asked for the failure of the last command, or for what a check found in it: it is an error."""
        if self._execution.waiting:
            await self.flush()
        problems, self._problems = self._problems, []
        for problem in problems:
            self._note(problem)
        await self._settle_failure()

    async def _settle_failure(self) -> None:
        found = self._execution.take_failure()
        if found is None:
            return
        error = self._failed(*found)
        parsed = found[1].parsed
        if parsed is not None and not isinstance(self._execution.out, Held):  # @retry tries again
            from blockmon.replay.advice import advice

            more = await advice(self._backend, parsed, found[1].desc)
            error = ScriptError(error.message + more, error.file, error.line, error.column, error.status)
        self._go_on(error)

    async def _check(self, statement: Statement, parsed: ParsedQMP | ParsedHMP, expanded: Expanded) -> None:
        """Keep what is wrong with a command by the schema: @error behind it would want that."""
        found = await self._syntax.problems(expanded.text, parsed)
        self._problems = [self._place(statement, expanded, problem) for problem in found]

    async def _compare(self, statement: Statement) -> None:
        """Compare the last answer with the lines behind ----, or note it in their place."""
        from blockmon.replay.expected import Expected, lines_of

        expanded = self._expand(statement)
        lines = expanded.text.split("\n") if expanded.text else []
        try:
            expected = Expected(lines)
        except ParseError as error:
            line, column = expanded.origin(error.line, error.column)
            raise ScriptError(error.message, statement.file, statement.line + line, column, ExitStatus.USAGE) from None
        if self.dry:
            return
        self.answer()
        actual = lines_of(self._execution.text)
        if self.options.update and not isinstance(self._execution.out, Held):
            edit = Edit(statement.line, statement.end_line - statement.line, tuple(expected.updated(actual)))
            if expected.matches(actual):
                edit = dataclasses.replace(edit, new=tuple(range(len(lines))))
            if not self.updates.add(statement.file, edit):
                raise StatementFailed("the answer is another in each round, and there is one text for all of them")
        elif not expected.matches(actual):
            raise StatementFailed(f"the answer is not the expected one\n{expected.difference(actual)}")

    # What directives use ---------------------------------------------------------------------------------------------

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a QMP command that is no statement of the script. Raises StatementFailed."""
        try:
            return await self._backend.execute(command, arguments)
        except CommandError as error:
            raise CommandFailed(command, error.cls, error.desc) from None

    async def commands(self) -> frozenset[str]:
        """The names of the server's QMP commands."""
        return await self._syntax.names()

    async def schema(self) -> "Schema":
        """The server's schema; an empty one when it does not tell any."""
        return await self._syntax.schema()

    async def drivers(self) -> Sequence[str]:
        """The names of the server's block drivers."""
        return await self._syntax.drivers()

    def answer(self) -> Any:
        """The last command's value. Raises StatementFailed when there is none."""
        return self._execution.answer()

    def take_failure(self) -> CommandFailed | None:
        """The failure of the last command, which is none any more."""
        found = self._execution.take_failure()
        return found[1] if found is not None else None

    def give_text(self, statement: Statement, text: str) -> None:
        """Print *text*, what the @shell of *statement* printed, and take it as the last answer."""
        self._execution.give(statement, None, text, text)
        self._execution.out.flush()

    def echo(self, text: str) -> None:
        """Print a line."""
        self._execution.out.echo(text)
        self._execution.out.flush()


def _expects(statement: Statement) -> bool:
    return statement.kind == "answer" or statement.directive in EXPECTATIONS


async def _nothing(runner: Runner) -> None:
    pass


def _identity(path: str) -> str:
    return os.path.realpath(path)
