"""@sleep: a pause."""

import asyncio
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive, duration

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("sleep", "DURATION")
def sleep(call: Call) -> Action:
    """Wait for DURATION, divided by the factor of --speed."""
    words = call.words()
    if len(words) != 1 or words[0].key:
        raise call.usage()
    seconds = duration(call, words[0].value, words[0].offset)

    async def act(runner: "Runner") -> None:
        await asyncio.sleep(seconds / runner.options.speed)

    return act
