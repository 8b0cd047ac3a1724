"""Regular expressions that a user writes."""

import re
import warnings
from functools import lru_cache


class PatternError(ValueError):
    """A text that is no regular expression. `offset`: where in it the mistake is."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"bad regular expression: {message}")
        self.offset = offset


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> re.Pattern[str]:
    """The regular expression *text*, in Python's syntax. Raises PatternError."""
    try:
        with warnings.catch_warnings():
            # "[[:alpha:]]" may mean something else one day: nothing that the user could do about now.
            warnings.simplefilter("ignore")
            return re.compile(text)
    except re.error as error:
        raise PatternError(error.msg, error.pos or 0) from None
    except RecursionError:
        raise PatternError("it is nested too deeply", 0) from None
    except OverflowError as error:
        raise PatternError(str(error), 0) from None
