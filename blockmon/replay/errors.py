"""Why a script ends early."""


class ScriptError(Exception):
    """The statement at *line* of *file* cannot be parsed (*status* 2) or failed (*status* 1)."""

    def __init__(self, message: str, file: str, line: int, status: int = 1) -> None:
        super().__init__(f"{file}:{line}: {message}")
        self.message = message
        self.file = file
        self.line = line
        self.status = status


class StatementFailed(Exception):
    """A command or a directive failed; the text says why. The runner adds the place."""
