"""Where a pipe is one, and where it is text."""

from __future__ import annotations

import pytest

from blockmon.lang import ParseError
from blockmon.lang.pipes import find_pipe, shell_command


@pytest.mark.parametrize(
    ("text", "command", "shell"),
    [
        ("info block | grep vda", "info block ", "grep vda"),
        ("query-block |jq .", "query-block ", "jq ."),
        ("query-block| jq .", "query-block", "jq ."),
        ("a | b | c", "a ", "b | c"),
        ('{"a": "x | y", "b": [1]} | jq', '{"a": "x | y", "b": [1]} ', "jq"),
        ("a k='x | y' | wc", "a k='x | y' ", "wc"),
        (r'a k="x \" | y" | wc', r'a k="x \" | y" ', "wc"),
    ],
)
def test_a_pipe_ends_the_command(text: str, command: str, shell: str) -> None:
    pipe = find_pipe(text)
    assert pipe is not None
    assert (text[:pipe], shell_command(text, pipe)) == (command, shell)


@pytest.mark.parametrize("text", ["info block", "file=a|b", '"a | b"', "'a | b", '{"a": [1 | 2]}', "k=[1 | 2"])
def test_what_is_no_pipe(text: str) -> None:
    assert find_pipe(text) is None


def test_brackets_hide_nothing_in_an_hmp_line() -> None:
    assert find_pipe("print [1 | wc", brackets=False) == 9


@pytest.mark.parametrize("text", ["info block |", "info block |  ", "a || b"])
def test_a_pipe_needs_a_command(text: str) -> None:
    pipe = find_pipe(text)
    assert pipe is not None
    with pytest.raises(ParseError, match="shell command is missing") as caught:
        shell_command(text, pipe)
    assert caught.value.column == pipe + 1
