"""@expect: compare something of the last answer."""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockmon.lang import ParseError, parse_size
from blockmon.lang.answer_path import AnswerError, parse_path
from blockmon.lang.patterns import PatternError, compile_pattern
from blockmon.lang.values import read_value, same
from blockmon.replay.directives import Action, Call, directive, known
from blockmon.replay.errors import StatementFailed

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

_OPERATOR = re.compile(r"\s*(==|!=|~|<|>)(?![=~<>!])\s*")


@directive("expect", "$.PATH ==|!=|~|<|> VALUE")
def expect(call: Call) -> Action:
    """What stands at PATH in the last answer equals VALUE or not, has a match of the regular expression, is less or
    greater. Where there is nothing, only `== null` is true."""
    rest, begin = call.rest
    if not rest:
        raise call.usage()
    path, end = parse_path(call.text, begin)
    match = _OPERATOR.match(call.text, end)
    if match is None:
        raise call.usage()
    text = call.text[match.end() :].strip()
    if not text:
        raise call.usage()
    try:
        holds = _test(match[1], text)
    except ParseError as error:
        raise call.error(error.message, match.end()) from None

    async def act(runner: "Runner") -> None:
        try:
            value = path.of(runner.answer())
        except AnswerError as error:
            if (match[1], text) == ("==", "null"):
                return
            raise StatementFailed(f"{error}, expected {path.text} {match[1]} {text}") from None
        if not holds(value):
            raise StatementFailed(f"{path.text} is {_short(value)}, expected {match[1]} {text}")

    return act


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _test(operator: str, text: str) -> Callable[[Any], bool]:
    if operator == "~":
        pattern = _regex(text)
        return lambda value: pattern.search(value if isinstance(value, str) else json.dumps(value)) is not None
    if operator in ("==", "!="):
        read_value(text)
        return (lambda value: same(value, text)) if operator == "==" else (lambda value: not same(value, text))
    limit = _number(text)

    def compare(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise StatementFailed(f"{_short(value)} is no number, expected {operator} {text}")
        return value < limit if operator == "<" else value > limit

    return compare


def _regex(text: str) -> "re.Pattern[str]":
    if len(text) > 1 and text[0] == text[-1] == "/":
        text = text[1:-1].replace("\\/", "/")
    try:
        return compile_pattern(text)
    except PatternError as error:
        raise ParseError(str(error)) from None


def _number(text: str) -> float:
    if not known(text):
        return 0
    size = parse_size(text)
    if size is not None:
        return size
    try:
        return float(text)
    except ValueError:
        raise ParseError(f"'{text}' is no number") from None
