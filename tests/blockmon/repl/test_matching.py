"""How names are found by what is typed of them."""

from __future__ import annotations

import pytest

from blockmon.repl.matching import FOLDED, INSIDE, LOOSE, PREFIX, WORD, NameIndex, fold, loosely, rank


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("", "anything", PREFIX),
        ("blo", "block-stream", PREFIX),
        ("BLO", "block-stream", FOLDED),
        ("block_s", "block-stream", FOLDED),
        ("str", "block-stream", WORD),
        ("rea", "block-stream", INSIDE),
        ("s", "block-stream", None),  # one letter finds only beginnings
        ("bs", "block-stream", None),
    ],
)
def test_rank(word: str, text: str, expected: int | None) -> None:
    assert rank(word, fold(word), text) == expected


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("bs", "block-stream", LOOSE),
        ("bkst", "block-stream", LOOSE + 1),
        ("st", "block-stream", LOOSE + 1),
        ("lks", "block-stream", None),  # the first letter begins a word
        ("sb", "block-stream", None),
        ("a.b", "a-b", None),
        ("n9", "node-9", LOOSE),
    ],
)
def test_loosely(word: str, text: str, expected: int | None) -> None:
    assert loosely(word, text) == expected


def test_an_index_finds_what_rank_finds() -> None:
    names = ["base", "Base-2", "my_base", "data.base", "abased", "#block1", "İmage", "with\nbreak", "z"]
    index = NameIndex(names)
    for word in ("b", "B", "ba", "base", "BASE", "_base", "lock1", "x", "mage", "brea", "#", "[", "2"):
        expected = {name: rank(word, fold(word), name) for name in names}
        starting = dict.fromkeys(index.starting(word, 99), PREFIX)
        others = {name: how for how, name in index.matching(word, 99)}
        assert {**others, **starting} == {name: how for name, how in expected.items() if how is not None}, word
    assert index.loose("b2", 99) == [(LOOSE, "Base-2")]


def test_an_index_gives_no_more_than_asked_for() -> None:
    index = NameIndex([f"n{number:04d}" for number in range(1000)])
    assert index.starting("n", 3) == ["n0000", "n0001", "n0002"]
    assert len(index.matching("0", 5)) <= 5
    assert len(index.matching("00", 5)) == 5
    assert len(index.loose("n9", 5)) == 5
    assert NameIndex(()).starting("", 5) == []
    assert NameIndex(()).matching("ab", 5) == []
