"""Places in an answer: `$.node-name`, `$[0]["a b"]` in command files, `$_[0].node-name` at the prompt.

`.name` and `["any name"]` are a member; `[0]`, `[-1]` and `.0` an element; `[?name==value]` the first element whose
member (dotted names reach inside) is that value; `.length()` at the end how many elements, members or characters there
are.

At the prompt an argument that is nothing but such a reference becomes what it refers to, of whatever type; `$$_` stands
for the text `$_`. In an HMP line each word that is one is replaced by its text.
"""

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockmon.lang.errors import ParseError
from blockmon.lang.shell_line import parse_value
from blockmon.lang.values import same

_MEMBER = re.compile(r"\.([\w-]+)")
_INDEX = re.compile(r"\[\s*(-?\d+)\s*\]")
_QUOTED = re.compile(r"""\[\s*("(?:[^"\\]|\\.)*"|'[^']*')\s*\]""")
_FILTER = re.compile(r"""\[\s*\?\s*([\w.-]+)\s*==\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\]\s]+)\s*\]""")
_LENGTH = ".length()"
_NAMED = 6
"""Members that are named where there is none of the name asked for."""
_LAST = "$_"
_BEGINS = re.compile(r"\$_(?=$|[.\[])")
_WORD = re.compile(r"(?<!\S)\$_(?:[.\[]\S*)?(?!\S)|(?<!\S)\$(?=\$_)")

Answer = Callable[[], Any]
Step = Callable[[Any, str], Any]
"""(value, the path so far) → what the step leads to. Raises AnswerError."""


class AnswerError(ValueError):
    """A path that leads nowhere in an answer; the text says at which step, and what there is."""


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path."""

    text: str
    steps: tuple[Step, ...]
    begins: tuple[int, ...]
    """Where each step begins in `text`, for telling how far it led."""

    def of(self, answer: Any) -> Any:
        """What stands there in *answer*. Raises AnswerError."""
        for step, begin in zip(self.steps, self.begins, strict=True):
            answer = step(answer, self.text[:begin])
        return answer


def parse_path(text: str, start: int, root: str = "$") -> tuple[Path, int]:
    """Read a path at offset *start* of *text*; returns it and the offset behind it. Raises ParseError."""
    if not text.startswith(root, start):
        raise ParseError.at(f"expected a path such as {root}.member[0]", text, start)
    position = start + len(root)
    steps: list[Step] = []
    begins: list[int] = []
    while position < len(text) and text[position] in ".[":
        begins.append(position - start)
        step, position = _step(text, position)
        steps.append(step)
    return Path(text[start:position], tuple(steps), tuple(begins)), position


def begins_reference(text: str) -> bool:
    """Whether *text* begins as a reference does: `$_`, and behind it its end or a step."""
    return _BEGINS.match(text) is not None


def resolve(reference: str, answer: Any) -> Any:
    """Return what *reference*, `$_` with a path, stands for in *answer*. Raises AnswerError."""
    try:
        path, end = parse_path(reference, 0, _LAST)
    except ParseError as error:
        raise AnswerError(f"{reference}: {error.message}") from None
    if end < len(reference):
        raise AnswerError(f"{reference}: '{reference[end:]}' is no path; write .name or [number]")
    return path.of(answer)


# -- steps -----------------------------------------------------------------------------------------------------------


def _step(text: str, position: int) -> tuple[Step, int]:
    if text.startswith(_LENGTH, position):
        return _length, position + len(_LENGTH)
    if match := _MEMBER.match(text, position):
        return _member(match[1]), match.end()
    if match := _INDEX.match(text, position):
        return _element(int(match[1])), match.end()
    if match := _QUOTED.match(text, position):
        return _member(str(parse_value(match[1], None))), match.end()
    if match := _FILTER.match(text, position):
        return _first_with(match[1], match[2]), match.end()
    what = "a member's name" if text[position] == "." else '[INDEX], ["NAME"] or [?NAME==VALUE]'
    raise ParseError.at(f"expected {what}", text, position)


def _length(value: Any, where: str) -> Any:
    if not isinstance(value, (dict, list, str)):
        raise AnswerError(f"{where} is {_kind(value)}: it has no length")
    return len(value)


def _member(name: str) -> Step:
    def get(value: Any, where: str) -> Any:
        if isinstance(value, list) and name.isdecimal():
            return _element(int(name))(value, where)
        if not isinstance(value, dict):
            raise AnswerError(f"{where} is {_kind(value)}: it has no member '{name}'")
        if name in value:
            return value[name]
        nearest = difflib.get_close_matches(name, [str(key) for key in value], 1, 0.6)
        if nearest:
            raise AnswerError(f"{where} has no member '{name}'; did you mean '{nearest[0]}'?")
        names = ", ".join([*map(str, list(value)[:_NAMED]), *(["…"] if len(value) > _NAMED else [])])
        raise AnswerError(f"{where} has no member '{name}'" + (f" ({names})" if names else ""))

    return get


def _element(index: int) -> Step:
    def get(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise AnswerError(f"{where} is {_kind(value)}: it has no element [{index}]")
        if not -len(value) <= index < len(value):
            size = f"{len(value)} element{'' if len(value) == 1 else 's'}" if value else "no elements"
            raise AnswerError(f"{where} has {size}, so there is no [{index}]")
        return value[index]

    return get


def _first_with(dotted: str, wanted: str) -> Step:
    def has(item: Any) -> bool:
        for name in dotted.split("."):
            if not isinstance(item, dict) or name not in item:
                return False
            item = item[name]
        return same(item, wanted)

    def get(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise AnswerError(f"{where} is {_kind(value)}: it has no elements")
        for item in value:
            if has(item):
                return item
        raise AnswerError(f"{where} has no element whose {dotted} is {wanted}")

    return get


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "text" if isinstance(value, str) else "a number"


# -- at the prompt ---------------------------------------------------------------------------------------------------


def substitute(value: Any, answer: Answer) -> Any:
    """Return *value*, the arguments of a command, with every reference in it replaced.

    *answer* is called when there is one. Raises AnswerError, also what *answer* raises.
    """
    if isinstance(value, dict):
        return {key: substitute(item, answer) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, answer) for item in value]
    if isinstance(value, str):
        if value.startswith("$$_"):
            return value[1:]
        if _BEGINS.match(value):
            return resolve(value, answer())
    return value


def substitute_words(line: str, answer: Answer) -> str:
    """Return *line*, an HMP command, with every word that is a reference replaced. Raises AnswerError."""

    def text_of(match: re.Match[str]) -> str:
        if match[0] == "$":
            return ""
        value = resolve(match[0], answer())
        if isinstance(value, (dict, list)):
            raise AnswerError(f"{match[0]} is {_kind(value)}; an HMP command takes a text or a number")
        return value if isinstance(value, str) else json.dumps(value)

    return _WORD.sub(text_of, line)
