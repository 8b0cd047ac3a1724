"""@timeout: how long waits take at most."""

from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive, duration

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("timeout", "DURATION")
def timeout(call: Call) -> Action:
    """From here on a wait that has no timeout= of its own takes at most DURATION."""
    words = call.words()
    if len(words) != 1 or words[0].key:
        raise call.usage()
    seconds = duration(call, words[0].value, words[0].offset)

    async def act(runner: "Runner") -> None:
        runner.timeout = seconds

    return act
