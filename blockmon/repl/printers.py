"""Answers, errors and events as styled text. A fragment is (prompt_toolkit style, text); `\\n` ends a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from blockmon.lang import ParseError
from blockmon.model.format import clock_time, safe_text
from blockmon.repl.lexers import HMPAnswerLexer, lexed

Fragment = tuple[str, str]
Fragments = list[Fragment]

KEY = "class:pygments.name.tag"
STRING = "class:pygments.literal.string"
NUMBER = "class:pygments.literal.number"
CONSTANT = "class:pygments.keyword.constant"
PUNCTUATION = "class:pygments.punctuation"
ERROR = "class:error"
ERROR_CLASS = "class:error.class"
EVENT = "class:event"
EVENT_NAME = "class:event.name"
NOTICE = "class:notice"

INDENT = 2


def format_answer(result: Any, width: int = 80) -> Fragments:
    """The answer to a command: JSON pretty-printed into *width* columns, text (HMP's) as it is. Ends with a line end
    unless it is empty."""
    return list(iter_answer(result, width))


def iter_answer(result: Any, width: int = 80) -> Iterator[Fragment]:
    """`format_answer` piece by piece, for answers of any size."""
    if isinstance(result, str):
        yield from format_text(result)
        return
    yield from _value(result, "", 0, max(width, 20))
    yield "", "\n"


def format_text(text: str) -> Iterator[Fragment]:
    """HMP's answer. Whatever could steer the terminal is escaped."""
    text = text.replace("\r\n", "\n").expandtabs(8)
    if not text:
        return
    lines = [safe_text(line) for line in text.removesuffix("\n").split("\n")]
    yield from lexed("\n".join(lines), HMPAnswerLexer())
    yield "", "\n"


def _scalar(value: Any) -> Fragment:
    if isinstance(value, str):
        # JSON's escapes leave characters that change the writing direction; ASCII does not.
        text = json.dumps(value, ensure_ascii=False)
        return STRING, text if text.isprintable() else json.dumps(value)
    if value is None or isinstance(value, bool):
        return CONSTANT, json.dumps(value)
    return NUMBER, json.dumps(value)


def _key(name: str) -> Fragment:
    return KEY, _scalar(name)[1]


def _value(value: Any, before: str, depth: int, width: int) -> Iterator[Fragment]:
    """The pieces of *value*, which begins behind *before* on its line, *depth* levels in."""
    if not isinstance(value, (dict, list)) or not value:
        yield _scalar(value) if not isinstance(value, (dict, list)) else (PUNCTUATION, "{}" if value == {} else "[]")
        return
    indent = INDENT * depth
    # One more for the comma behind it.
    if _fits(value, width - indent - len(before) - 1) >= 0:
        yield from _on_one_line(value)
        return
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield PUNCTUATION, opening
    inner = "\n" + " " * (indent + INDENT)
    items: Iterable[tuple[str | None, Any]]
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for index, (name, item) in enumerate(items):
        yield PUNCTUATION, ("," if index else "") + inner
        text = ""
        if name is not None:
            key = _key(str(name))
            text = key[1] + ": "
            yield key
            yield PUNCTUATION, ": "
        yield from _value(item, text, depth + 1, width)
    yield PUNCTUATION, "\n" + " " * indent + closing


def _fits(value: Any, room: int) -> int:
    """The columns left of *room* when *value* is written on one line; negative as soon as it does not fit."""
    if isinstance(value, str):
        return -1 if len(value) > room else room - len(_scalar(value)[1])
    if not isinstance(value, (dict, list)):
        return room - len(json.dumps(value))
    room -= 2
    if isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            if room < len(name):
                return -1
            room = _fits(item, room - len(_key(str(name))[1]) - (4 if index else 2))
    else:
        for index, item in enumerate(value):
            if room < 0:
                return -1
            room = _fits(item, room - (2 if index else 0))
    return room


def _on_one_line(value: Any) -> Iterator[Fragment]:
    if isinstance(value, dict):
        yield PUNCTUATION, "{"
        for index, (name, item) in enumerate(value.items()):
            if index:
                yield PUNCTUATION, ", "
            yield _key(str(name))
            yield PUNCTUATION, ": "
            yield from _on_one_line(item)
        yield PUNCTUATION, "}"
    elif isinstance(value, list):
        yield PUNCTUATION, "["
        for index, item in enumerate(value):
            if index:
                yield PUNCTUATION, ", "
            yield from _on_one_line(item)
        yield PUNCTUATION, "]"
    else:
        yield _scalar(value)


def format_error(cls: str, desc: str) -> Fragments:
    """A command's failure: QMP's error class and its text."""
    return [(ERROR_CLASS, f"{safe_text(cls)}: "), (ERROR, safe_text(desc)), ("", "\n")]


def format_parse_error(error: ParseError, text: str, width: int = 80) -> Fragments:
    """Why *text* is no command, with the line at fault and a caret under the place."""
    lines = text.split("\n")
    fragments: Fragments = []
    if 1 <= error.line <= len(lines):
        line, column = lines[error.line - 1], max(error.column - 1, 0)
        room = max(width - 4, 10)
        first = max(0, column - room * 2 // 3) if len(line) > room else 0
        piece = "".join(char if char.isprintable() else " " for char in line[first : first + room])
        fragments += [(NOTICE, "  " + piece + "\n"), (ERROR, " " * (2 + column - first) + "^\n")]
    place = f" (line {error.line})" if len(lines) > 1 else ""
    return [*fragments, (ERROR_CLASS, "Syntax: "), (ERROR, safe_text(error.message) + place), ("", "\n")]


def format_notice(text: str) -> Fragments:
    """A remark of the prompt's own."""
    return [(NOTICE, safe_text(text)), ("", "\n")]


def format_hint(text: str) -> Fragments:
    """What may help after an error."""
    return [(NOTICE, "  " + safe_text(text)), ("", "\n")]


def format_event(event: Mapping[str, Any]) -> Fragments:
    """An asynchronous event on one line, with its time of day."""
    stamp = event.get("timestamp", {})
    seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
    data = event.get("data") or {}
    parts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in data.items()]
    return [
        (EVENT, clock_time(seconds) + " "),
        (EVENT_NAME, safe_text(event.get("event", "?"))),
        (EVENT, "".join(" " + safe_text(part) for part in parts)),
        ("", "\n"),
    ]


def plain(fragments: Iterable[Fragment]) -> str:
    """The text alone."""
    return "".join(text for _, text in fragments)
