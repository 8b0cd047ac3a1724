"""What the cursor stands in: the form of the command, the place inside its arguments, and what is typed of it so far.

Unlike `blockmon.lang`, which refuses what is wrong, this reads text that is being typed: open strings, missing
brackets and half a key are normal here. It knows no schema.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from blockmon.lang import Form, classify

LONGEST = 32 * 1024
"""Longer texts (bytes pasted in, not typed) are not analysed: no completion, no hint, no delay."""

_PREFIX = re.compile(r"[ \t]*(?:(?:qmp|hmp)[ \t]+)?(?=\S)")
_LINE_START = re.compile(r"(?<!\\)\n")
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*(?P<closed>")?|'(?:[^'\\\n]|\\.)*(?P<closed1>')?)
    |(?P<open>[{\[])|(?P<close>[}\]])|(?P<colon>:)|(?P<comma>,)|(?P<bare>[^\s{}\[\]:,"']+)""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_AFTER_STRING = re.compile(r"\s*[,:}\]]")
_BARE_VALUES = {"true": True, "false": False, "null": None}


class Kind(enum.Enum):
    """What kind of thing the cursor stands in."""

    NOTHING = "nothing"
    COMMAND = "command"
    KEY = "key"
    VALUE = "value"
    NEXT = "next"
    """Behind a whole JSON value, inside an object or a list."""
    COLON = "colon"
    """Behind a key of JSON."""
    HMP = "hmp"


@dataclass(frozen=True, slots=True)
class Spot:
    """The place of the cursor.

    `word` is what is typed before the cursor of the thing it stands in, which begins at offset `start` of the text.
    `path` leads from the command's arguments to the object whose key, or to the value which, is being typed.
    `arguments` are those given elsewhere in the text; `words` those of an HMP line before the cursor.
    `quote` is the quotation mark in front of `word`, `closed` tells that what follows is already behind it.
    `levels` are the paths of the JSON objects and lists around the cursor, the innermost last, each with the bracket
    that closes it; `behind` is the character that follows, blanks left out.
    `raw_message` marks a key of the QMP message itself (execute, arguments, id); `json` tells that what is typed is
    JSON, be it the whole message or one value of a qmp-shell line.
    """

    form: Form
    kind: Kind
    word: str = ""
    start: int = 0
    command: str = ""
    path: tuple[str | int, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    quote: str = ""
    closed: bool = False
    raw_message: bool = False
    json: bool = False
    levels: tuple[tuple[tuple[str | int, ...], str], ...] = ()
    behind: str = ""
    apart: bool = False
    """Whether a blank follows the cursor."""
    gap: str = ""
    """Of kind NEXT: the blanks between the value and the cursor, which `start` is in front of."""
    whole: bool = False
    """Whether `word` is a number, true, false or null already, so that it may end here."""


def spot_at(text: str, cursor: int, commands: Collection[str]) -> Spot:
    """Find out what the character offset *cursor* of *text* stands in. *commands* are the server's QMP commands."""
    if len(text) > LONGEST:
        return Spot(Form.EMPTY, Kind.NOTHING)
    if text.lstrip()[:1] != "{":
        # Of several lines, as pasted, only the one with the cursor counts.
        begin = 0
        for match in _LINE_START.finditer(text, 0, cursor):
            begin = match.end()
        finish = _LINE_START.search(text, cursor)
        end = finish.start() if finish is not None else len(text)
    else:
        begin, end = 0, len(text)
    line = text[begin:end]
    if line.lstrip().startswith("#"):
        return Spot(Form.EMPTY, Kind.NOTHING)
    prefix = _PREFIX.match(line)
    start = begin + (prefix.end() if prefix is not None else len(line))
    if start > cursor or prefix is None:
        return Spot(Form.EMPTY, Kind.COMMAND, "", cursor)
    form = classify(line, commands)
    if form is Form.JSON:
        return _json_spot(text, start, end, cursor)
    first = re.compile(r"\S+").match(text, start, end)
    assert first is not None
    if cursor <= first.end():
        return Spot(form, Kind.COMMAND, text[start:cursor], start)
    # A name that HMP and QMP share is an HMP line only once its second word is no key=value.
    second = first[0] in commands and re.compile(r"\s+[\w.-]*").fullmatch(text, first.end(), cursor) is not None
    if form is Form.SHELL or second:
        return _shell_spot(text, first.end(), end, cursor, first[0])
    return _hmp_spot(text, start, cursor, first[0])


# HMP -----------------------------------------------------------------------------------------------------------------


def _hmp_spot(text: str, start: int, cursor: int, command: str) -> Spot:
    words: list[str] = []
    position = start
    word, begin, quote = "", cursor, ""
    while position < cursor:
        if text[position].isspace() or text.startswith("\\\n", position):
            position += 1 if text[position] != "\\" else 2
            continue
        begin = position
        quote = text[position] if text[position] == '"' else ""
        if quote:
            close = text.find('"', position + 1, cursor)
            position = cursor if close < 0 else close + 1
            word = text[begin + 1 : position if close < 0 else close]
            open_word = close < 0
        else:
            while position < cursor and not text[position].isspace():
                position += 1
            word = text[begin:position]
            open_word = position == cursor
        if open_word:
            return Spot(Form.HMP, Kind.HMP, word, begin + len(quote), command, words=tuple(words), quote=quote)
        words.append(word)
    return Spot(Form.HMP, Kind.HMP, "", cursor, command, words=tuple(words))


