"""`$_`: the last answer as a value in a later command, with a path into it: `$_[0].node-name`, `$_["a b"]`, `$_.0`.

A value that is nothing but such a reference becomes what it refers to, of whatever type. `$$_` stands for the text
`$_`. In an HMP line each word that is one is replaced by its text.
"""

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z_][\w-]*) | \.(?P<number>\d+) | \[(?P<index>-?\d+)\] | \["(?P<quoted>[^"]*)"\]""",
    re.VERBOSE,
)
_BEGINS = re.compile(r"\$_(?=$|[.\[])")
_WORD = re.compile(r"(?<!\S)\$_(?:[.\[]\S*)?(?!\S)|(?<!\S)\$(?=\$_)")

Answer = Callable[[], Any]


class AnswerError(ValueError):
    """A reference that leads nowhere; the text says at which step, and what there is."""


def resolve(reference: str, answer: Any) -> Any:
    """Return what *reference*, `$_` with a path, stands for in *answer*. Raises AnswerError."""
    position, value = 2, answer
    while position < len(reference):
        step = _STEP.match(reference, position)
        if step is None:
            raise AnswerError(f"{reference}: '{reference[position:]}' is no path; write .name or [number]")
        here = reference[:position]
        number = step["number"] or step["index"]
        if number is None:
            value = _member(value, step["name"] if step["name"] is not None else step["quoted"], here)
        elif isinstance(value, dict):
            value = _member(value, number, here)
        else:
            value = _element(value, int(number), here)
        position = step.end()
    return value


def _member(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise AnswerError(f"{where} is {_kind(value)}: it has no member '{name}'")
    if name in value:
        return value[name]
    nearest = difflib.get_close_matches(name, [str(key) for key in value], 1, 0.6)
    if nearest:
        raise AnswerError(f"{where} has no member '{name}'; did you mean '{nearest[0]}'?")
    names = ", ".join(str(key) for key in list(value)[:12])
    raise AnswerError(f"{where} has no member '{name}'" + (f"; it has {names}" if names else ""))


def _element(value: Any, index: int, where: str) -> Any:
    if not isinstance(value, list):
        raise AnswerError(f"{where} is {_kind(value)}: it has no element [{index}]")
    if not -len(value) <= index < len(value):
        size = f"{len(value)} element{'' if len(value) == 1 else 's'}" if value else "no elements"
        raise AnswerError(f"{where} has {size}, so there is no [{index}]")
    return value[index]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "text" if isinstance(value, str) else "a number"


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
