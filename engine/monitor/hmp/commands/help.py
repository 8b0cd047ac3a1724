"""help, and info without a subcommand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.arguments import ArgumentError, Scanner
from engine.monitor.hmp.registry import COMMANDS, INFO, Command, Table, hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


def help_line(command: Command, path: list[str]) -> str:
    """The line about *command*; *path*: the words in front of it."""
    return "".join(f"{word} " for word in path) + f"{command.name} {command.params} -- {command.help}\n"


def _show(monitor: Monitor, table: Table, words: list[str], depth: int = 0) -> None:
    path = words[:depth]
    if depth >= len(words):
        for command in table.sorted():
            monitor.print(help_line(command, path))
        return
    found = table.find(words[depth])
    if found is None:
        monitor.print(f"unknown command: '{' '.join(words[: depth + 1])}'\n")
    elif found.table is not None:
        _show(monitor, found.table, words, depth + 1)
    else:
        monitor.print(help_line(found, path))


@hmp("help|?", args="name:S?", params="[cmd]", help="show the help")
async def _help(monitor: Monitor, args: dict[str, Any]) -> None:
    words: list[str] = []
    scanner = Scanner(args.get("name", ""))
    try:
        while (word := scanner.word()) is not None:
            words.append(word)
    except ArgumentError as exc:
        monitor.print(f"{exc}\n")
        return
    _show(monitor, COMMANDS, words)


@hmp(
    "info",
    args="item:s?",
    params="[subcommand]",
    help="show various information about the system state",
    table=INFO,
)
async def _info(monitor: Monitor, args: dict[str, Any]) -> None:
    _show(monitor, COMMANDS, ["info"])