# qmp-shell lines -----------------------------------------------------------------------------------------------------


def _shell_spot(text: str, position: int, end: int, cursor: int, command: str) -> Spot:
    tree: dict[str, Any] = {}
    found: dict[str, Any] | None = None
    while position < end:
        if text[position].isspace() or text.startswith("\\\n", position):
            position += 2 if text[position] == "\\" else 1
            continue
        begin = position
        while position < end and text[position] != "=" and not text[position].isspace():
            position += 1
        key = text[begin:position]
        here = begin <= cursor <= position
        if here:
            typed = text[begin:cursor]
            *parents, word = typed.split(".")
            found = {
                "kind": Kind.KEY,
                "word": word,
                "start": cursor - len(word),
                "path": tuple(parents),
                "closed": text[position : position + 1] == "=",
            }
        if position >= end or text[position] != "=":
            continue
        value_start = position + 1
        position, value = _shell_value(text, value_start, end)
        if value_start <= cursor <= position and not here:
            found = _in_value(text, value_start, position, cursor, key) or {"kind": Kind.NOTHING}
        if not here:
            _put(tree, key.split("."), value)
    if found is None:
        found = {"kind": Kind.KEY, "start": cursor}
    return Spot(Form.SHELL, command=command, arguments=tree, **found)


def _in_value(text: str, start: int, end: int, cursor: int, key: str) -> dict[str, Any] | None:
    """Describe the cursor inside the value text[start:end] of *key*; None where there is nothing to say."""
    path = tuple(key.split("."))
    opening = text[start : start + 1]
    if opening in ("{", "["):
        scan = _JSONScan(text, start, end, cursor)
        if scan.spot is None or (cursor == end and scan.complete):
            return None
        inner = dict(scan.spot)
        inner["path"] = path + inner["path"]
        inner["levels"] = tuple((path + steps, bracket) for steps, bracket in inner.get("levels", ()))
        return inner
    quote = opening if opening in ('"', "'") and cursor > start else ""
    if quote and cursor == end and end - start > 1 and text[end - 1] == quote:
        return None
    word_start = start + len(quote)
    closed = bool(quote) and text[cursor : cursor + 1] == quote
    return {
        "kind": Kind.VALUE,
        "word": text[word_start:cursor],
        "start": word_start,
        "path": path,
        "quote": quote,
        "closed": closed,
    }


