"""@wait-event: go on when an event has come."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blockmon.lang.shell_line import parse_value
from blockmon.replay.directives import Action, Word, directive, take_timeout, unquote, usage_error
from blockmon.replay.errors import StatementFailed

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

DEFAULT_TIMEOUT = 60.0  # seconds; nothing else would end the wait for an event that never comes


def _value_at(data: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(data, Mapping) or step not in data:
            return _ABSENT
        data = data[step]
    return data


_ABSENT = object()


def _is(value: Any, text: str) -> bool:
    if value is _ABSENT:
        return False
    if isinstance(value, str):
        return value == unquote(text)
    wanted = None if text == "null" else parse_value(text, None)
    # In Python True == 1; in JSON it is not.
    return type(value) is type(wanted) and bool(value == wanted)


@directive("wait-event", "NAME [FIELD=VALUE ...] [timeout=60s]")
def wait_event(text: str, words: list[Word]) -> Action:
    """Wait for the event NAME whose data has the given values (dotted keys reach inside); counts what came since the
    last command was sent, and each event once."""
    given = take_timeout(text, words)
    timeout = DEFAULT_TIMEOUT if given is None else given
    if not words or words[0].key:
        raise usage_error(text, wait_event)
    name, fields = unquote(words[0].value), words[1:]
    for word in fields:
        if not word.key:
            raise usage_error(text, wait_event, word.offset)
        parse_value(word.value, None)

    def matches(event: Mapping[str, Any]) -> bool:
        data = event.get("data", {})
        return event.get("event") == name and all(_is(_value_at(data, word.key), word.value) for word in fields)

    async def act(runner: "Runner") -> None:
        try:
            async with asyncio.timeout(timeout):
                while runner.watch.take(matches) is None:
                    await runner.watch.news()
        except TimeoutError:
            wanted = " ".join([name, *(f"{word.key}={word.value}" for word in fields)])
            seen = ", ".join(runner.watch.seen()) or "no event"
            raise StatementFailed(f"{wanted} did not come within {timeout:g} s; came: {seen}") from None

    return act
