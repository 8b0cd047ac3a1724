"""Why a script ends early."""

from typing import TYPE_CHECKING

from blockmon.exitcodes import ExitStatus

if TYPE_CHECKING:
    from blockmon.lang import ParsedHMP, ParsedQMP


class ScriptError(Exception):
    """What went wrong at *line* and *column* (from 1) of *file*; *status* is what the run ends with."""

    def __init__(
        self, message: str, file: str, line: int, column: int = 1, status: ExitStatus = ExitStatus.FAILED
    ) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}")
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.status = status


class StatementFailed(Exception):
    """A command or a directive failed; the text says why. The runner adds the place."""

    status = ExitStatus.FAILED


class CommandFailed(StatementFailed):
    """The engine refused a command. *cls* is QMP's error class, *desc* its text, *command* what was executed."""

    parsed: "ParsedQMP | ParsedHMP | None" = None
    """What the script had the engine do; None for what a directive asked."""

    def __init__(self, command: str, cls: str, desc: str) -> None:
        super().__init__(f"{command}: {cls}: {desc}")
        self.command = command
        self.cls = cls
        self.desc = desc


class WaitTimedOut(StatementFailed):
    """What a directive waited for did not come in time."""

    status = ExitStatus.TIMEOUT


class OutputLost(StatementFailed):
    """The answers can no longer be written, so that going on has no use."""


class Skipped(Exception):
    """@require found something missing; the text says what."""
