"""@defer: something to run at the end, whatever happens."""

import dataclasses
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

NOT_LATER = ("for", "repeat", "end", "retry", "include", "defer", "error", "require")


@directive("defer", "COMMAND", checked=True)
def defer(call: Call) -> Action:
    """Run COMMAND, a command in any form or a directive such as @shell, when the script ends; the last one deferred is
    first. Its variables have the values they have here."""
    begin = call.rest[1]
    command = call.text[begin:].rstrip()
    if not command:
        raise call.usage()
    first = command.split(maxsplit=1)[0]
    if first.startswith("@") and first[1:] in NOT_LATER:
        raise call.error(f"{first} cannot be deferred", begin)
    line = call.statement.line + call.text.count("\n", 0, begin)
    column = begin - (call.text.rfind("\n", 0, begin) + 1) + 1
    # Columns of the deferred command's own errors stay those of the line it stands in.
    text = " " * (column - 1) + command.replace("${", "$${")
    later = dataclasses.replace(
        call.statement, line=line, column=column, text=text, kind="directive" if first.startswith("@") else "command"
    )

    async def act(runner: "Runner") -> None:
        await runner.defer(later)

    return act
