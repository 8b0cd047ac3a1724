"""$.PATH: a place in an answer.

`$` is the answer itself; `.name` and `["any name"]` a member; `[0]` and `[-1]` an element; `[?name==value]` the first
element whose member (dotted names reach inside) is that value; `.length()` at the end how many elements, members or
characters there are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockmon.lang import ParseError
from blockmon.lang.shell_line import parse_value

_MEMBER = re.compile(r"\.([\w-]+)")
_INDEX = re.compile(r"\[\s*(-?\d+)\s*\]")
_QUOTED = re.compile(r"""\[\s*("(?:[^"\\]|\\.)*"|'[^']*')\s*\]""")
_FILTER = re.compile(r"""\[\s*\?\s*([\w.-]+)\s*==\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\]\s]+)\s*\]""")
_LENGTH = ".length()"


class NothingThere(Exception):
    """An answer has nothing at a path; the text says from where on."""


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path."""

    text: str
    steps: tuple[Callable[[Any], Any], ...]
    ends: tuple[int, ...]
    """Where each step ends in `text`, for telling how far it led."""

    def of(self, answer: Any) -> Any:
        """What stands there in *answer*. Raises NothingThere."""
        done = 1
        for step, end in zip(self.steps, self.ends, strict=True):
            try:
                answer = step(answer)
            except (LookupError, TypeError):
                raise NothingThere(f"there is no {self.text[done:end]} in {self.text[:done]}") from None
            done = end
        return answer


def parse_path(text: str, start: int) -> tuple[Path, int]:
    """Read a path at offset *start* of *text*; returns it and the offset behind it. Raises ParseError."""
    if not text.startswith("$", start):
        raise ParseError.at("expected a path such as $.member[0]", text, start)
    position = start + 1
    steps: list[Callable[[Any], Any]] = []
    ends: list[int] = []
    while position < len(text) and text[position] in ".[":
        step, end = _step(text, position)
        steps.append(step)
        ends.append(end - start)
        position = end
    return Path(text[start:position], tuple(steps), tuple(ends)), position


def _step(text: str, position: int) -> tuple[Callable[[Any], Any], int]:
    if text.startswith(_LENGTH, position):
        return len, position + len(_LENGTH)
    if match := _MEMBER.match(text, position):
        return _member(match[1]), match.end()
    if match := _INDEX.match(text, position):
        return _element(int(match[1])), match.end()
    if match := _QUOTED.match(text, position):
        return _member(str(parse_value(match[1], None))), match.end()
    if match := _FILTER.match(text, position):
        return _first_with(match[1].split("."), match[2]), match.end()
    what = "a member's name" if text[position] == "." else '[INDEX], ["NAME"] or [?NAME==VALUE]'
    raise ParseError.at(f"expected {what}", text, position)


def _member(name: str) -> Callable[[Any], Any]:
    def get(value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError
        return value[name]

    return get


def _element(index: int) -> Callable[[Any], Any]:
    def get(value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError
        return value[index]

    return get


def _first_with(names: list[str], wanted: str) -> Callable[[Any], Any]:
    def has(item: Any) -> bool:
        for name in names:
            if not isinstance(item, dict) or name not in item:
                return False
            item = item[name]
        return same(item, wanted)

    def get(value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError
        return next(item for item in value if has(item)) if any(map(has, value)) else value[len(value)]

    return get


def read_value(text: str) -> Any:
    """A value as directives write it: JSON, text in quotes, or a bare word (null, true, an integer, else text)."""
    return None if text == "null" else parse_value(text, None)


def same(value: Any, text: str) -> bool:
    """Whether *value* of an answer is what *text* writes. A string equals its bare text, whatever that looks like."""
    if isinstance(value, str) and text[:1] not in ("{", "["):
        return value == (str(parse_value(text, None)) if text[:1] in ('"', "'") else text)
    wanted = read_value(text)
    return _equal(value, wanted)


def _equal(value: Any, wanted: Any) -> bool:
    # In Python True == 1; in JSON it is not, but 1 is 1.0.
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_equal(value[key], wanted[key]) for key in value)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    return bool(value == wanted)
