"""`\\json`: the last answer as JSON, or JSON for every answer from now on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand
from blockmon.repl.host import PromptError

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession


async def run(session: ReplSession, argument: str) -> bool:
    """Show the last answer, or switch."""
    if argument in ("on", "off"):
        session.settings.set("json", argument)
        session.notice("answers are shown as JSON" if argument == "on" else "lists of objects are shown as tables")
    elif argument:
        raise PromptError(f"takes on or off, not '{argument}'")
    else:
        answer = session.runner.last()
        session.runner.seconds = 0.0
        await session.runner.show(answer, json=True)
    return True


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """The switch's words."""
    return (("on", "show every answer as JSON"), ("off", "show lists of objects as tables"))


COMMAND = PromptCommand(
    "json",
    "[on|off]",
    "show the last answer as JSON, or every one from now on",
    run,
    complete,
    more="Lists of objects are shown as tables, which leave columns out where there is no room, and write nested\n"
    "values in a few words. The JSON has everything.",
)
