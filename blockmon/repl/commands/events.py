"""`\\events`: show or hide events, or list the last ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand
from blockmon.repl.host import PromptError
from blockmon.repl.printers import format_event

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

USUAL = 20


async def run(session: ReplSession, argument: str) -> bool:
    """Switch, or list."""
    if argument in ("on", "off"):
        session.settings.set("events", argument)
        session.notice(f"events are {'shown' if argument == 'on' else 'hidden'}")
        return True
    if argument and not argument.isdecimal():
        raise PromptError(f"takes on, off or how many events to list, not '{argument}'")
    wanted = int(argument) if argument else USUAL
    events = list(session.events)[-wanted:] if wanted else []
    if not events:
        session.notice("no events yet")
    session.last_answer = ""
    await session.host.show(fragment for event in events for fragment in format_event(event))
    return True


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """The switch's words."""
    return (("on", "print events as they come"), ("off", "do not print events"))


COMMAND = PromptCommand(
    "events",
    "[on|off|N]",
    "show or hide events, or list the last N",
    run,
    complete,
    more=f"Without an argument the last {USUAL} are listed. Alt+E switches too.",
)
