"""The lines that begin with @. One module a directive; it registers itself, and is imported when a script uses it."""

import importlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from blockmon.lang import ParseError
from blockmon.lang.shell_line import StillOpen, is_blank, parse_value, value_end
from blockmon.replay.variables import UNKNOWN, similar

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner
    from blockmon.replay.statements import Statement

Action = Callable[["Runner"], Awaitable[None]]

NAMES = (
    *("set", "let", "expect", "error", "wait-event", "wait-job", "timeout", "sleep", "include", "for", "repeat"),
    *("end", "retry", "require", "echo", "mode", "shell", "defer"),
)
EXPECTATIONS = frozenset({"expect", "error", "let"})
"""Those that look at what the command in front of them answered."""

_PAIR = re.compile(r"([\w.-]+)=")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


class Word(NamedTuple):
    """A word behind the directive's name: `key` is "" unless it is key=value. `offset` is where it begins."""

    key: str
    value: str
    offset: int


class Call:
    """A directive as a script uses it: `text` with the variables put in, and `start`, the offset behind the name."""

    def __init__(self, directive: "Directive", statement: "Statement", text: str, start: int) -> None:
        self.directive = directive
        self.statement = statement
        self.text = text
        self.start = start

    @property
    def rest(self) -> tuple[str, int]:
        """Everything behind the name, continued lines joined, and where it begins."""
        begin = self.start
        while begin < len(self.text) and is_blank(self.text, begin):
            begin += 2 if self.text[begin] == "\\" else 1
        return self.text[begin:].replace("\\\n", " \n").replace("\n", " ").rstrip(), begin

    def words(self) -> list[Word]:
        """The words behind the name; text in quotes, lists and objects are one each. Raises ParseError."""
        return _words(self.text, self.start)

    def error(self, message: str, offset: int | None = None) -> ParseError:
        """The error at *offset* of the text, or about the whole."""
        return ParseError.at(message, self.text, self.text.index("@") if offset is None else offset)

    def usage(self, offset: int | None = None) -> ParseError:
        """The error for words that do not fit: it tells the usage."""
        return self.error(f"usage: @{self.directive.name} {self.directive.usage}".rstrip(), offset)


class Directive(NamedTuple):
    """A directive. `parse` returns what to do, or raises ParseError; `checked`: also done when a script is only
    checked; `help`: what it does, in one paragraph."""

    name: str
    usage: str
    parse: Callable[[Call], Action]
    checked: bool
    help: str


DIRECTIVES: dict[str, Directive] = {}


def directive(name: str, usage: str, *, checked: bool = False) -> Callable[[Callable[[Call], Action]], Directive]:
    """Register a directive's parser as @*name*; *usage* is what may follow the name. Its docstring is the help."""

    def register(parse: Callable[[Call], Action]) -> Directive:
        DIRECTIVES[name] = Directive(name, usage, parse, checked, " ".join((parse.__doc__ or "").split()))
        return DIRECTIVES[name]

    return register


def find_directive(name: str) -> Directive | None:
    """The directive @*name*; None when there is none."""
    if name not in NAMES:
        return None
    if name not in DIRECTIVES:
        importlib.import_module(f"{__name__}.{_MODULES.get(name, name.replace('-', '_'))}")
    return DIRECTIVES[name]


def parse_directive(statement: "Statement", text: str) -> tuple[Directive, Action]:
    """Parse a statement that begins with @; *text* has the variables put in. Raises ParseError."""
    start = text.index("@") + 1
    end = start
    while end < len(text) and not is_blank(text, end):
        end += 1
    name = text[start:end]
    found = find_directive(name)
    if found is None:
        raise ParseError.at(
            f"unknown directive '@{name}'{similar(f'@{name}', [f'@{known}' for known in NAMES])}", text, start - 1
        )
    return found, found.parse(Call(found, statement, text, end))


_MODULES = {"for": "for_", "end": "end"}


def _words(text: str, position: int) -> list[Word]:
    words: list[Word] = []
    while True:
        while position < len(text) and is_blank(text, position):
            position += 2 if text[position] == "\\" else 1
        if position >= len(text):
            return words
        match = _PAIR.match(text, position)
        begin = match.end() if match else position
        try:
            end = value_end(text, begin)
        except StillOpen:
            raise ParseError.at("an object or a list is not closed", text, begin) from None
        words.append(Word(match[1] if match else "", text[begin:end], position))
        position = end


def unquote(text: str) -> str:
    """The text of a word that may stand in quotes."""
    return str(parse_value(text, None)) if text[:1] in ("'", '"') else text


def duration(call: Call, value: str, offset: int) -> float:
    """The seconds that *value*, a word at *offset*, says: 5s, 500ms, 2m, 1h, or a number of seconds."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise call.error(f"'{value}' is not a duration such as 5s, 500ms or 2m", offset)
    return float(match[1]) * _SECONDS[match[2]]


def count(call: Call, value: str, offset: int) -> int:
    """The number above 0 that *value*, a word at *offset*, says."""
    if not value.isascii() or not value.isdecimal() or len(value) > 18 or not int(value):
        raise call.error(f"'{value}' is not a number of times", offset)
    return int(value)


def take_timeout(call: Call, words: list[Word]) -> float | None:
    """Remove `timeout=` from *words*; returns seconds, None when there is none."""
    found = [word for word in words if word.key == "timeout"]
    if not found:
        return None
    seconds = duration(call, found[0].value, found[0].offset)
    if len(found) > 1:
        raise call.error("timeout= is given twice", found[1].offset)
    words.remove(found[0])
    return seconds


def known(text: str) -> bool:
    """Whether *text* says what it will say in a real run: it has no value that a check cannot know."""
    return UNKNOWN not in text
