"""The three forms of a command: which one a line is, and what it says. Judged with QEMU 7.2's own schema."""

import json
from pathlib import Path
from typing import Any

import pytest

from blockmon.lang import (
    Empty,
    Form,
    Incomplete,
    ParsedHMP,
    ParsedQMP,
    ParseError,
    Schema,
    classify,
    parse_input,
    parse_size,
)

SCHEMA = Schema(json.loads((Path(__file__).parents[2] / "data/schema-7.2.json").read_text()))


def parse(text: str) -> Any:
    return parse_input(text, SCHEMA.commands, SCHEMA.arguments_of)


def arguments(text: str) -> dict[str, Any]:
    parsed = parse(text)
    assert isinstance(parsed, ParsedQMP)
    return parsed.arguments


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"execute": "query-block"}', Form.JSON),
        ('  {"exec', Form.JSON),
        ("query-block", Form.SHELL),
        ("block-stream device=d0", Form.SHELL),
        ("block-stream d0", Form.SHELL),  # wrong, but about QMP
        ("info block", Form.HMP),
        ("block_resize d0 1M", Form.HMP),
        ("block_resize device=d0 size=1M", Form.SHELL),
        ("device_add virtio-blk,drive=d0", Form.HMP),
        ("quit", Form.SHELL),
        ("hmp quit", Form.HMP),
        ("qmp x-new-command a=b", Form.SHELL),
        ('qmp {"execute": "quit"}', Form.JSON),
        ("hmp", Form.HMP),
        ("", Form.EMPTY),
        ("  # comment", Form.EMPTY),
        ("# comment\nquery-block", Form.SHELL),
    ],
)
def test_form_is_told_by_the_beginning(text: str, form: Form) -> None:
    assert classify(text, {"query-block", "block-stream", "block_resize", "device_add", "quit"}) is form


def test_json_command() -> None:
    parsed = parse('{ "execute": "block_resize",\n  "arguments": {"device": "d0", "size": 1} , "id": 3}')
    assert parsed == ParsedQMP("block_resize", {"device": "d0", "size": 1}, Form.JSON)


def test_json_in_single_quotes_as_qemu_takes_it() -> None:
    parsed = parse(r"""{'execute': 'x', 'arguments': {'a': 'it\'s "so"', "b": 'back\\'}}""")
    assert parsed.arguments == {"a": 'it\'s "so"', "b": "back\\"}


@pytest.mark.parametrize("text", ['{"execute": "quit"', '{"execute": "x", "arguments": {"a": [1,', "{"])
def test_open_json_asks_for_more(text: str) -> None:
    assert isinstance(parse(text), Incomplete)


def test_shell_value_can_go_on_in_the_next_line() -> None:
    assert isinstance(parse('blockdev-add driver=raw file={"driver":'), Incomplete)
    assert arguments('blockdev-add driver=raw file={"driver":\n "null-co"} node-name=n') == {
        "driver": "raw",
        "file": {"driver": "null-co"},
        "node-name": "n",
    }


def test_backslash_continues_a_line() -> None:
    assert isinstance(parse("block-stream device=d0 \\"), Incomplete)
    assert arguments("block-stream device=d0 \\\n  speed=1k\\\n job-id=j") == {
        "device": "d0",
        "speed": 1024,
        "job-id": "j",
    }
    assert parse("info \\\n   block -n") == ParsedHMP("info block -n")


def test_empty_text_and_comments() -> None:
    assert parse(" \n") == Empty()
    assert parse("# one\n\n  # two") == Empty()
    assert parse("# one\ninfo block") == ParsedHMP("info block")


def test_number_sign_within_a_command_is_no_comment() -> None:
    assert arguments("block-stream device=#block123") == {"device": "#block123"}
    assert parse("block_resize #block1 1M") == ParsedHMP("block_resize #block1 1M")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speed=1M", 1 << 20),
        ("speed=1.5G", 3 << 29),
        ("speed=0x10", 16),
        ("speed=7b", 7),
        ("speed=-1", -1),
        # What is no number goes as it is, and the server says what it thinks of it.
        ("speed=fast", "fast"),
        ("speed='1M'", "1M"),
        # A string stays one although it looks like a number or a truth value.
        ("job-id=12", "12"),
        ("job-id=true", "true"),
        ("job-id=", ""),
        ("auto-finalize=off", False),
        ("auto-finalize=true", True),
        ("on-error=stop", "stop"),
        ('job-id="a \\"b\\" \\u00e9"', 'a "b" é'),
        ("job-id='a \"b\" \\n'", 'a "b" \\n'),
    ],
)
def test_values_are_read_as_the_schema_wants_them(text: str, expected: object) -> None:
    (value,) = arguments("block-stream " + text).values()
    assert (value, type(value)) == (expected, type(expected))


def test_values_the_schema_does_not_know_are_told_by_their_look() -> None:
    assert arguments("qmp x-unknown a=1 b=true c=1M d=null e=x") == {
        "a": 1,
        "b": True,
        "c": "1M",
        "d": "null",
        "e": "x",
    }


def test_dotted_keys_and_lists() -> None:
    added = arguments("blockdev-add driver=quorum children.1.driver=null-co children.1.size=1G children.0=a")
    assert added == {"driver": "quorum", "children": ["a", {"driver": "null-co", "size": 1 << 30}]}
    assert arguments("blockdev-add driver=quorum vote-threshold=1 children=['a','b']")["children"] == ["a", "b"]


