"""`\\vi`: vi keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand, no_argument

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession


async def run(session: ReplSession, argument: str) -> bool:
    """Switch the line editor."""
    no_argument(argument)
    session.settings.set("keys", "vi")
    session.notice("vi keys")
    return True


COMMAND = PromptCommand("vi", "", "edit with vi's keys", run, more="The same as \\set keys vi, and as Alt+M.")
