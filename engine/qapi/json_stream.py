"""A parser for streams of JSON values that outlives any bytes, for QMP connections and for single texts.

The language is QEMU's: values follow each other without separators, strings may stand in single quotes, and after
bytes that are no JSON the parser goes on at the next control character, bracket, colon or comma. A value that is all
of a line, as clients send it, takes a quick way through the standard library.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from engine.errors import GenericError
from engine.qapi.json_text import JSONParseError, dumps, read_number, read_string, read_word, shown

__all__ = ["MAX_NESTING", "MAX_TOKEN_COUNT", "MAX_TOKEN_SIZE", "JSONParseError", "JSONStream", "dumps", "from_json"]

MAX_TOKEN_SIZE: Final = 64 << 20
"""Bytes in the tokens of one value."""
MAX_TOKEN_COUNT: Final = 2 << 20
"""Tokens of one value."""
MAX_NESTING: Final = 1024
"""Objects and arrays open at once."""

# --- lexical rules ---------------------------------------------------------------------------------------------------

# What has been read of a token, between two bytes.
(
    _START,
    _RECOVERY,
    _WORD,
    _MINUS,
    _ZERO,
    _DIGITS,
    _POINT,
    _FRACTION,
    _E,
    _E_SIGN,
    _EXPONENT,
    _DOUBLE,
    _DOUBLE_ESCAPE,
    _SINGLE,
    _SINGLE_ESCAPE,
) = range(15)

# Steps that end a token. The last four end it before the byte, which is then looked at again.
_PUNCTUATION, _STRING, _STRAY, _INTEGER, _FLOAT, _KEYWORD, _RESYNC = range(-7, 0)

_Table = list[list[int]]


def _make_table() -> _Table:
    digits, lower, exponent = b"0123456789", bytes(range(0x61, 0x7B)), b"eE"
    controls = bytes([*range(0x20), 0xFE, 0xFF])
    punctuation = b"{}[]:,"

    def row(default: int, *groups: tuple[bytes, int]) -> list[int]:
        steps = [default] * 256
        for members, step in groups:
            for byte in members:
                steps[byte] = step
        return steps

    start = row(
        _STRAY,
        (b" \t\r\n", _START),
        (b'"', _DOUBLE),
        (b"'", _SINGLE),
        (b"-", _MINUS),
        (digits, _DIGITS),
        (b"0", _ZERO),
        (lower, _WORD),
        (punctuation, _PUNCTUATION),
    )
    return [
        start,
        row(_RECOVERY, (controls, _RESYNC), (b"\t", _RECOVERY), (punctuation, _RESYNC)),
        row(_KEYWORD, (lower, _WORD)),
        row(_STRAY, (digits, _DIGITS), (b"0", _ZERO)),
        row(_INTEGER, (digits, _STRAY), (b".", _POINT)),
        row(_INTEGER, (digits, _DIGITS), (b".", _POINT), (exponent, _E)),
        row(_STRAY, (digits, _FRACTION)),
        row(_FLOAT, (digits, _FRACTION), (exponent, _E)),
        row(_STRAY, (digits, _EXPONENT), (b"+-", _E_SIGN)),
        row(_STRAY, (digits, _EXPONENT)),
        row(_FLOAT, (digits, _EXPONENT)),
        row(_DOUBLE, (controls, _STRAY), (b"\\", _DOUBLE_ESCAPE), (b'"', _STRING)),
        row(_DOUBLE, (controls, _STRAY)),
        row(_SINGLE, (controls, _STRAY), (b"\\", _SINGLE_ESCAPE), (b"'", _STRING)),
        row(_SINGLE, (controls, _STRAY)),
    ]


_table: _Table = []

# Bytes that leave the state as it is, to be skipped at once.
_RUNS: Final = {
    _START: re.compile(rb"[ \t\r\n]+"),
    _RECOVERY: re.compile(rb"[^\x00-\x08\x0a-\x1f\xfe\xff{}\[\]:,]+"),
    _WORD: re.compile(rb"[a-z]+"),
    _DIGITS: re.compile(rb"[0-9]+"),
    _FRACTION: re.compile(rb"[0-9]+"),
    _EXPONENT: re.compile(rb"[0-9]+"),
    _DOUBLE: re.compile(rb'[^"\\\x00-\x1f\xfe\xff]*+(?:\\[\x20-\xfd][^"\\\x00-\x1f\xfe\xff]*+)*+'),
    _SINGLE: re.compile(rb"[^'\\\x00-\x1f\xfe\xff]*+(?:\\[\x20-\xfd][^'\\\x00-\x1f\xfe\xff]*+)*+"),
}

# A whole token that starts in the state _START and certainly ends here.
_TOKEN: Final = re.compile(
    rb"[ \t\r\n]*(?:"
    rb"([{}\[\]:,])"
    rb'|("[^"\\\x00-\x1f\xfe\xff]*+(?:\\[\x20-\xfd][^"\\\x00-\x1f\xfe\xff]*+)*+")'
    rb"|(-?(?:0|[1-9][0-9]*)(?=[^0-9.eE]))"
    rb"|([a-z]+(?=[^a-z]))"
    rb"|(-?(?:0|[1-9][0-9]*)\.[0-9]+(?=[^0-9eE]))"
    rb")"
)
_GROUPS: Final = (0, _PUNCTUATION, _STRING, _INTEGER, _KEYWORD, _FLOAT)

# What the standard library reads in another way than QEMU, or may.
_UNUSUAL: Final = re.compile(
    rb"\\u|[0-9]{19}|(?<![0-9.])0[eE]|\xef\xb7[\x90-\xaf]|\xef\xbf[\xbe\xbf]|[\x8f-\xbf]\xbf[\xbe\xbf]"
)
_PLAIN_LIMIT: Final = 1 << 20


class _NotPlain(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _NotPlain
    return result


def _constant(text: str) -> Any:
    raise _NotPlain


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant).decode


def _plain(line: bytes) -> dict[str, Any] | None:
    """Return the object that is all of *line*, or None when a closer look is needed."""
    line = line.strip(b" \t\r")
    if not line.startswith(b"{") or not line.endswith(b"}") or len(line) > _PLAIN_LIMIT or _UNUSUAL.search(line):
        return None
    if line.count(b"{") + line.count(b"[") > MAX_NESTING:
        return None
    try:
        value: dict[str, Any] = _decode(line.decode())
    except (ValueError, RecursionError, _NotPlain):
        return None
    return value


# --- syntax ----------------------------------------------------------------------------------------------------------

# What the innermost open object or array waits for.
_VALUE, _FIRST_ELEMENT, _ELEMENT, _AFTER_ELEMENT, _FIRST_KEY, _KEY, _COLON, _MEMBER, _AFTER_MEMBER = range(9)

_NOTHING: Final = object()


class _Assembler:
    """Builds one value from tokens. After a fault the rest of the value, up to its last bracket, is passed over."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.count = 0
        self._size = 0
        self._braces = 0
        self._brackets = 0
        self._fault: JSONParseError | None = None
        self._waits = _VALUE
        self._container: Any = None
        self._key = ""
        self._outer: list[tuple[int, Any, str]] = []
        self._value: Any = None

    def fail(self, text: str) -> JSONParseError:
        """Drop the value and return the fault to be told."""
        self._reset()
        return JSONParseError(text)

    def end_of_input(self) -> Any:
        """Return the fault of a value that ends too soon, or _NOTHING between values."""
        if not self.count:
            return _NOTHING
        fault = self._fault
        self._reset()
        return fault or JSONParseError("JSON parse error, premature EOI")

    def token(self, kind: int, text: bytes) -> Any:
        """Take a token; return the value or the fault when it was the last one, else _NOTHING."""
        if kind == _PUNCTUATION:
            if text == b"{":
                self._braces += 1
            elif text == b"}":
                self._braces -= 1
            elif text == b"[":
                self._brackets += 1
            elif text == b"]":
                self._brackets -= 1
        elif kind == _STRAY:
            return self.fail(f"JSON parse error, stray '{shown(text)}'")
        if self._size + len(text) >= MAX_TOKEN_SIZE:
            return self.fail("JSON token size limit exceeded")
        if self.count >= MAX_TOKEN_COUNT:
            return self.fail("JSON token count limit exceeded")
        if self._braces + self._brackets > MAX_NESTING:
            return self.fail("JSON nesting depth limit exceeded")
        self._size += len(text)
        self.count += 1
        if self._fault is None:
            try:
                if kind == _PUNCTUATION:
                    self._punctuation(text)
                else:
                    self._scalar(kind, text)
            except JSONParseError as exc:
                self._fault = exc
        if self._braces >= 0 and self._brackets >= 0 and (self._braces or self._brackets):
            return _NOTHING
        result = self._fault or self._value
        self._reset()
        return result

    def _scalar(self, kind: int, text: bytes) -> None:
        self._before_value()
        if kind == _STRING:
            self._deliver(read_string(text))
        elif kind == _KEYWORD:
            self._deliver(read_word(text))
        else:
            self._deliver(read_number(text, kind == _INTEGER))

    def _before_value(self) -> None:
        waits = self._waits
        if waits == _COLON:
            raise JSONParseError("JSON parse error, missing : in object pair")
        if waits == _AFTER_ELEMENT:
            raise JSONParseError("JSON parse error, expected separator in list")
        if waits == _AFTER_MEMBER:
            raise JSONParseError("JSON parse error, expected separator in dict")

    def _punctuation(self, text: bytes) -> None:
        waits = self._waits
        if text == b":" and waits == _COLON:
            self._waits = _MEMBER
        elif text == b"," and waits == _AFTER_ELEMENT:
            self._waits = _ELEMENT
        elif text == b"," and waits == _AFTER_MEMBER:
            self._waits = _KEY
        elif (text == b"]" and waits in (_FIRST_ELEMENT, _AFTER_ELEMENT)) or (
            text == b"}" and waits in (_FIRST_KEY, _AFTER_MEMBER)
        ):
            closed = self._container
            self._waits, self._container, self._key = self._outer.pop()
            self._deliver(closed)
        else:
            self._before_value()
            if text == b"{":
                self._open({}, _FIRST_KEY)
            elif text == b"[":
                self._open([], _FIRST_ELEMENT)
            else:
                raise JSONParseError("JSON parse error, expecting value")

    def _open(self, container: Any, waits: int) -> None:
        self._outer.append((self._waits, self._container, self._key))
        self._container = container
        self._waits = waits

    def _deliver(self, value: Any) -> None:
        waits = self._waits
        if waits == _MEMBER:
            if self._key in self._container:
                raise JSONParseError("JSON parse error, duplicate key")
            self._container[self._key] = value
            self._waits = _AFTER_MEMBER
        elif waits == _VALUE:
            self._value = value
        elif waits in (_FIRST_KEY, _KEY):
            if not isinstance(value, str):
                raise JSONParseError("JSON parse error, key is not a string in object")
            self._key = value
            self._waits = _COLON
        else:
            self._container.append(value)
            self._waits = _AFTER_ELEMENT


