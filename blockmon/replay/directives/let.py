"""@let: keep something of the last answer in a variable."""

import json
from typing import TYPE_CHECKING

from blockmon.lang.answer_path import AnswerError, parse_path
from blockmon.replay.directives import Action, Call, directive
from blockmon.replay.errors import StatementFailed
from blockmon.replay.variables import UNKNOWN, is_name

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("let", "NAME = $.PATH", checked=True)
def let(call: Call) -> Action:
    """${NAME} is what stands at PATH in the last answer: a string's text, anything else as JSON."""
    rest, begin = call.rest
    name, equals, _ = rest.partition("=")
    if not equals:
        raise call.usage()
    if not is_name(name.rstrip()):
        raise call.error(f"'{name.rstrip()}' is no variable's name", begin)
    start = len(name) + 1
    start += len(rest[start:]) - len(rest[start:].lstrip())
    path, end = parse_path(call.text, begin + start)
    if call.text[end:].strip():
        raise call.error("unexpected text behind the path", end)

    async def act(runner: "Runner") -> None:
        if runner.dry:
            runner.variables[name.rstrip()] = UNKNOWN
            return
        try:
            value = path.of(runner.answer())
        except AnswerError as error:
            raise StatementFailed(str(error)) from None
        runner.variables[name.rstrip()] = value if isinstance(value, str) else json.dumps(value)

    return act
