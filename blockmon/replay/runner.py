"""Runs the statements of a script one after the other on a backend."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from blockmon.backend import CommandError
from blockmon.lang import ArgInfo, Empty, Incomplete, Parsed, ParsedHMP, ParsedQMP, ParseError, Schema, hmp, parse_input
from blockmon.replay.directives import parse_directive
from blockmon.replay.errors import ScriptError, StatementFailed
from blockmon.replay.reader import read_lines
from blockmon.replay.watch import Watch

if TYPE_CHECKING:
    from blockmon.backend import Backend

Action = Callable[["Runner"], Awaitable[None]]


class _NeedSchema(Exception):
    """A line cannot be parsed before the server's schema is known."""


class Runner:
    """Runs scripts on *backend*, which is started, and writes the answers to *out*."""

    def __init__(self, backend: "Backend", out: TextIO) -> None:
        self.watch = Watch()
        self.ended = False
        """True once a script has said quit: nothing runs after that."""
        self._backend = backend
        self._out = out
        self._commands: frozenset[str] | None = None
        self._schema: Schema | None = None
        self._unsubscribe = backend.subscribe(self.watch.feed)

    def close(self) -> None:
        """Stop listening to the backend."""
        self._unsubscribe()

    async def run(self, path: str) -> None:
        """Run the script *path* ("-" is standard input). Raises ScriptError at the first error."""
        name = "<stdin>" if path == "-" else path
        number, start, text, open_because = 0, 0, "", ""
        try:
            async for line in read_lines(path, name):
                if self.ended:
                    return
                number += 1
                if open_because:
                    text = f"{text}\n{line}"
                elif line.lstrip()[:1] in ("", "#"):
                    continue
                else:
                    start, text = number, line
                action = await self._parse(text, name, start)
                if isinstance(action, Incomplete):
                    open_because = action.why
                    continue
                open_because = ""
                await self._act(action, name, start)
        except OSError as error:
            raise ScriptError(error.strerror or str(error), name, number + 1) from None
        if open_because:
            raise ScriptError(f"the file ends, but {open_because}", name, start, 2)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a QMP command that is no statement of the script. Raises StatementFailed."""
        try:
            return await self._backend.execute(command, arguments)
        except CommandError as error:
            raise StatementFailed(f"{command}: {error.desc}") from None

    async def _act(self, action: Action, name: str, line: int) -> None:
        try:
            await action(self)
        except (StatementFailed, OSError) as error:
            # OSError: the connection to the backend is gone.
            raise ScriptError(str(error), name, line) from None

    async def _parse(self, text: str, name: str, start: int) -> Action | Incomplete:
        try:
            if text.lstrip().startswith("@"):
                if text.endswith("\\"):
                    return Incomplete("the line is continued by \\")
                return parse_directive(text)
            parsed = await self._parse_command(text)
        except ParseError as error:
            place = f" (column {error.column})" if error.column > 1 else ""
            raise ScriptError(f"{error.message}{place}", name, start + error.line - 1, 2) from None
        except StatementFailed as error:
            raise ScriptError(str(error), name, start) from None
        if isinstance(parsed, Incomplete):
            return parsed
        return _action_of(parsed)

    async def _parse_command(self, text: str) -> Parsed:
        # JSON speaks for itself: a script in JSON only costs no query.
        if self._commands is None and not text.lstrip().startswith("{"):
            self._commands = frozenset(entry["name"] for entry in await self.execute("query-commands"))
        commands = self._commands or frozenset()
        try:
            return parse_input(text, commands, self._arguments_of)
        except _NeedSchema:
            self._schema = Schema(await self._introspect())
            return parse_input(text, commands, self._arguments_of)

    async def _introspect(self) -> list[dict[str, Any]]:
        try:
            schema: list[dict[str, Any]] = await self._backend.execute("query-qmp-schema")
        except CommandError:
            return []  # a server without introspection: values are told by their look
        return schema

    def _arguments_of(self, command: str) -> Mapping[str, ArgInfo]:
        if self._schema is None:
            raise _NeedSchema
        return self._schema.arguments_of(command)

    async def send_qmp(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Execute one statement and print its result, as JSON in a line."""
        # Looking does not change anything, so events stay within reach of a wait behind it.
        if not command.startswith("query-"):
            self.watch.command_begins()
        self._print(json.dumps(await self.execute(command, arguments)))
        self.ended |= command == "quit"

    async def send_hmp(self, line: str) -> None:
        """Execute an HMP line and print its text. Raises StatementFailed when the text tells a failure."""
        if line.split(maxsplit=1)[0] not in ("info", "help"):
            self.watch.command_begins()
        answer = str(await self.execute("human-monitor-command", {"command-line": line}))
        failure = hmp.failure(line, answer)
        if failure is not None:
            raise StatementFailed(f"{line.split(maxsplit=1)[0]}: {failure}")
        self.ended |= line.split(maxsplit=1)[0] in ("quit", "q")
        if answer:
            # The monitor ends its lines as a terminal in raw mode needs it.
            self._print(answer.replace("\r\n", "\n").removesuffix("\n"))

    def _print(self, text: str) -> None:
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except OSError as error:
            raise StatementFailed(f"standard output: {error.strerror}") from None


def _action_of(parsed: ParsedQMP | ParsedHMP | Empty) -> Action:
    async def act(runner: Runner) -> None:
        match parsed:
            case ParsedQMP(oob=True):
                raise StatementFailed("exec-oob: not available in this version")
            case ParsedQMP(command, arguments):
                await runner.send_qmp(command, arguments)
            case ParsedHMP(line):
                await runner.send_hmp(line)

    return act
