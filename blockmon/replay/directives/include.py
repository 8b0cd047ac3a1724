"""@include: another file's statements here."""

import os
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive, known, unquote

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("include", "FILE", checked=True)
def include(call: Call) -> Action:
    """Run the statements of FILE, whose name counts from the folder of the file it stands in."""
    words = call.words()
    if len(words) != 1 or words[0].key:
        raise call.usage()
    name, offset = unquote(words[0].value), words[0].offset
    path = os.path.join(os.path.dirname(call.statement.file), os.path.expanduser(name))

    async def act(runner: "Runner") -> None:
        if not known(name):
            return
        problem = await runner.include(path)
        if problem:
            raise call.error(problem, offset)

    return act
