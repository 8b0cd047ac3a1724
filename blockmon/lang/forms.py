"""Which of the three forms a command is written in, and what it says.

1. Text that begins with `{` is QMP as JSON, over as many lines as it takes.
2. A QMP command's name, alone or with `key=value` arguments, is a qmp-shell line.
3. Anything else is an HMP line.
`qmp ` or `hmp ` in front decides by force. A `\\` at the end of a line continues it, and a line that begins with `#`
is a comment.
"""

import enum
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from blockmon.lang import json_text
from blockmon.lang.errors import ParseError
from blockmon.lang.schema import ArgInfo
from blockmon.lang.shell_line import SECOND_COMMAND, StillOpen, parse_shell_line

_CONTINUED = re.compile(r"[ \t]*\\\n[ \t]*")
_LINE_BREAK = re.compile(r"(?<!\\)\n\s*")
_FIRST_WORD = re.compile(r"\S+")
_PAIR = re.compile(r"[\w.-]+=")


_HMP_WITH_HYPHEN = frozenset({"qemu-io", "xen-event-inject", "xen-event-list"})
"""The HMP commands whose names look like QMP's."""


class Form(enum.Enum):
    """The form of a command, told by its beginning."""

    EMPTY = "empty"
    JSON = "json"
    SHELL = "qmp-shell"
    HMP = "hmp"


@dataclass(frozen=True, slots=True)
class ParsedQMP:
    """A QMP command; `arguments` are as they go on the wire, `form` is JSON or SHELL, `oob` asks for exec-oob."""

    command: str
    arguments: dict[str, Any] = field(default_factory=dict)
    form: Form = Form.SHELL
    oob: bool = False


@dataclass(frozen=True, slots=True)
class ParsedHMP:
    """A line for human-monitor-command."""

    line: str


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The command goes on in the next line. `why` says what is open, for an error at the end of a file."""

    why: str


@dataclass(frozen=True, slots=True)
class Empty:
    """Blank, or only comments."""


Parsed = ParsedQMP | ParsedHMP | Incomplete | Empty
ArgumentsOf = Callable[[str], Mapping[str, ArgInfo]]


def classify(text: str, commands: Collection[str]) -> Form:
    """Tell the form of *text*, finished or not. *commands* are the QMP commands the server has."""
    form, _ = _classify(_blank_comments(text), commands)
    return form


def _classify(text: str, commands: Collection[str]) -> tuple[Form, int]:
    """Return the form and the offset where the command begins, behind a forcing prefix."""
    match = _FIRST_WORD.search(text)
    if match is None:
        return Form.EMPTY, len(text)
    if text[match.start()] == "{":
        return Form.JSON, match.start()
    word, rest = match[0], _FIRST_WORD.search(text, match.end())
    if word in ("qmp", "hmp") and rest is not None:
        start = rest.start()
        if word == "hmp":
            return Form.HMP, start
        return (Form.JSON if text[start] == "{" else Form.SHELL), start
    if word not in commands and (commands or "-" not in word or word in _HMP_WITH_HYPHEN):
        # As long as the server's commands are not known, a hyphen tells.
        return Form.HMP, match.start()
    # The names that HMP and QMP share (quit, block_resize, device_add …) have no hyphen, so a hyphen makes it QMP even
    # when what follows is wrong, and the error is about that. `device_add virtio-blk,drive=d0` is HMP.
    if rest is None or "-" in word or _PAIR.match(rest[0]):
        return Form.SHELL, match.start()
    return Form.HMP, match.start()


def _blank_comments(text: str) -> str:
    """Replace comment lines by blanks, so that every offset stays. Inside JSON there are none."""
    if "#" not in text or text.lstrip()[:1] == "{":
        return text
    lines = text.split("\n")
    for index, line in enumerate(lines):
        stripped = line.lstrip()
        if stripped.startswith("#"):
            lines[index] = " " * len(line)
        elif stripped:
            # Comments stand in front of a command; behind its beginning a # is the command's own (#block123).
            break
    return "\n".join(lines)


def parse_input(text: str, commands: Collection[str], arguments_of: ArgumentsOf | None = None) -> Parsed:
    """Parse one command in any of the three forms.

    *commands* are the QMP commands the server has; *arguments_of* gives a command's arguments, which decides how
    values are read (see `shell_line`), and is called only for qmp-shell lines that have arguments.
    Raises ParseError.
    """
    text = _blank_comments(text)
    if text.endswith("\\"):
        form, _ = _classify(text[:-1], commands)
        if form is not Form.JSON:
            return Incomplete("the line is continued by \\")
    form, start = _classify(text, commands)
    if form is Form.EMPTY:
        return Empty()
    if form is Form.JSON:
        return _parse_json(text, start)
    if form is Form.HMP:
        return ParsedHMP(_one_line(text, start))
    try:
        command, arguments = parse_shell_line(text, arguments_of, start)
    except StillOpen:
        return Incomplete("an object or a list is not closed")
    return ParsedQMP(command, arguments)


def _one_line(text: str, start: int) -> str:
    """Join an HMP command's continued lines by blanks."""
    line = _CONTINUED.sub(" ", text[start:]).strip()
    if "\n" in line:
        offset = start + next(m.end() for m in _LINE_BREAK.finditer(text[start:]))
        raise ParseError.at(SECOND_COMMAND, text, offset)
    return line


def _parse_json(text: str, start: int) -> ParsedQMP | Incomplete:
    end = json_text.find_end(text, start)
    if end is None:
        return Incomplete("the JSON object is not closed")
    behind = text[end:].strip()
    if behind:
        raise ParseError.at("unexpected text behind the JSON object", text, text.index(behind, end))
    message = json_text.parse(text, start, end)
    extra = message.keys() - {"execute", "exec-oob", "arguments", "id"}
    if extra:
        raise ParseError.at(f"QMP input member '{min(extra)}' is unexpected", text, start)
    if ("execute" in message) == ("exec-oob" in message):
        lacks = "execute" not in message
        raise ParseError.at(
            "QMP input lacks member 'execute'" if lacks else "QMP input members 'execute' and 'exec-oob' clash",
            text,
            start,
        )
    name = message.get("execute", message.get("exec-oob"))
    if not isinstance(name, str):
        raise ParseError.at("QMP input member 'execute' must be a string", text, start)
    arguments = message.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ParseError.at("QMP input member 'arguments' must be an object", text, start)
    return ParsedQMP(name, arguments, Form.JSON, "exec-oob" in message)
