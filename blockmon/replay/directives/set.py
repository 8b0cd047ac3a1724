"""@set: give a variable its value."""

from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive, unquote
from blockmon.replay.variables import is_name

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("set", "NAME VALUE", checked=True)
def set_(call: Call) -> Action:
    """From here on ${NAME} is VALUE: the rest of the line, or the text in quotes."""
    rest, begin = call.rest
    name, _, value = rest.partition(" ")
    value = value.lstrip()
    if not name or not value:
        raise call.usage()
    if not is_name(name):
        raise call.error(f"'{name}' is no variable's name", begin)
    quoted = value[0] in "'\"" and value.endswith(value[0]) and len(call.words()) == 2
    text = unquote(value) if quoted else value

    async def act(runner: "Runner") -> None:
        runner.variables[name] = text

    return act
