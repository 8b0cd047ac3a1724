"""`\\watch`: run a command again and again, and show how its answer changes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from blockmon.lang import ParseError
from blockmon.model.format import clock_time
from blockmon.repl.commands import PromptCommand
from blockmon.repl.host import Host, PromptError
from blockmon.repl.printers import Fragments, format_notice
from blockmon.repl.reading import Look, PromptLine
from blockmon.repl.running import Runner

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

_INTERVAL = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m)?(?:[ \t]+|$)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}

SHORTEST = 0.1
"""Seconds; more often would keep the server busy with nothing but being watched."""
LONGEST = 86400.0


async def run(session: ReplSession, argument: str) -> bool:
    """Repeat until cancelled."""
    match = _INTERVAL.match(argument)
    if match is None:
        raise PromptError("needs an INTERVAL and a COMMAND: \\watch 2s query-jobs")
    interval = float(match["number"]) * _UNITS[match["unit"]]
    if not SHORTEST <= interval <= LONGEST:
        raise PromptError(f"an interval is between {SHORTEST:g} s and a day, not {match[0].strip()}")
    command = argument[match.end() :]
    try:
        statements = session.read(command)
    except ParseError as error:
        raise PromptError(f"{error.message} (column {error.column} of the command)") from None
    if not statements:
        raise PromptError("needs a whole COMMAND behind the interval, in one line")
    if isinstance(statements[0].what, PromptLine | Look):
        raise PromptError("watches commands of the server, not the prompt's own")
    statement = statements[0]

    # What $_ stands for in the command stays as it is while it is watched.
    before = session.runner.last_or({})

    async def frames() -> AsyncIterator[Fragments]:
        while not session.ended:
            began = time.monotonic()
            kept = _Kept(session)
            runner = Runner(session, kept)
            runner.remember(before)
            succeeded = await runner.run(statement)
            session.runner.remember(runner.last_or({}))
            heading = format_notice(f"{clock_time(time.time())[:-4]} every {interval:g} s: {command}")
            yield [*heading, *kept.fragments]
            if not succeeded and not statement.shell:
                return
            await asyncio.sleep(max(began + interval - time.monotonic(), 0))

    session.last_answer = ""
    await session.host.follow(frames())
    return True


class _Kept(Host):
    """Keeps the output back."""

    def __init__(self, session: ReplSession) -> None:
        self.session = session
        self.fragments: Fragments = []

    def emit(self, fragments: Fragments, *, answer: bool = False) -> None:
        """Keep a piece."""
        self.fragments += fragments


def command_at(argument: str) -> int | None:
    """Where the command begins in the argument."""
    match = _INTERVAL.match(argument)
    return (
        match.end()
        if match is not None and match.end() > 0 and argument[match.end() - 1 : match.end()].isspace()
        else None
    )


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """Some intervals."""
    return (("1s ", "every second"), ("5s ", "every five seconds"), ("1m ", "every minute"))


COMMAND = PromptCommand(
    "watch",
    "INTERVAL COMMAND",
    "run a command every so often until Ctrl+C or Enter",
    run,
    complete,
    more="INTERVAL is in seconds, or has a unit: 500ms, 2s, 1m. A pipe may follow: \\watch 2s info block | grep -c vd\n"
    "It ends by itself when the command fails.",
    inner=command_at,
)
