"""@retry: a command, and what is expected of it, until it is so."""

from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, count, directive, duration, known

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("retry", "N every DURATION", checked=True)
def retry(call: Call) -> Action:
    """Run the next command with the expectations behind it (----, @expect, @error, @let) up to N times, with DURATION
    between, until none of it fails. Only the last answer is printed."""
    words = call.words()
    if len(words) != 3 or words[1].value != "every" or any(word.key for word in words):
        raise call.usage()
    number = count(call, words[0].value, words[0].offset) if known(words[0].value) else 1
    pause = duration(call, words[2].value, words[2].offset) if known(words[2].value) else 0.0

    async def act(runner: "Runner") -> None:
        if not await runner.retry(number, pause):
            raise call.error("a command must follow @retry")

    return act
