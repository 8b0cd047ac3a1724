"""`\\quit`: leave the prompt; a remote engine goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand, no_argument

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession


async def run(session: ReplSession, argument: str) -> bool:
    """End the session."""
    no_argument(argument)
    session.end()
    return True


COMMAND = PromptCommand(
    "quit",
    "",
    "leave the prompt",
    run,
    more="As Ctrl+D does. Unlike `quit`, which ends a remote engine, it says nothing to the server.",
)
