"""The lines that begin with @. One module a directive; it registers itself, and is imported at the end of this file."""

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from blockmon.lang import ParseError
from blockmon.lang.shell_line import StillOpen, is_blank, parse_value, value_end

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

Action = Callable[["Runner"], Awaitable[None]]

_PAIR = re.compile(r"([\w.-]+)=")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


class Word(NamedTuple):
    """A word behind the directive's name: `key` is "" unless it is key=value. `offset` is where it begins."""

    key: str
    value: str
    offset: int


class Directive(NamedTuple):
    """A directive; `parse` gets the statement's text and its words, and returns what to do, or raises ParseError."""

    name: str
    usage: str
    parse: Callable[[str, list[Word]], Action]


DIRECTIVES: dict[str, Directive] = {}


def directive(name: str, usage: str) -> Callable[[Callable[[str, list[Word]], Action]], Directive]:
    """Register a directive's parser as @*name*; *usage* is what may follow the name."""

    def register(parse: Callable[[str, list[Word]], Action]) -> Directive:
        DIRECTIVES[name] = Directive(name, usage, parse)
        return DIRECTIVES[name]

    return register


def parse_directive(text: str) -> Action:
    """Parse a statement that begins with @. Raises ParseError."""
    start = text.index("@") + 1
    end = start
    while end < len(text) and not is_blank(text, end):
        end += 1
    name = text[start:end]
    known = DIRECTIVES.get(name)
    if known is None:
        raise ParseError.at(f"unknown directive '@{name}'", text, start - 1)
    return known.parse(text, _words(text, end))


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


def take_timeout(text: str, words: list[Word]) -> float | None:
    """Remove `timeout=` (5s, 500ms, 2m, 1h, or seconds) from *words*; returns seconds, None when there is none."""
    found = [word for word in words if word.key == "timeout"]
    if not found:
        return None
    match = _DURATION.fullmatch(found[0].value)
    if match is None:
        raise ParseError.at(f"'{found[0].value}' is not a duration such as 5s, 500ms or 2m", text, found[0].offset)
    if len(found) > 1:
        raise ParseError.at("timeout= is given twice", text, found[1].offset)
    words.remove(found[0])
    return float(match[1]) * _SECONDS[match[2]]


def usage_error(text: str, what: Directive, offset: int | None = None) -> ParseError:
    """The error for words that do not fit: it tells the usage."""
    return ParseError.at(f"usage: @{what.name} {what.usage}", text, text.index("@") if offset is None else offset)


from blockmon.replay.directives import wait_event, wait_job  # noqa: E402, F401
