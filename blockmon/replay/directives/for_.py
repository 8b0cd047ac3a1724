"""@for: the lines up to @end once for each of some values."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockmon.lang.shell_line import parse_value
from blockmon.replay.directives import Action, Call, directive, unquote
from blockmon.replay.variables import is_name

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")


@directive("for", "NAME in VALUE ... (a value may be FIRST..LAST, or a JSON list)", checked=True)
def for_(call: Call) -> Action:
    """Run the statements up to @end with ${NAME} being each value in turn: a word, the numbers from FIRST to LAST, or
    what a JSON list has (as @let gives it)."""
    words = call.words()
    if len(words) < 2 or words[1].value != "in" or any(word.key for word in words[:2]):
        raise call.usage()
    name = words[0].value
    if not is_name(name):
        raise call.error(f"'{name}' is no variable's name", words[0].offset)
    values = [
        call.text[word.offset : word.offset + len(word.key) + 1] + word.value if word.key else word.value
        for word in words[2:]
    ]
    lists = [parse_value(value, None) if value.startswith("[") else None for value in values]

    def each() -> Iterator[str]:
        for value, items in zip(values, lists, strict=True):
            if items is not None:
                yield from (item if isinstance(item, str) else json.dumps(item) for item in items)
            elif match := _RANGE.fullmatch(value):
                yield from map(str, range(int(match[1]), int(match[2]) + 1))
            else:
                yield unquote(value)

    async def act(runner: "Runner") -> None:
        await runner.loop(call.statement, ({name: value} for value in each()))

    return act
