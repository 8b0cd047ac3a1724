"""What is typed, taken apart into statements: commands of the server, with a pipe or without, and the prompt's own."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from blockmon.lang import ArgumentsOf, Empty, Form, Incomplete, ParsedHMP, ParsedQMP, ParseError, classify, parse_input
from blockmon.lang.answer_path import begins_reference
from blockmon.lang.json_text import find_end
from blockmon.lang.pipes import find_pipe, shell_command

Command = ParsedQMP | ParsedHMP

PROMPT_COMMAND = re.compile(r"[ \t]*\\(?P<name>[A-Za-z?][\w-]*|\?)?[ \t]*(?P<argument>[^\n]*)")


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A command of the prompt's own: `\\NAME ARGUMENT`."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class Look:
    """A line that is a place in the last answer: `$_`, `$_[0].node-name`."""

    reference: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing to run. `shell` is the shell command that its answer goes to, `text` is how it was written, `line`
    counts from 1 in what was typed."""

    what: Command | PromptLine | Look
    text: str
    shell: str = ""
    line: int = 1


def is_prompt_line(text: str) -> bool:
    """Whether *text* begins with a command of the prompt's own, finished or not."""
    return text.lstrip(" \t")[:1] == "\\"


def split(text: str, commands: Collection[str], arguments_of: ArgumentsOf) -> list[Statement] | None:
    """The statements in *text*, one a line or one over several; None when the last one goes on. Raises ParseError."""
    found: list[Statement] = []
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        first = number
        try:
            statement, number = _next(lines, number, commands, arguments_of)
        except ParseError as error:
            raise ParseError(error.message, error.line + first, error.column) from None
        if number > len(lines):
            return None
        if statement is not None:
            found.append(statement)
    return found


def _next(
    lines: list[str], first: int, commands: Collection[str], arguments_of: ArgumentsOf
) -> tuple[Statement | None, int]:
    """The statement that begins in line *first*, and the line behind it; one too many when it is not complete."""
    piece, number = lines[first], first + 1
    if is_prompt_line(piece):
        return _prompt_line(piece, first), number
    json = classify(piece, commands) is Form.JSON
    if json:
        rest = "\n".join(lines[first:])
        end = find_end(rest, rest.index("{"))
        if end is None:
            return None, len(lines) + 1
        # The rest of the line the object ends on belongs to it: a pipe, or an error.
        line_end = rest.find("\n", end)
        piece = rest if line_end < 0 else rest[:line_end]
        number = first + piece.count("\n") + 1
    while True:
        pipe = None if piece.endswith("\\") and not json else _pipe_in(piece, commands)
        shell = shell_command(piece, pipe) if pipe is not None else ""
        parsed = parse_input(piece if pipe is None else piece[:pipe].rstrip(), commands, arguments_of)
        if not isinstance(parsed, Incomplete):
            break
        if number >= len(lines):
            return None, len(lines) + 1
        piece += "\n" + lines[number]
        number += 1
    if isinstance(parsed, Empty):
        if pipe is not None:
            raise ParseError.at("a command is missing in front of '|'", piece, pipe)
        return None, number
    if isinstance(parsed, ParsedHMP) and begins_reference(parsed.line):
        # No HMP command is called so.
        return Statement(Look(parsed.line), piece, shell, first + 1), number
    return Statement(parsed, piece, shell, first + 1), number


def _pipe_in(piece: str, commands: Collection[str]) -> int | None:
    if piece.lstrip().startswith("#"):
        return None
    return find_pipe(piece, brackets=classify(piece, commands) is not Form.HMP)


def _prompt_line(line: str, first: int) -> Statement:
    match = PROMPT_COMMAND.match(line)
    name = match["name"] or "" if match is not None else ""
    argument = match["argument"].strip() if match is not None else ""
    return Statement(PromptLine(name, argument), line, line=first + 1)
