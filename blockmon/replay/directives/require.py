"""@require: leave the script out when something it needs is not there."""

import shutil
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive
from blockmon.replay.errors import Skipped

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("require", "command:NAME|driver:NAME|tool:NAME|remote ...", checked=True)
def require(call: Call) -> Action:
    """Go on only if the server has the QMP command or the block driver, this machine the program, and the engine is not
    in this process; else the script ends here: left out, not failed."""
    words = call.words()
    if not words:
        raise call.usage()
    wanted: list[tuple[str, str]] = []
    for word in words:
        kind, colon, name = word.value.partition(":")
        if word.key or not (word.value == "remote" or (kind in ("command", "driver", "tool") and colon and name)):
            raise call.usage(word.offset)
        wanted.append((kind, name))

    async def act(runner: "Runner") -> None:
        for kind, name in wanted:
            missing = await _missing(runner, kind, name)
            if missing:
                raise Skipped(missing)

    return act


async def _missing(runner: "Runner", kind: str, name: str) -> str:
    match kind:
        case "command":
            return "" if name in await runner.commands() else f"the server has no command '{name}'"
        case "driver":
            return "" if name in await runner.drivers() else f"the server has no block driver '{name}'"
        case "tool":
            return "" if shutil.which(name) else f"there is no program '{name}'"
    return "" if runner.remote else "the engine is not remote"