class JSONStream:
    """Parses JSON values from bytes that come in any pieces."""

    def __init__(self) -> None:
        if not _table:
            _table.extend(_make_table())
        self._state = _START
        self._parts: list[bytes] = []  # of the token begun in earlier pieces
        self._begun = 0  # their length
        self._assembler = _Assembler()

    @property
    def idle(self) -> bool:
        """Whether no value is begun."""
        return self._state == _START and not self._assembler.count

    def feed(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """Take more bytes; return the values that are complete now, a ``JSONParseError`` for each fault."""
        data = bytes(data)
        found: list[Any] = []
        at = 0
        end = len(data)
        while at < end:
            newline = data.find(b"\n", at)
            stop = end if newline < 0 else newline + 1
            if self._state == _START and not self._assembler.count:
                value = _plain(data[at:stop].rstrip(b"\n"))
                if value is not None:
                    found.append(value)
                    at = stop
                    continue
            self._lex(data, at, stop, found)
            at = stop
        return found

    def flush(self) -> list[Any]:
        """The input has ended: return what is left to tell, and start afresh."""
        found: list[Any] = []
        step = _table[self._state][0]
        text = b"".join(self._parts)
        if self._state != _START and step != _RESYNC:
            result = self._assembler.token(step, text)
            if result is not _NOTHING:
                found.append(result)
        self._state = _START
        self._parts.clear()
        self._begun = 0
        result = self._assembler.end_of_input()
        if result is not _NOTHING:
            found.append(result)
        return found

    def _lex(self, data: bytes, at: int, stop: int, found: list[Any]) -> None:
        """Read data[at:stop] as tokens."""
        take = self._assembler.token
        match_token = _TOKEN.match
        state = self._state
        start = at  # of the part of the token that is in data
        while at < stop:
            if state == _START:
                match = match_token(data, at, stop)
                if match is not None and match.end() - at <= MAX_TOKEN_SIZE:
                    at = start = match.end()
                    group = match.lastindex or 0
                    result = take(_GROUPS[group], match[group])
                    if result is not _NOTHING:
                        found.append(result)
                    continue
            run = _RUNS.get(state)
            skipped = run.match(data, at, stop) if run is not None else None
            if skipped is not None and skipped.end() > at:
                at = skipped.end()
                if state <= _RECOVERY:
                    start = at
                elif self._begun + at - start > MAX_TOKEN_SIZE:
                    # The token ends where it got too long, whatever it was.
                    at = start = start + MAX_TOKEN_SIZE + 1 - self._begun
                    self._forget()
                    state = _START
                    found.append(self._assembler.fail("JSON token size limit exceeded"))
                continue
            step = _table[state][data[at]]
            if step >= 0:
                if state == _START:
                    start = at
                at += 1
                state = step
                continue
            if step == _RESYNC:
                state = _START
                start = at
                continue
            if step <= _STRAY:
                at += 1
            text = b"".join((*self._parts, data[start:at]))
            self._forget()
            start = at
            state = _RECOVERY if step == _STRAY else _START
            result = take(step, text)
            if result is not _NOTHING:
                found.append(result)
        self._state = state
        if state > _RECOVERY and start < stop:
            self._parts.append(data[start:stop])
            self._begun += stop - start

    def _forget(self) -> None:
        self._parts.clear()
        self._begun = 0


def from_json(text: str) -> Any:
    """Return the one JSON value that *text* holds, by the rules of QEMU's parser. Raises GenericError."""
    stream = JSONStream()
    found = stream.feed(text.encode("utf-8", "surrogateescape"))
    found += stream.flush()
    if not found:
        raise GenericError("Expecting a JSON value")
    if isinstance(found[0], JSONParseError):
        raise found[0]
    if len(found) > 1:
        raise GenericError("Expecting at most one JSON value")
    return found[0]
