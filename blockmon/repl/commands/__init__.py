"""The prompt's own commands, which begin with a backslash: one module each, with a `COMMAND` in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from blockmon.repl.host import PromptError
from blockmon.repl.settings import nearest

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

Run = Callable[["ReplSession", str], Awaitable[bool]]
Complete = Callable[["ReplSession", str], Iterable[tuple[str, str]]]

MODULES = (
    *("diff", "emacs", "events", "help", "json", "quit", "record", "save", "set", "source", "theme", "vi", "watch"),
)


def _nothing(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    return ()


@dataclass(frozen=True, slots=True)
class PromptCommand:
    """One command. `run` gets the session and the text behind the name, and tells whether it succeeded; it raises
    PromptError for what the user has to know. `complete` gives the words, each with a description, that can stand at
    the end of the argument typed so far. `more` is the rest of its help.
    """

    name: str
    usage: str
    help: str
    run: Run
    complete: Complete = _nothing
    more: str = ""
    files: bool = False
    """The argument is one file name, blanks and all."""
    inner: Callable[[str], int | None] | None = None
    """Where in the argument a command of the server's begins; None when it does not yet."""


@cache
def all_commands() -> dict[str, PromptCommand]:
    """Every command by its name."""
    return {name: import_module(f"{__name__}.{name}").COMMAND for name in MODULES}


def lookup(name: str) -> PromptCommand | None:
    """The command called *name*, or the only one that begins so; `?` is help."""
    commands = all_commands()
    wanted = "help" if name == "?" else name.lower()
    found = commands.get(wanted)
    if found is None and wanted:
        begin = [command for known, command in commands.items() if known.startswith(wanted)]
        found = begin[0] if len(begin) == 1 else None
    return found


def find_command(name: str) -> PromptCommand:
    """The command called *name*. Raises PromptError, with the nearest name."""
    if not name:
        raise PromptError("a name is missing behind the backslash; \\help lists them")
    found = lookup(name)
    if found is None:
        near = nearest(name.lower(), all_commands())
        raise PromptError("there is no such command; " + (f"did you mean \\{near}?" if near else "\\help lists them"))
    return found


def no_argument(argument: str) -> None:
    """Refuse an argument that a command does not take. Raises PromptError."""
    if argument:
        raise PromptError(f"takes no argument, not '{argument}'")
