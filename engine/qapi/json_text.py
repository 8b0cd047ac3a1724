"""The scalars of JSON as QEMU reads them, and JSON text as QEMU writes it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from engine.errors import GenericError


class JSONParseError(GenericError):
    """The input is no JSON (``JSON parse error, ...``), or too much of it."""


# --- reading ---------------------------------------------------------------------------------------------------------

_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_SIMPLE: Final = {
    b'"': '"',
    b"'": "'",
    b"\\": "\\",
    b"/": "/",
    b"b": "\b",
    b"f": "\f",
    b"n": "\n",
    b"r": "\r",
    b"t": "\t",
}
_HEX4: Final = re.compile(rb"[0-9a-fA-F]{4}")
# Code points that Unicode sets apart from characters, for ever.
_NONCHARACTER: Final = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)) + "]"
)


def shown(text: bytes) -> str:
    """Return *text* as error texts show it: up to the first NUL, bad UTF-8 replaced."""
    return text.partition(b"\0")[0].replace(b"\xc0\x80", b"\0").decode("utf-8", "replace")


def _decode(text: bytes) -> str:
    # NUL may come as the overlong sequence that QEMU uses for it inside.
    try:
        decoded = text.replace(b"\xc0\x80", b"\0").decode()
    except UnicodeDecodeError:
        raise JSONParseError("JSON parse error, invalid UTF-8 sequence in string") from None
    if not decoded.isascii() and _NONCHARACTER.search(decoded):
        raise JSONParseError("JSON parse error, invalid UTF-8 sequence in string")
    return decoded


def read_string(token: bytes) -> str:
    """Return the string that *token*, with its quotes, stands for. Raises JSONParseError."""
    body = token[1:-1]
    if b"\\" not in body:
        return _decode(body)
    pieces: list[str] = []
    at = 0
    while (match := _ESCAPE.search(body, at)) is not None:
        pieces.append(_decode(body[at : match.start()]))
        at = match.end()
        if match[1] == b"u":
            character, at = _code_point(token, at + 1)
            pieces.append(character)
            at -= 1
        else:
            simple = _SIMPLE.get(match[1])
            if simple is None:
                raise JSONParseError("JSON parse error, invalid escape sequence in string")
            pieces.append(simple)
    pieces.append(_decode(body[at:]))
    return "".join(pieces)


def _code_point(token: bytes, at: int) -> tuple[str, int]:
    """Read the digits of a ``\\u`` escape at *at*, and those of a second one where they are a surrogate pair."""
    begin = at - 2
    match = _HEX4.match(token, at)
    code = int(match[0], 16) if match else -1
    at += 4
    if 0xD800 <= code <= 0xDBFF and token[at : at + 2] == b"\\u":
        trailing = _HEX4.match(token, at + 2)
        low = int(trailing[0], 16) if trailing else 0
        if 0xDC00 <= low <= 0xDFFF:
            code = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF)
            at += 6
    if code < 0 or 0xD800 <= code <= 0xDFFF or _NONCHARACTER.match(chr(code)):
        raise JSONParseError(f"JSON parse error, {shown(token[begin:at])} is not a valid Unicode character")
    return chr(code), at


def read_number(token: bytes, integer: bool) -> int | float:
    """Return the number *token*; integers beyond 64 bits turn into floating point, as in QEMU."""
    if integer and len(token) <= 20:
        number = int(token)
        if -(1 << 63) <= number < 1 << 64:
            return number
    return float(token)


_WORDS: Final = {b"true": True, b"false": False, b"null": None}


def read_word(token: bytes) -> bool | None:
    """Return what the keyword *token* stands for. Raises JSONParseError."""
    try:
        return _WORDS[token]
    except KeyError:
        raise JSONParseError(f"JSON parse error, invalid keyword '{shown(token)}'") from None


# --- writing ---------------------------------------------------------------------------------------------------------

# Numbers that are no integers, wherever a number may stand. Three patterns, as each begins with letters that the search
# can skip to; the bigger part of an answer is looked at ten times as fast that way.
_FLOATS: Final = tuple(re.compile(start + r"-?[0-9]+[.e]") for start in (": ", ", ", r"\["))
_FLOAT_ALONE: Final = re.compile(r"-?[0-9]+[.e]")
_encode = json.JSONEncoder(check_circular=False).encode
_NEEDS_ESCAPE: Final = re.compile(r"[^ !#-\[\]-~]")
_ESCAPES: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    found = _ESCAPES.get(character)
    if found is not None:
        return found
    code = ord(character)
    # Bytes of a file name that are no UTF-8, and code points that are no characters.
    if 0xD800 <= code <= 0xDFFF or _NONCHARACTER.match(character):
        code = 0xFFFD
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 | code >> 10:04X}\\u{0xDC00 | code & 0x3FF:04X}"
    return f"\\u{code:04X}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return '"' + _NEEDS_ESCAPE.sub(_escape, value) + '"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return f"{value:.17g}"
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _write(value: Any, pretty: bool) -> str:
    """Write *value* without recursion, so that anything that could be read can be written."""
    out: list[str] = []
    comma = "," if pretty else ", "
    # Open containers: the items still to come, the closing bracket, whether none has been written.
    pending: list[tuple[Any, str, bool]] = []
    current: Any = value
    have = True
    while True:
        if have:
            if isinstance(current, dict):
                out.append("{")
                pending.append((iter(current.items()), "}", True))
            elif isinstance(current, (list, tuple)):
                out.append("[")
                pending.append((iter(current), "]", True))
            else:
                out.append(_scalar(current))
            have = False
            continue
        if not pending:
            return "".join(out)
        items, close, first = pending[-1]
        try:
            item = next(items)
        except StopIteration:
            pending.pop()
            if pretty:
                out.append("\n" + "    " * len(pending))
            out.append(close)
            continue
        if not first:
            out.append(comma)
        else:
            pending[-1] = (items, close, False)
        if pretty:
            out.append("\n" + "    " * len(pending))
        if close == "}":
            key, current = item
            out.append(_scalar(str(key)) + ": ")
        else:
            current = item
        have = True


def _differs(text: str) -> bool:
    """Whether the standard library's text may differ from QEMU's: escapes in lower case, DEL, no integers."""
    if "\\u" in text or "\x7f" in text or "Infinity" in text or "NaN" in text:
        return True
    return _FLOAT_ALONE.match(text) is not None or any(pattern.search(text) is not None for pattern in _FLOATS)


def dumps(value: Any, *, pretty: bool = False) -> str:
    """Return *value* as JSON text in ASCII, one line, or with pretty indented by 4 spaces (lines end in ``\\n``)."""
    if not pretty:
        try:
            text = _encode(value)
        except RecursionError:
            return _write(value, False)
        if not _differs(text):
            return text
    return _write(value, pretty)
