"""Executing one line of HMP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.descriptors.passing import client
from engine.errors import QMPError
from engine.monitor.hmp import commands as _commands  # noqa: F401  (registers them)
from engine.monitor.hmp.arguments import ArgumentError, parse
from engine.monitor.hmp.registry import COMMANDS, Command, Table

if TYPE_CHECKING:
    from engine.engine import Engine

log = logging.getLogger("engine.monitor")

_SPACE = " \t\n\v\f\r"


class Monitor:
    """What a command has: the engine, and a place to print. interactive: whether a person may look at it later."""

    def __init__(self, engine: Engine, write: Callable[[str], None], *, interactive: bool = False) -> None:
        self.engine = engine
        self.interactive = interactive
        self.history: Sequence[str] = ()
        """Lines that were typed before, oldest first."""
        self.ended = False
        """Whether the program is about to end, so that nothing more is to be asked for."""
        self._write = write

    def print(self, text: str) -> None:
        """Print *text* as it is, line ends as a newline."""
        self._write(text)

    async def qmp(self, command: str, /, **arguments: Any) -> Any:
        """Run a QMP command; _ stands for - in arguments' names, None for an absent one. Errors: QMPError."""
        given = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        return await self.engine.run_command(command, given)

    def error(self, error: QMPError) -> None:
        """Tell of a failure."""
        self.print(f"Error: {error.desc}\n")
        if error.hint:
            self.print(error.hint.rstrip("\n") + "\n")


async def run_line(engine: Engine, line: str) -> str:
    """Execute *line* and return what it printed, as human-monitor-command does (lines end in CR LF)."""
    printed: list[str] = []
    # What is passed to a QMP client's socket is not for the line.
    token = client.set(None)
    try:
        await execute(Monitor(engine, printed.append), line)
    finally:
        client.reset(token)
    return "".join(printed).replace("\n", "\r\n")


def find_command(line: str, table: Table = COMMANDS, at: int = 0) -> tuple[Command | None, int]:
    """The command that *line* names from *at* on, subcommands followed, and where its arguments begin.

    None: no such command; the position is then that behind the unknown word, or 0 when there is no word.
    """
    start = at
    while start < len(line) and line[start] in _SPACE:
        start += 1
    if start == len(line):
        return None, 0
    end = start
    while end < len(line) and line[end] not in _SPACE and line[end] != "/":
        end += 1
    command = table.find(line[start:end])
    if command is None:
        return None, end
    rest = end
    while rest < len(line) and line[rest] in _SPACE:
        rest += 1
    if command.table is not None and rest < len(line):
        return find_command(line, command.table, rest)
    return command, rest


async def execute(monitor: Monitor, line: str) -> None:
    """Execute *line*; everything that there is to say, errors too, goes to the monitor."""
    command, rest = find_command(line)
    if command is None:
        if rest:
            monitor.print(f"unknown command: '{line[:rest]}'\n")
        return
    try:
        arguments = parse(command.name, command.arguments, line[rest:])
    except ArgumentError as exc:
        monitor.print(f'{exc}\nTry "help {line[:rest].rstrip(_SPACE)}" for more information\n')
        return
    try:
        await command.run(monitor, arguments)
    except QMPError as exc:
        monitor.error(exc)
    except Exception as exc:
        log.exception("internal error in HMP command %s", line)
        monitor.print(f"Error: Internal error in '{command.name}': {exc!r} (see the log)\n")
