"""The exit statuses of `blockmon run`."""

import enum


class ExitStatus(enum.IntEnum):
    """How a run ended. The first thing that went wrong decides."""

    OK = 0
    FAILED = 1
    """A command failed, or an expectation was not met."""
    USAGE = 2
    """Wrong options, or a line that cannot be understood or does not fit the schema."""
    OPEN = 3
    """An image or an engine could not be opened."""
    TIMEOUT = 4
    """A wait timed out."""
    SKIPPED = 77
    """Left out, because @require found something missing."""
    INTERRUPTED = 130
    """Ended from the keyboard."""
