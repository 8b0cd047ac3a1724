"""The table of qemu-io's commands, and what a command gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from engine.errors import os_error_text
from engine.graph.permissions import Perm
from engine.monitor.qemu_io.options import Options, read_options
from engine.monitor.qemu_io.text import UsageError

if TYPE_CHECKING:
    from engine.graph.accounting import Kind
    from engine.graph.backend import BlockBackend
    from engine.monitor.qemu_io.requests import Outstanding

Run = Callable[["Call"], None]


@dataclass(frozen=True, slots=True)
class Command:
    """A command of qemu-io.

    minimum, maximum: number of words behind it, -1 for any. options: getopt's optstring. perm: what it needs of the
    node. background: it starts a request that others do not wait for. help: what is said besides the one line.
    """

    name: str
    alias: str
    minimum: int
    maximum: int
    args: str
    oneline: str
    run: Run
    options: str = ""
    perm: Perm = Perm.NONE
    background: bool = False
    help: str = ""

    @property
    def usage(self) -> str:
        return f"{self.name} {self.args} -- {self.oneline}"

    def listing(self) -> str:
        """The line of help about it."""
        return f"{self.name} {self.args} -- {self.oneline}\n"


@dataclass(slots=True)
class Call:
    """One use of a command. Runs in a thread of its own. words: what stands behind the command's name."""

    command: Command
    called: str
    words: list[str]
    backend: BlockBackend
    outstanding: Outstanding
    printed: list[str] = field(default_factory=list)
    sleep: float = 0.0
    """Seconds to wait before the command is over."""

    @property
    def counted(self) -> bool:
        """Whether its requests show in the back end's statistics: those of aio_read and aio_write alone, as in QEMU."""
        return self.command.background

    def count_failed(self, kind: Kind) -> Callable[[], None] | None:
        """What counts a request that fails before it comes to the back end; None when it is not counted."""
        return partial(self.backend.stats.failed, kind) if self.counted else None

    def print(self, text: str) -> None:
        self.printed.append(text)

    def read_options(self) -> Options:
        """The options and operands. Errors: UsageError."""
        return read_options(self.called, self.command.options, self.words, self.command.usage)

    def wrong_usage(self) -> UsageError:
        return UsageError(self.command.usage)

    def failed(self, what: str, error: OSError) -> None:
        """Print that a request failed."""
        self.print(f"{what} failed: {os_error_text(error)}\n")


_COMMANDS: Final[dict[str, Command]] = {}
_NAMES: Final[dict[str, Command]] = {}


def io_command(
    name: str,
    alias: str = "",
    *,
    words: tuple[int, int],
    args: str = "",
    oneline: str,
    options: str = "",
    perm: Perm = Perm.NONE,
    background: bool = False,
    help: str = "",
) -> Callable[[Run], Run]:
    """Make a function a command of qemu-io; *words*: least and greatest number of words behind it."""

    def register(run: Run) -> Run:
        command = Command(name, alias, *words, args, oneline, run, options, perm, background, help)
        _COMMANDS[name] = command
        for known in filter(None, (name, alias)):
            _NAMES[known] = command
        return run

    return register


def find(name: str) -> Command | None:
    """The command called *name*, or known by that letter."""
    return _NAMES.get(name)


def all_commands() -> list[Command]:
    """Every command, by name."""
    return [_COMMANDS[name] for name in sorted(_COMMANDS)]


def check_count(command: Command, called: str, count: int) -> None:
    """Raise UsageError when *count* words are not what the command takes."""
    least, most = command.minimum, command.maximum
    if count >= least and (most < 0 or count <= most):
        return
    if most < 0:
        expected = f"at least {least}"
    elif least == most:
        expected = f"{least}"
    else:
        expected = f"between {least} and {most}"
    raise UsageError(f"bad argument count {count} to {called}, expected {expected} arguments")
