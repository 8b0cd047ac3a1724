"""The error every parser of blockmon's input language raises."""


class ParseError(ValueError):
    """Text that is not a command. *line* and *column* count from 1 within the text that was parsed."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column

    @classmethod
    def at(cls, message: str, text: str, offset: int) -> "ParseError":
        """Make the error for the character *offset* of *text*."""
        line = text.count("\n", 0, offset) + 1
        return cls(message, line, offset - (text.rfind("\n", 0, offset) + 1) + 1)
