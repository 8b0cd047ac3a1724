"""@repeat: the lines up to @end so many times."""

from itertools import repeat as times
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, count, directive, known

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("repeat", "N", checked=True)
def repeat(call: Call) -> Action:
    """Run the statements up to @end N times."""
    words = call.words()
    if len(words) != 1 or words[0].key:
        raise call.usage()
    number = count(call, words[0].value, words[0].offset) if known(words[0].value) else 1

    async def act(runner: "Runner") -> None:
        # Every round of a check is the same.
        await runner.loop(call.statement, times({}, 1 if runner.dry else number))

    return act
