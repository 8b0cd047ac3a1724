"""What the lines of a script mean to the server at hand: its commands, its schema."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blockmon.lang import ArgInfo, Empty, Incomplete, ParsedHMP, ParsedQMP, ParseError, Schema, parse_input
from blockmon.replay.errors import CommandFailed
from blockmon.replay.variables import UNKNOWN, similar

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

_FORCED = ("{", "qmp ", "hmp ")
_NOTHING: frozenset[str] = frozenset()


class _NeedSchema(Exception):
    """A line cannot be parsed before the server's schema is known."""


def no_human_monitor(word: str) -> str:
    """The error for an HMP line, which begins with *word*, to a server that knows only QMP."""
    return f"'{word}' is no QMP command, and this server has no human monitor"


class Commands:
    """Parses commands; asks the server for as little as the lines need."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._names: frozenset[str] | None = None
        self._schema: Schema | None = None
        self._human: dict[str, frozenset[str]] = {}

    async def names(self) -> frozenset[str]:
        """The names of the server's QMP commands. Raises StatementFailed."""
        if self._names is None:
            self._names = frozenset(entry["name"] for entry in await self._runner.execute("query-commands"))
        return self._names

    async def schema(self) -> Schema:
        """The server's schema; an empty one when it does not tell any."""
        if self._schema is None:
            try:
                self._schema = Schema(await self._runner.execute("query-qmp-schema"))
            except CommandFailed:
                self._schema = Schema([])
        return self._schema

    async def drivers(self) -> Sequence[str]:
        """The names of the block drivers that blockdev-add takes."""
        driver = (await self.schema()).arguments_of("blockdev-add").get("driver")
        return driver.values if driver is not None else ()

    async def parse(self, text: str, mode: str) -> ParsedQMP | ParsedHMP:
        """Parse a complete command; *mode* is "qmp" or "hmp" when @mode says so. Raises ParseError, StatementFailed."""
        # JSON speaks for itself: a script in JSON only costs no query.
        start = len(text) - len(text.lstrip())
        names = _NOTHING if text.startswith("{", start) else self._names or await self.names()
        if not mode and text in names:
            return ParsedQMP(text)
        prefix = "" if not mode or text.startswith(_FORCED, start) else f"{mode} "
        if not prefix:
            return await self._parse(text, names)
        try:
            return await self._parse(text[:start] + prefix + text[start:], names)
        except ParseError as error:
            if error.line == 1:
                error.column = max(error.column - len(prefix), start + 1)
            raise

    async def _parse(self, text: str, names: Collection[str]) -> ParsedQMP | ParsedHMP:
        try:
            parsed = parse_input(text, names, self._arguments_of)
        except _NeedSchema:
            await self.schema()
            parsed = parse_input(text, names, self._arguments_of)
        if isinstance(parsed, Incomplete):
            raise ParseError.at(parsed.why, text, len(text) - len(text.lstrip()))
        if isinstance(parsed, Empty):
            raise ParseError("a command is missing")
        return parsed

    def _arguments_of(self, command: str) -> Mapping[str, ArgInfo]:
        if self._schema is None:
            raise _NeedSchema
        return self._schema.arguments_of(command)

    async def problems(self, text: str, parsed: ParsedQMP | ParsedHMP) -> list[ParseError]:
        """What in the command *text* does not fit the schema. Of an HMP line only the command's name is known."""
        if isinstance(parsed, ParsedHMP):
            words = parsed.line.split()
            word, more = words[0], words[1:2] if words[0] == "info" else []
            human = await self._human_names("help")
            if word not in human:
                hint = similar(word, [*await self.names(), *human])
                what = f"unknown command: '{word}'" if human else no_human_monitor(word)
                return [ParseError.at(f"{what}{hint}", text, text.index(word))]
            inside = await self._human_names("help info") if more else _NOTHING
            if inside and more[0] not in inside and UNKNOWN not in more[0]:
                hint = similar(more[0], inside)
                start = text.index(word) + len(word)
                return [ParseError.at(f"unknown command: 'info {more[0]}'{hint}", text, text.index(more[0], start))]
            return []
        from blockmon.replay.check import check, place

        found = check(await self.schema(), parsed)
        return [ParseError.at(problem.message, text, place(text, parsed, problem)) for problem in found]

    async def _human_names(self, line: str) -> frozenset[str]:
        """The names that the HMP line `help` or `help info` lists."""
        if line not in self._human:
            try:
                help_: Any = await self._runner.execute("human-monitor-command", {"command-line": line})
            except CommandFailed:
                help_ = ""  # no human monitor: none of its commands
            names: set[str] = set()
            for entry in str(help_).splitlines():
                listed = entry.removeprefix("info ") if line != "help" else entry
                if listed[:1].strip() and listed.split():
                    names.update(listed.split()[0].split("|"))
            self._human[line] = frozenset(names)
        return self._human[line]
