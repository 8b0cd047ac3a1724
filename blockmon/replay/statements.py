"""Statements of a command file: which lines belong together, told before variables are put in and anything is parsed.

- A line that begins with `{` opens a JSON command that goes on until its brackets are closed.
- `\\` at the end continues any other line, and so does a list or an object that a qmp-shell value leaves open.
- `----` begins the answer expected of the command in front: the lines up to a blank one.
- Blank lines and those that begin with `#` separate statements.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal

from blockmon.exitcodes import ExitStatus
from blockmon.lang import Incomplete, ParseError, parse_input
from blockmon.replay.directives import NAMES
from blockmon.replay.errors import ScriptError
from blockmon.replay.reader import MAX_LINE, read_lines

ANSWER_MARK = "----"

_BRACKET = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[\[\]{}]""")
_MAY_OPEN = re.compile(r"=(?:json:)?[\[{]")
_JSON = re.compile(r"\s*(?:@defer\s+)?(?:qmp\s+)?\{")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: where it begins (from 1), its raw lines, and its last line's number.

    `kind` is "command", "directive", or "answer" for an expected one, whose `text` is without the `----`.
    """

    file: str
    line: int
    column: int
    text: str
    end_line: int
    kind: Literal["command", "directive", "answer"]

    @property
    def directive(self) -> str:
        """The directive's name without @; "" for anything else."""
        return self.text.split(maxsplit=1)[0][1:] if self.kind == "directive" else ""


def is_directive(line: str) -> bool:
    """Whether a line of an expected answer looks like a directive, and not like a pattern either."""
    if not line.lstrip().startswith("@") or line.rstrip().endswith((" (re)", " (glob)")):
        return False
    return line.split(maxsplit=1)[0][1:] in NAMES


class Statements:
    """Gives the statements of some source one after the other; a loop's body is taken out of it as a whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ahead: Statement | None = None

    async def _take(self) -> Statement | None:
        """The next statement, None at the end."""
        return None

    async def next(self) -> Statement | None:
        """The next statement, None at the end. Raises ScriptError."""
        found, self._ahead = self._ahead, None
        return found if found is not None else await self._take()

    async def peek(self) -> Statement | None:
        """The next statement, which stays the next."""
        if self._ahead is None:
            self._ahead = await self._take()
        return self._ahead

    async def block(self, opening: Statement) -> list[Statement]:
        """The statements up to the @end that belongs to *opening*. Raises ScriptError when there is none."""
        body: list[Statement] = []
        depth = 1
        while (statement := await self.next()) is not None:
            depth += (statement.directive in ("for", "repeat")) - (statement.directive == "end")
            if not depth:
                return body
            body.append(statement)
        raise ScriptError(
            f"@{opening.directive} has no @end", opening.file, opening.line, opening.column, ExitStatus.USAGE
        )


class Body(Statements):
    """The statements of a loop's body, for one round."""

    def __init__(self, name: str, statements: list[Statement]) -> None:
        super().__init__(name)
        self._rest = iter(statements)

    async def _take(self) -> Statement | None:
        return next(self._rest, None)


class FileStatements(Statements):
    """The statements of a file, read as they are asked for.

    `commands` gives the names of the server's QMP commands, `on_idle` is awaited before more text is waited for.
    """

    def __init__(
        self,
        path: str,
        name: str,
        commands: Callable[[], Awaitable[Collection[str]]],
        on_idle: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(name)
        self._pieces: AsyncIterator[list[str]] = read_lines(path, name)
        self._lines: list[str] = []
        self._index = 0
        self._number = 0
        self._commands = commands
        self._on_idle = on_idle

    async def _line(self) -> str | None:
        if self._index >= len(self._lines):
            await self._on_idle()
            try:
                self._lines = await anext(self._pieces)
            except StopAsyncIteration:
                return None
            except OSError as error:
                raise self._error(error.strerror or str(error), self._number + 1) from None
            self._index = 0
        self._index += 1
        self._number += 1
        return self._lines[self._index - 1]

    def _error(self, message: str, line: int, column: int = 1) -> ScriptError:
        return ScriptError(message, self.name, line, column, ExitStatus.USAGE)

    async def _take(self) -> Statement | None:
        while (line := await self._line()) is not None:
            stripped = line.lstrip()
            if not stripped or stripped[0] == "#":
                continue
            start, column = self._number, len(line) - len(stripped) + 1
            if stripped.rstrip() == ANSWER_MARK:
                return await self._answer(start, column)
            text = line
            if stripped[0] == "{" or "{" in line or "[" in line or line[-1] == "\\":
                text = await self._whole(line, start, column)
            kind: Literal["directive", "command"] = "directive" if stripped[0] == "@" else "command"
            return Statement(self.name, start, column, text, self._number, kind)
        return None

    async def _answer(self, start: int, column: int) -> Statement:
        lines: list[str] = []
        while (line := await self._line()) is not None and line.strip():
            if is_directive(line):
                # It would never be carried out, and --update would take it away.
                column = len(line) - len(line.lstrip()) + 1
                word = line.split(maxsplit=1)[0]
                raise self._error(
                    f"{word} stands in an expected answer, which ends at an empty line", self._number, column
                )
            lines.append(line)
        end = start + len(lines)
        return Statement(self.name, start, column, "\n".join(lines), end, "answer")

    async def _whole(self, line: str, start: int, column: int) -> str:
        """The text of the statement that begins with *line*, with the lines it goes on in."""
        lines, size = [line], len(line)
        json = _JSON.match(line) is not None
        depth = _depth(line) if json else 0
        while why := "the JSON object is not closed" if depth > 0 else await self._open(lines, json):
            more = await self._line()
            if more is None:
                raise self._error(f"the file ends, but {why}", start, column)
            lines.append(more)
            size += len(more) + 1
            if size > MAX_LINE:
                raise self._error("the statement is too long", start, column)
            if json:
                depth += _depth(more)
        return "\n".join(lines)

    async def _open(self, lines: list[str], json: bool) -> str:
        """Why the statement goes on behind *lines*; "" when it is complete."""
        if json:
            return ""
        if lines[-1].endswith("\\"):
            return "the line is continued by \\"
        if lines[0].lstrip()[0] == "@" or not any(map(_MAY_OPEN.search, lines)):
            return ""
        try:
            parsed = parse_input("\n".join(lines), await self._commands())
        except ParseError:
            return ""  # told when the statement's turn comes
        return parsed.why if isinstance(parsed, Incomplete) else ""


def _depth(line: str) -> int:
    """How many more brackets *line* opens than it closes, strings left out."""
    return sum((token in "{[") - (token in "}]") for token in _BRACKET.findall(line))
