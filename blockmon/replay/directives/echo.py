"""@echo: print a line."""

from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("echo", "[TEXT]")
def echo(call: Call) -> Action:
    """Print the rest of the line."""
    text, _ = call.rest

    async def act(runner: "Runner") -> None:
        runner.echo(text)

    return act
