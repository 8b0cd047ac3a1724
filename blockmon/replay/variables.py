"""${NAME} and ${env:NAME}: text put into a statement before it is parsed, and where each character came from.

In a JSON command, inside a string, the value is escaped as JSON wants it; everywhere else it is put in as it is. `$${`
stands for `${` itself.
"""

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blockmon.lang import ParseError

UNKNOWN = "\ue000"
"""Stands for a value that only a real run would tell, while a script is checked. Nobody writes this character."""

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}\n]*)\}?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRING = re.compile(r""""(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?""")


_JSON = re.compile(r"\s*(?:@defer\s+)?(?:qmp\s+)?\{")


def is_name(text: str) -> bool:
    """Whether a variable can be called *text*."""
    return _NAME.fullmatch(text) is not None


def similar(word: str, names: Iterable[str]) -> str:
    """What to add to an error about *word*, which is none of *names*: the nearest of them."""
    import difflib

    found = difflib.get_close_matches(word, list(names), 1)
    return f"; did you mean '{found[0]}'?" if found else ""


@dataclass(slots=True)
class Expanded:
    """A statement's text with its variables put in."""

    text: str
    original: str
    pieces: list[tuple[int, int, int]]
    """(offset in text, offset in original, 1 when the piece is copied and 0 when it was put in), by offset."""

    def origin(self, line: int, column: int) -> tuple[int, int]:
        """Where in the original the place *line*, *column* (from 1) of the text stands."""
        if not self.pieces:
            return line, column
        offset = sum(len(part) + 1 for part in self.text.split("\n")[: line - 1]) + column - 1
        found, start, copied = self.pieces[bisect_right(self.pieces, (offset, len(self.original) + 1, 2)) - 1]
        back = start + (offset - found if copied else 0)
        return self.original.count("\n", 0, back) + 1, back - (self.original.rfind("\n", 0, back) + 1) + 1


def expand(text: str, variables: Mapping[str, str]) -> Expanded:
    """Put the variables into *text*. Raises ParseError, placed in *text*, for one that is not defined."""
    if "${" not in text:
        return Expanded(text, text, [])
    strings = _strings(text)
    parts: list[str] = []
    pieces: list[tuple[int, int, int]] = []
    size = done = 0
    for match in _REFERENCE.finditer(text):
        pieces.append((size, done, 1))
        parts.append(text[done : match.start()])
        size += match.start() - done
        value = "${" if match[1] else _value(text, match, variables)
        if strings is not None and not match[1]:
            value = _in_json(value, strings.get(match.start(), ""))
        pieces.append((size, match.start(), 0))
        parts.append(value)
        size += len(value)
        done = match.end()
    pieces.append((size, done, 1))
    parts.append(text[done:])
    return Expanded("".join(parts), text, pieces)


def _value(text: str, match: "re.Match[str]", variables: Mapping[str, str]) -> str:
    name = match[2]
    if not match[0].endswith("}"):
        raise ParseError.at("'${' is not closed by '}'", text, match.start())
    kind, colon, key = name.partition(":")
    if colon and kind == "env":
        found = os.environ.get(key)
        if found is None:
            raise ParseError.at(f"the environment has no '{key}'", text, match.start())
        return found
    if not is_name(name):
        raise ParseError.at(f"'{name}' is no variable's name; '$${{' stands for '${{' itself", text, match.start())
    if name not in variables:
        raise ParseError.at(f"the variable '{name}' is not set{similar(name, variables)}", text, match.start())
    return variables[name]


def _strings(text: str) -> dict[int, str] | None:
    """Of a JSON command: the quote that each offset inside a string is within; None for text that is no JSON."""
    if _JSON.match(text) is None:
        return None
    inside: dict[int, str] = {}
    for match in _STRING.finditer(text):
        for reference in _REFERENCE.finditer(text, match.start(), match.end()):
            inside[reference.start()] = match[0][0]
    return inside


def _in_json(value: str, quote: str) -> str:
    if not quote:
        return json.dumps(value) if UNKNOWN in value else value
    escaped = json.dumps(value)[1:-1]
    return escaped.replace("'", "\\'") if quote == "'" else escaped
