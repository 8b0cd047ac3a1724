"""JSON as people type it at a monitor: over several lines, and with strings in single quotes too, as QEMU allows."""

import json
import re
from typing import Any

from blockmon.lang.errors import ParseError

_ESCAPE_OR_QUOTE = re.compile(r'\\.|"')
_REQUOTED = {"\\'": "'", '"': '\\"'}
_CLOSES = {"{": "}", "[": "]"}

MAX_NESTING = 1024  # as QEMU's parser


def find_end(text: str, start: int) -> int | None:
    """Return the offset just behind the object or list that opens at *start*, or None when it is still open."""
    stack: list[str] = []
    position, size = start, len(text)
    while position < size:
        char = text[position]
        if char in "\"'":
            position = _string_end(text, position)
            if not stack:
                return position
            continue
        if char in _CLOSES:
            stack.append(_CLOSES[char])
            if len(stack) > MAX_NESTING:
                raise ParseError.at("JSON nesting too deep", text, position)
        elif char in "}]":
            if stack[-1] != char:
                raise ParseError.at(f"invalid JSON: expected '{stack[-1]}', found '{char}'", text, position)
            stack.pop()
            if not stack:
                return position + 1
        position += 1
    return None


def _string_end(text: str, start: int) -> int:
    quote, position = text[start], start + 1
    while position < len(text) and text[position] != "\n":
        if text[position] == "\\":
            position += 2
        elif text[position] == quote:
            return position + 1
        else:
            position += 1
    # A string cannot hold a line break, so reading on would only move the error away from its place.
    raise ParseError.at("invalid JSON: the string that begins here does not end", text, start)


def _with_double_quotes(source: str) -> str:
    """Rewrite single-quoted strings as double-quoted ones, of the same length where nothing needs escaping."""
    if "'" not in source:
        return source
    parts: list[str] = []
    position, done = 0, 0
    while position < len(source):
        char = source[position]
        if char not in "\"'":
            position += 1
            continue
        end = _string_end(source, position)
        if char == "'":
            inner = _ESCAPE_OR_QUOTE.sub(lambda m: _REQUOTED.get(m[0], m[0]), source[position + 1 : end - 1])
            parts += [source[done:position], '"', inner, '"']
            done = end
        position = end
    parts.append(source[done:])
    return "".join(parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key '{key}'")
            seen.add(key)
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"'{name}' is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def parse(text: str, start: int, end: int) -> Any:
    """Parse the JSON value in text[start:end]; errors carry their place in *text*."""
    source = _with_double_quotes(text[start:end])
    try:
        return _decoder.decode(source)
    except json.JSONDecodeError as error:
        raise ParseError.at(f"invalid JSON: {error.msg}", text, min(start + error.pos, end)) from None
    except RecursionError:
        raise ParseError.at("JSON nesting too deep", text, start) from None
    except ValueError as error:
        raise ParseError.at(f"invalid JSON: {error}", text, start) from None
