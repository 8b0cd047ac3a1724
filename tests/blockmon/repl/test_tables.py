"""Lists of objects as tables: which columns, how wide, what is said of what is left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from blockmon.repl.printers import plain
from blockmon.repl.tables import is_table, iter_table, summary

NODES = [
    {
        "file": "/images/very/long/directory/overlay.qcow2", "node-name": "top", "drv": "qcow2", "ro": False,
        "bps": 0, "detect_zeroes": "off", "cache": {"direct": False, "writeback": True},
        "image": {"virtual-size": 1 << 30, "actual-size": 200704, "format": "qcow2"},
    },
    {
        "file": "/images/base.raw", "node-name": "base", "drv": "raw", "ro": True, "bps": 0, "detect_zeroes": "off",
        "cache": {"direct": False, "writeback": True}, "image": {"virtual-size": 1 << 20},
    },
]  # fmt: skip


def table(rows: list[dict[str, Any]], width: int = 80) -> list[str]:
    return plain(iter_table(rows, width)).splitlines()


def test_what_names_an_object_comes_first_and_sizes_are_short() -> None:
    lines = table(NODES, 120)
    assert lines[0].split()[:6] == ["node-name", "drv", "ro", "file", "virtual-size", "actual-size"]
    assert lines[1].split()[:3] == ["top", "qcow2", "no"]
    assert lines[1].split()[4:6] == ["1G", "196K"]
    assert lines[2].split() == ["base", "raw", "yes", "/images/base.raw", "1M", *lines[2].split()[5:]]


def test_columns_that_say_nothing_are_left_out_and_that_is_said() -> None:
    lines = table(NODES, 200)
    assert "bps" not in lines[0]
    assert lines[-1].startswith("2 rows, ")
    assert lines[-1].endswith(" of 8 columns; \\json shows everything")


def test_a_narrow_terminal_has_fewer_columns() -> None:
    wide, narrow = table(NODES, 100), table(NODES, 40)
    assert len(narrow[0].split()) < len(wide[0].split())
    assert narrow[0].split()[0] == "node-name"
    assert all(get_cwidth(line) <= 40 for line in narrow[:-1])


def test_a_table_that_shows_everything_says_no_more() -> None:
    assert table([{"id": "a", "type": "x"}, {"id": "bb", "type": "y"}]) == ["id  type", "a   x", "bb  y"]


def test_members_that_some_do_not_have() -> None:
    assert table([{"id": "a", "speed": 5}, {"id": "b"}]) == ["id  speed", "a       5", "b"]


def test_one_member_each_is_written_side_by_side() -> None:
    lines = table([{"name": f"command-{number}"} for number in range(9)], 40)
    assert lines == [
        "name",
        "command-0  command-3  command-6",
        "command-1  command-4  command-7",
        "command-2  command-5  command-8",
    ]


def test_names_are_whole_however_many_rows_there_are() -> None:
    rows = [{"id": f"job{number}", "type": "stream"} for number in range(20_000)]
    rows[15_001]["id"] = "a-longer-name"
    assert table(rows)[15_002].split() == ["a-longer-name", "stream"]


def test_nested_values_in_a_few_words() -> None:
    assert summary([]) == "[]"
    assert summary([{"name": "b0", "count": 1}, {"name": "b1"}]) == "[b0 b1]"
    assert summary([[1], [2]]) == "[2 items]"
    assert summary({}) == "{}"
    assert summary({"x": [1], "y": 2, "node-name": "top"}) == "{node-name=top y=2 …}"


def test_a_table_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in plain(iter_table([{"id": "a\x1b[2J", "k\n": {"b\x1b": "c\x1b"}, "type": "t"}], 80))


@pytest.mark.parametrize("value", [[], {}, [1], [{}], [{"a": 1}, 2], "text"])
def test_what_is_no_table(value: object) -> None:
    assert not is_table(value)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=60), st.lists(st.integers(), max_size=3))


@given(
    st.lists(st.dictionaries(st.text(min_size=1, max_size=12), values, min_size=1), min_size=1), st.integers(10, 120)
)
def test_no_row_is_wider_than_the_terminal(rows: list[dict[str, Any]], width: int) -> None:
    fragments = [piece for piece in iter_table(rows, width) if piece[0] != "class:notice"]
    assert max((get_cwidth(line) for line in plain(fragments).split("\n")), default=0) <= width
