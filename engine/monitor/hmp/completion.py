"""What the Tab key offers: commands, subcommands, devices, nodes and jobs, by what the command at hand takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.monitor.hmp.interpreter import find_command
from engine.monitor.hmp.registry import COMMANDS, Table

if TYPE_CHECKING:
    from engine.engine import Engine


def complete(engine: Engine, text: str) -> tuple[str, Sequence[str]]:
    """The word that *text* ends with, and all that it may become."""
    words = text.split()
    word = "" if not words or text[-1:].isspace() else words.pop()
    return word, [candidate for candidate in _candidates(engine, words, word) if candidate.startswith(word)]


def _candidates(engine: Engine, words: list[str], word: str) -> Sequence[str]:
    if words and COMMANDS.find(words[0]) is COMMANDS.find("help"):
        return _names_below(COMMANDS, words[1:])
    if not words:
        return COMMANDS.names()
    # A word behind the name keeps a command with subcommands from being found without one.
    command, rest = find_command(" ".join(words))
    if command is None:
        return ()
    if command.table is not None:
        return command.table.names()
    line = " ".join(words)
    given = [part for part in line[rest:].split() if not part.startswith("-")] if rest < len(line) else []
    positional = [argument for argument in command.arguments if argument.type != "-"]
    if word.startswith("-"):
        return [f"-{argument.flag}" for argument in command.arguments if argument.flag]
    if len(given) >= len(positional):
        return ()
    argument = positional[len(given)]
    if argument.type == "F" or argument.name.endswith("file"):
        return _files(word)
    if argument.type == "B":
        if command.name.startswith("block_job_"):
            return [job.id for job in engine.jobs.block_jobs if job.id is not None]
        devices = [backend.name for backend in engine.graph.backends if backend.name]
        return [*devices, *(name for name, node in engine.graph.nodes.items() if not node.auto_name)]
    return ()


def _names_below(table: Table, words: list[str]) -> Sequence[str]:
    for word in words:
        command = table.find(word)
        if command is None or command.table is None:
            return ()
        table = command.table
    return table.names()


def _files(word: str) -> Sequence[str]:
    directory = os.path.dirname(word)
    try:
        entries = list(os.scandir(directory or "."))
    except OSError:
        return ()
    return [os.path.join(directory, entry.name) + ("/" if entry.is_dir() else "") for entry in entries]
