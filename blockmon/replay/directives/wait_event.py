"""@wait-event: go on when an event has come."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blockmon.lang.values import read_value, same
from blockmon.replay.directives import Action, Call, Word, directive, known, take_timeout, unquote
from blockmon.replay.errors import WaitTimedOut
from blockmon.replay.variables import similar

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
_OWN = "X_BLOCKMON_"  # what our engine tells beyond QEMU's events depends on who listens


def _matches(data: Any, word: Word) -> bool:
    value = _value_at(data, word.key)
    return value is not _ABSENT and same(value, word.value)


@directive("wait-event", "NAME [FIELD=VALUE ...] [timeout=60s]", checked=True)
def wait_event(call: Call) -> Action:
    """Wait for the event NAME whose data has the given values (dotted keys reach inside); counts what came since the
    last command was sent, and each event once."""
    words = call.words()
    given = take_timeout(call, words)
    if not words or words[0].key:
        raise call.usage()
    name, fields = unquote(words[0].value), words[1:]
    for word in fields:
        if not word.key:
            raise call.usage(word.offset)
        read_value(word.value)

    def matches(event: Mapping[str, Any]) -> bool:
        data = event.get("data", {})
        return event.get("event") == name and all(_matches(data, word) for word in fields)

    async def check(runner: "Runner") -> None:
        """Nobody should wait for what cannot come. Raises ParseError."""
        schema = await runner.schema()
        if not schema.events or name.startswith(_OWN) or not known(name):
            return
        if name not in schema.events:
            hint = similar(name.upper().replace("-", "_"), schema.events)
            raise call.error(f"the server has no event '{name}'{hint}", words[0].offset)
        members = schema.data_of(name)
        for word in fields:
            field = word.key.partition(".")[0]
            if field not in members:
                raise call.error(f"{name} has no '{field}'{similar(field, members)}", word.offset)

    async def act(runner: "Runner") -> None:
        if runner.dry or not runner.watch.has(matches):
            await check(runner)
        if runner.dry:
            return
        timeout = next(value for value in (given, runner.timeout, DEFAULT_TIMEOUT) if value is not None)
        try:
            async with asyncio.timeout(timeout):
                while runner.watch.take(matches) is None:
                    await runner.watch.news()
        except TimeoutError:
            wanted = " ".join([name, *(f"{word.key}={word.value}" for word in fields)])
            seen = ", ".join(runner.watch.seen()) or "no event"
            raise WaitTimedOut(f"{wanted} did not come within {timeout:g} s; came: {seen}") from None

    return act