def _shell_value(text: str, start: int, end: int) -> tuple[int, Any]:
    """Return where the value that begins at *start* ends, and what it says as far as completion cares."""
    opening = text[start : start + 1]
    if start >= end:
        return end, ""
    if opening in ("{", "["):
        scan = _JSONScan(text, start, end, -1)
        return scan.end, scan.root
    if opening in ('"', "'"):
        close = text.find(opening, start + 1, end)
        return (end, text[start + 1 : end]) if close < 0 else (close + 1, text[start + 1 : close])
    position = start
    while position < end and not text[position].isspace():
        position += 1
    return position, text[start:position]


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for step in path[:-1]:
        inner = tree.setdefault(step, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.setdefault(path[-1], value)


# JSON ----------------------------------------------------------------------------------------------------------------


def _json_spot(text: str, start: int, end: int, cursor: int) -> Spot:
    scan = _JSONScan(text, start, end, cursor)
    message = scan.root if isinstance(scan.root, dict) else {}
    command = message.get("execute", message.get("exec-oob", ""))
    arguments = message.get("arguments")
    spot = scan.spot
    if spot is None or (scan.complete and cursor >= scan.end):
        return Spot(Form.JSON, Kind.NOTHING)
    command = command if isinstance(command, str) else ""
    arguments = arguments if isinstance(arguments, dict) else {}
    path = spot.pop("path")
    kind = spot.pop("kind")
    # Of the message itself only what is around the arguments has no path among them.
    levels = [(steps[1:], bracket) for steps, bracket in spot.pop("levels", ())[1:] if steps[:1] == ("arguments",)]
    spot["levels"] = tuple(levels)
    if path == () and kind in (Kind.KEY, Kind.NEXT):
        return Spot(Form.JSON, kind, command=command, arguments=message, raw_message=True, **spot)
    if kind is Kind.COLON:
        return Spot(Form.JSON, kind, command=command, arguments=arguments, path=path[1:], **spot)
    if path in (("execute",), ("exec-oob",)) and kind is Kind.VALUE:
        return Spot(Form.JSON, Kind.COMMAND, arguments=arguments, **spot)
    if path[:1] != ("arguments",):
        return Spot(Form.JSON, Kind.NOTHING, command=command)
    if path == ("arguments",) and kind is Kind.VALUE:
        # The arguments as a whole; only an opening bracket fits.
        return Spot(Form.JSON, kind, command=command, arguments=arguments, **spot)
    return Spot(Form.JSON, kind, command=command, arguments=arguments, path=path[1:], **spot)


class _JSONScan:
    """One pass over JSON that may be open or wrong: the values it has, and what the cursor stands in."""

    def __init__(self, text: str, start: int, end: int, cursor: int) -> None:
        self.root: Any = None
        self.spot: dict[str, Any] | None = None
        self.end = end
        self.complete = False
        # A frame is [container, path, state, pending key]; state is key, colon, value or comma.
        self._frames: list[list[Any]] = []
        self._text, self._limit = text, end
        self._last = start
        """Where the last token ended."""
        position = start
        while position < end:
            match = _TOKEN.search(text, position, end)
            if match is None:
                break
            stop = match.end()
            if match.start() >= cursor >= 0 and self.spot is None and match.start() > start:
                self.spot = self._place("", cursor, "", False)
            if match.start() < cursor <= stop and self.spot is None:
                if match["string"] is not None and cursor < stop and _AFTER_STRING.match(text, cursor, stop):
                    # What follows is no part of the string: its closing quote is missing.
                    match = _TOKEN.match(text, match.start(), cursor) or match
                    stop = match.end()
                self._inside(text, match, cursor)
            position = stop
            self._take(match)
            self._last = position
            if not self._frames:
                self.end, self.complete = position, True
                return
        if self.spot is None and cursor >= 0:
            self.spot = self._place("", cursor, "", False)

    def _inside(self, text: str, match: re.Match[str], cursor: int) -> None:
        if match["string"] is not None:
            closed = match["closed"] is not None or match["closed1"] is not None
            if not (closed and cursor == match.end()):
                self.spot = self._place(text[match.start() + 1 : cursor], match.start() + 1, match[0][0], closed)
        elif match.lastgroup == "bare":
            self.spot = self._place(text[match.start() : cursor], match.start(), "", False)
            if self.spot["kind"] is Kind.VALUE and cursor == match.end():
                self.spot["whole"] = match[0] in _BARE_VALUES or _NUMBER.fullmatch(match[0]) is not None

    def _place(self, word: str, start: int, quote: str, closed: bool) -> dict[str, Any]:
        if not self._frames:
            return {"kind": Kind.NOTHING, "path": ()}
        _, path, state, pending = self._frames[-1]
        behind = start + len(word) + closed
        common = {
            "word": word,
            "start": start,
            "quote": quote,
            "closed": closed,
            "json": True,
            "levels": tuple((frame[1], "}" if isinstance(frame[0], dict) else "]") for frame in self._frames),
            "behind": self._text[behind : self._limit].lstrip()[:1],
            "apart": self._text[behind : behind + 1].isspace(),
        }
        if state == "key":
            return {"kind": Kind.KEY, "path": path, **common}
        if state == "value":
            return {"kind": Kind.VALUE, "path": (*path, pending), **common}
        if common["behind"] == ("," if state == "comma" else ":") and not word:
            return {"kind": Kind.NOTHING, "path": ()}
        # The comma or colon goes where the last token ended, and the blanks behind it are written anew.
        common["gap"] = self._text[self._last : start - len(quote)]
        common["start"] = self._last
        return {"kind": Kind.NEXT if state == "comma" else Kind.COLON, "path": path, **common}

    def _take(self, match: re.Match[str]) -> None:
        if match["open"]:
            container: Any = {} if match["open"] == "{" else []
            path: tuple[str | int, ...] = ()
            if self._frames:
                frame = self._frames[-1]
                path = (*frame[1], frame[3])
                self._store(container)
            else:
                self.root = container
            is_object = isinstance(container, dict)
            self._frames.append([container, path, "key" if is_object else "value", None if is_object else 0])
        elif match["close"]:
            if self._frames:
                self._frames.pop()
        elif not self._frames:
            return
        elif match["colon"]:
            if self._frames[-1][2] == "colon":
                self._frames[-1][2] = "value"
        elif match["comma"]:
            frame = self._frames[-1]
            if isinstance(frame[0], dict):
                frame[2], frame[3] = "key", None
            else:
                frame[2], frame[3] = "value", len(frame[0])
        else:
            text = match[0]
            closed = match["closed"] or match["closed1"]
            value = text[1 : -1 if closed else None] if match["string"] else _BARE_VALUES.get(text, text)
            frame = self._frames[-1]
            if frame[2] == "key":
                frame[2], frame[3] = "colon", str(value)
            elif frame[2] == "value":
                self._store(value)

    def _store(self, value: Any) -> None:
        container, _, _, pending = self._frames[-1]
        if isinstance(container, dict):
            if pending is not None:
                container.setdefault(pending, value)
        else:
            container.append(value)
        self._frames[-1][2] = "comma"
