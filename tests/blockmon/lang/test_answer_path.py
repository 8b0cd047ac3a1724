"""`$_` and the paths into the last answer."""

from __future__ import annotations

from typing import Any

import pytest

from blockmon.lang.answer_path import AnswerError, resolve, substitute, substitute_words

ANSWER = [{"node-name": "top", "image": {"virtual-size": 7, "a b": True}}, {"node-name": "base", "0": "zero"}]


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("$_", ANSWER),
        ("$_[0].node-name", "top"),
        ("$_.1.node-name", "base"),
        ("$_[-1].node-name", "base"),
        ("$_[0].image.virtual-size", 7),
        ('$_[0].image["a b"]', True),
        ("$_[1].0", "zero"),
    ],
)
def test_paths(reference: str, value: object) -> None:
    assert resolve(reference, ANSWER) == value


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("$_[2]", r"\$_ has 2 elements, so there is no \[2\]"),
        ("$_[0].node-nam", r"\$_\[0\] has no member 'node-nam'; did you mean 'node-name'\?"),
        ("$_[0].xyz", r"no member 'xyz' \(node-name, image"),
        ("$_.x", r"\$_ is a list: it has no member 'x'"),
        ("$_[0].node-name[1]", "is text: it has no element"),
        ("$_[0]..x", "expected a member's name"),
        ("$_[x]", r"expected \[INDEX\]"),
        ("$_[?node-name==none]", r"\$_ has no element whose node-name is none"),
    ],
)
def test_a_path_that_leads_nowhere_says_where(reference: str, text: str) -> None:
    with pytest.raises(AnswerError, match=text):
        resolve(reference, ANSWER)


def test_values_are_replaced_at_any_depth_and_keep_their_type() -> None:
    given = {"device": "$_[0].node-name", "list": [{"size": "$_[0].image.virtual-size"}], "n": 1, "text": "a $_ b"}
    assert substitute(given, lambda: ANSWER) == {"device": "top", "list": [{"size": 7}], "n": 1, "text": "a $_ b"}


def test_the_text_itself_can_be_written() -> None:
    assert substitute({"a": "$$_", "b": "$$_[0]", "c": "$_x"}, lambda: ANSWER) == {"a": "$_", "b": "$_[0]", "c": "$_x"}
    assert substitute_words("commit $$_", lambda: ANSWER) == "commit $_"


def test_the_words_of_an_hmp_line() -> None:
    assert (
        substitute_words("block_resize $_[0].node-name $_[0].image.virtual-size", lambda: ANSWER)
        == "block_resize top 7"
    )
    with pytest.raises(AnswerError, match="is an object; an HMP command takes"):
        substitute_words("commit $_[0]", lambda: ANSWER)


def test_without_a_reference_nobody_asks_for_the_answer() -> None:
    def fail() -> Any:
        raise AssertionError

    assert substitute({"a": "b"}, fail) == {"a": "b"}
