"""The HMP commands there are: each is declared once, with its arguments and what its help says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.monitor.hmp.arguments import Argument, declare

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor

Run = Callable[["Monitor", dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command. name: all its names, separated by bars. params, help: as its help line shows them.

    table: subcommands by name; then a word behind the command chooses one.
    """

    name: str
    arguments: tuple[Argument, ...]
    params: str
    help: str
    run: Run
    table: Table | None = None

    @property
    def names(self) -> list[str]:
        return self.name.split("|")


class Table:
    """Commands by each of their names."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}

    def add(self, command: Command) -> None:
        """Make *command* known. Raises ValueError when a name is taken."""
        for name in command.names:
            if name in self._commands:
                raise ValueError(f"the HMP command {name} exists already")
            self._commands[name] = command

    def find(self, name: str) -> Command | None:
        return self._commands.get(name)

    def sorted(self) -> list[Command]:
        """Every command once, by name."""
        found = {command.name: command for command in self._commands.values()}
        return [found[name] for name in sorted(found)]

    def names(self) -> list[str]:
        """Every name of every command."""
        return sorted(self._commands)


COMMANDS: Final = Table()
"""The commands of the monitor."""
INFO: Final = Table()
"""The subcommands of info."""


def _register(table: Table, name: str, args: str, params: str, help: str, sub: Table | None) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        table.add(Command(name, declare(args), params, help, run, sub))
        return run

    return register


def hmp(name: str, *, args: str = "", params: str = "", help: str, table: Table | None = None) -> Callable[[Run], Run]:
    """Make a coroutine function ``(monitor, arguments)`` an HMP command; *args* as ``arguments.declare`` takes it."""
    return _register(COMMANDS, name, args, params, help, table)


def info(name: str, *, args: str = "", params: str = "", help: str) -> Callable[[Run], Run]:
    """Make a coroutine function a subcommand of info."""
    return _register(INFO, name, args, params, help, None)
