"""@mode: which form lines have that could be in either."""

from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("mode", "qmp|hmp|auto", checked=True)
def mode(call: Call) -> Action:
    """Up to the end of the file a line that is not JSON is a qmp-shell line, or an HMP line; `qmp ` and `hmp ` in
    front of it still decide. auto, as at the beginning: a line is what its first word is."""
    words = call.words()
    if len(words) != 1 or words[0].key or words[0].value not in ("qmp", "hmp", "auto"):
        raise call.usage()
    chosen = words[0].value

    async def act(runner: "Runner") -> None:
        runner.mode = "" if chosen == "auto" else chosen

    return act