def test_union_branch_decides_the_types() -> None:
    # "size" is an int of null-co and raw, but "port" of nbd's address is a string.
    assert arguments("blockdev-add driver=raw size=4k file.driver=null-co file.size=8k") == {
        "driver": "raw",
        "size": 4096,
        "file": {"driver": "null-co", "size": 8192},
    }
    assert arguments("blockdev-add driver=nbd server.type=inet server.host=h server.port=10809") == {
        "driver": "nbd",
        "server": {"type": "inet", "host": "h", "port": "10809"},
    }


def test_null_where_the_schema_allows_it() -> None:
    assert arguments("blockdev-add driver=qcow2 file=f backing=null") == {
        "driver": "qcow2",
        "file": "f",
        "backing": None,
    }
    assert arguments("blockdev-add driver=qcow2 file=null")["file"] == "null"


def test_json_filename_is_one_value() -> None:
    assert arguments('block-stream device=json:{"driver": "raw"} speed=1') == {
        "device": 'json:{"driver": "raw"}',
        "speed": 1,
    }


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("block-stream d0", "expected key=value, found 'd0'", 1, 14),
        ("query-block # all", "expected key=value, found '#'; a comment has a line of its own", 1, 13),
        ("block-stream device=d0 speed", "expected key=value, found 'speed'", 1, 24),
        ("block-stream device=d0 \\\n  =3", "expected key=value, found '=3'", 2, 3),
        ('block-stream device="d0', "the quoted value that begins here does not end", 1, 21),
        ("block-stream device='d0'x", "expected a blank behind the value", 1, 25),
        ("block-stream device=a device=b", "'device' has a value already", 1, 23),
        ("blockdev-add file=a file.driver=b", "'file' has a value already", 1, 21),
        ("blockdev-add file.driver=b file=a", "'file' has members already", 1, 28),
        ("blockdev-add children.1=a", "list element 0 is missing", 1, 14),
        ("blockdev-add a..b=a", "'a..b' is not a key", 1, 14),
        ('blockdev-add file={"a":}', "invalid JSON: Expecting value", 1, 24),
        ("query-block\nquery-jobs", "a second command; a line that goes on ends with \\", 2, 1),
        ("info block\n  info jobs", "a second command; a line that goes on ends with \\", 2, 3),
        ('{"execute": "x"} y', "unexpected text behind the JSON object", 1, 18),
        ('{"execute": "x",\n "execute": "y"}', "invalid JSON: duplicate key 'execute'", 1, 1),
        ('{"execute": "x"]', "invalid JSON: expected '}', found ']'", 1, 16),
        ('{"execute": "x\n"}', "invalid JSON: the string that begins here does not end", 1, 13),
        ('{"execute":\n nope}', "invalid JSON: Expecting value", 2, 2),
        ('{"execute": "x", "arguments": {"a": NaN}}', "invalid JSON: 'NaN' is not JSON", 1, 1),
        ('{"arguments": {}}', "QMP input lacks member 'execute'", 1, 1),
        ('{"execute": "x", "fast": 1}', "QMP input member 'fast' is unexpected", 1, 1),
        ('{"execute": 1}', "QMP input member 'execute' must be a string", 1, 1),
        ('{"execute": "x", "arguments": 1}', "QMP input member 'arguments' must be an object", 1, 1),
        ("{" * 2000, "JSON nesting too deep", 1, 1025),
    ],
)
def test_errors_tell_their_place(text: str, message: str, line: int, column: int) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert (caught.value.message, caught.value.line, caught.value.column) == (message, line, column)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("0x1F", 31), ("1k", 1024), ("1K", 1024), (".5M", 1 << 19), ("2T", 2 << 40), ("1E", 1 << 60)]
    + [("", None), ("k", None), ("1kk", None), ("1 k", None), ("1e3", None), ("0x1k", None), ("²", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


class TestSchema:
    def test_narrowed_union_has_only_its_branch(self) -> None:
        members = SCHEMA.arguments_of("blockdev-add")
        assert {"l2-cache-size", "vote-threshold", "node-name"} <= set(members)
        narrowed = members.narrow({"driver": "qcow2"})
        assert "l2-cache-size" in narrowed
        assert "vote-threshold" not in narrowed
        assert "node-name" in narrowed

    def test_members_of_a_branch_are_optional_until_it_is_chosen(self) -> None:
        members = SCHEMA.arguments_of("blockdev-add")
        assert members["vote-threshold"].optional
        assert not members.narrow({"driver": "quorum"})["vote-threshold"].optional

    def test_unknown_command_has_no_arguments(self) -> None:
        assert len(SCHEMA.arguments_of("no-such-command")) == 0

    def test_enum_values(self) -> None:
        assert SCHEMA.arguments_of("block-stream")["on-error"].values == ("report", "ignore", "enospc", "stop", "auto")


@pytest.mark.parametrize(
    ("text", "form"),
    [("query-version", Form.SHELL), ("info block", Form.HMP), ("qemu-io d 'read 0 1'", Form.HMP), ("quit", Form.HMP)],
)
def test_before_the_commands_of_the_server_are_known_a_hyphen_tells(text: str, form: Form) -> None:
    assert classify(text, ()) is form
