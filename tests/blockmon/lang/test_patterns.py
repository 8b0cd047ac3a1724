"""Regular expressions of users: whatever is written, there is one error and nothing else."""

import warnings

import pytest

from blockmon.lang.patterns import PatternError, compile_pattern


@pytest.mark.parametrize(
    ("text", "says", "offset"),
    [
        ("a(b", "missing ), unterminated subpattern", 1),
        ("(" * 5000 + ")" * 5000, "it is nested too deeply", 0),
        ("a{99999999999999999999}", "the repetition number is too large", 0),
    ],
)
def test_what_is_none(text: str, says: str, offset: int) -> None:
    with pytest.raises(PatternError, match=r"^bad regular expression: ") as caught:
        compile_pattern(text)
    assert says in str(caught.value)
    assert caught.value.offset == offset


def test_nothing_is_told_on_stderr() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_pattern("[[:digit:]]").search("d]")
