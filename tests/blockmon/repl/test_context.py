"""Where the cursor stands, in text that is being typed. The cursor is `|`."""

from __future__ import annotations

import pytest

from blockmon.lang import Form
from blockmon.repl.context import LONGEST, Kind, Spot, spot_at

COMMANDS = ("blockdev-add", "block-stream", "block_resize", "transaction", "quit")


def at(text: str) -> Spot:
    cursor = text.index("|")
    return spot_at(text.replace("|", ""), cursor, COMMANDS)


@pytest.mark.parametrize(
    ("text", "word"),
    [("|", ""), ("blo|", "blo"), ("  blo|ck x", "blo"), ("qmp blockd|", "blockd"), ("query\nblock-st|", "block-st")],
)
def test_the_first_word_is_the_command(text: str, word: str) -> None:
    spot = at(text)
    assert (spot.kind, spot.word) == (Kind.COMMAND, word)
    assert spot.start == text.index("|") - len(word)


@pytest.mark.parametrize(
    ("text", "path", "word"),
    [
        ("block-stream |", (), ""),
        ("block-stream dev|", (), "dev"),
        ("blockdev-add driver=qcow2 file.dr|", ("file",), "dr"),
        ("blockdev-add driver=qcow2 file.|", ("file",), ""),
        ("blockdev-add | driver=qcow2", (), ""),
        ("transaction actions.0.data.no|", ("actions", "0", "data"), "no"),
        ('blockdev-add file={"dri|', ("file",), "dri"),
        ('blockdev-add file={"driver": "file", "file|"} node-name=a', ("file",), "file"),
    ],
)
def test_keys_of_a_shell_line(text: str, path: tuple[str, ...], word: str) -> None:
    spot = at(text)
    assert (spot.form, spot.kind, spot.path, spot.word) == (Form.SHELL, Kind.KEY, path, word)


@pytest.mark.parametrize(
    ("text", "path", "word", "quote"),
    [
        ("block-stream device=|", ("device",), "", ""),
        ("block-stream device=over|lay base=x", ("device",), "over", ""),
        ("blockdev-add file.filename=/a/b|", ("file", "filename"), "/a/b", ""),
        ('blockdev-add file.filename="/a b/c|', ("file", "filename"), "/a b/c", '"'),
        ('blockdev-add file={"driver": "fi|', ("file", "driver"), "fi", '"'),
        ("block-stream \\\n device=a|", ("device",), "a", ""),
    ],
)
def test_values_of_a_shell_line(text: str, path: tuple[str, ...], word: str, quote: str) -> None:
    spot = at(text)
    assert (spot.form, spot.kind, spot.path, spot.word, spot.quote) == (Form.SHELL, Kind.VALUE, path, word, quote)


def test_arguments_on_both_sides_of_the_cursor_count() -> None:
    spot = at('blockdev-add driver=qcow2 | file={"driver": "file"} node-name=a backing=b')
    assert spot.arguments == {"driver": "qcow2", "file": {"driver": "file"}, "node-name": "a", "backing": "b"}
    assert at("blockdev-add file.driver=file file.filename=| driver=raw").arguments["file"] == {
        "driver": "file",
        "filename": "",
    }


@pytest.mark.parametrize(
    ("text", "kind", "path", "word"),
    [
        ('{"execute": "blockdev-add", "arguments": {|', Kind.KEY, (), ""),
        ('{"execute": "blockdev-add", "arguments": {"dr|', Kind.KEY, (), "dr"),
        ('{"execute": "blockdev-add", "arguments": {"dr|": 1}}', Kind.KEY, (), "dr"),
        ('{"execute": "blockdev-add", "arguments": {"driver": |', Kind.VALUE, ("driver",), ""),
        ('{"execute": "blockdev-add", "arguments": {"driver": "qc|', Kind.VALUE, ("driver",), "qc"),
        ('{"execute": "blockdev-add", "arguments": {"a": [{"b": 1}, {"|', Kind.KEY, ("a", 1), ""),
        (
            '{"execute": "blockdev-add",\n "arguments": {\n  "file": {\n    "driver": "|',
            Kind.VALUE,
            ("file", "driver"),
            "",
        ),
        ('{"arguments": {"driver": "|"}, "execute": "blockdev-add"}', Kind.VALUE, ("driver",), ""),
        ("{'execute': 'blockdev-add', 'arguments': {'dri|", Kind.KEY, (), "dri"),
        ('{"execute": "blockdev-add", "arguments": {"read-only": tr|', Kind.VALUE, ("read-only",), "tr"),
    ],
)
def test_json(text: str, kind: Kind, path: tuple[str | int, ...], word: str) -> None:
    spot = at(text)
    assert (spot.form, spot.kind, spot.path, spot.word) == (Form.JSON, kind, path, word)
    assert spot.command == "blockdev-add"


def test_json_message_itself() -> None:
    assert at("{|").raw_message
    assert at('{"exec|').word == "exec"
    spot = at('{"execute": "block|')
    assert (spot.kind, spot.word) == (Kind.COMMAND, "block")


@pytest.mark.parametrize(
    "text",
    [
        '{"execute": "quit"}|',
        '{"execute"|: "quit"}',
        "# a comment |",
        'block-stream device="x"|',
        'blockdev-add file={"a": 1}|',
        '{"id": "x|',
    ],
)
def test_nothing_to_complete(text: str) -> None:
    assert at(text).kind is Kind.NOTHING


def test_hmp_words() -> None:
    spot = at("info block -n ov|")
    assert (spot.kind, spot.words, spot.word) == (Kind.HMP, ("info", "block", "-n"), "ov")
    spot = at('qemu-io base "read |')
    assert (spot.kind, spot.words, spot.word, spot.quote) == (Kind.HMP, ("qemu-io", "base"), "read ", '"')
    assert at("commit |").words == ("commit",)


def test_a_shared_name_is_hmp_from_its_third_word_on() -> None:
    assert at("block_resize ov|").kind is Kind.KEY
    spot = at("block_resize overlay 1|")
    assert (spot.kind, spot.words, spot.word) == (Kind.HMP, ("block_resize", "overlay"), "1")
    assert at("block_resize device=a si|").kind is Kind.KEY


def test_of_pasted_lines_only_the_one_with_the_cursor_counts() -> None:
    spot = at("block-stream device=a\nblock-stream device=b |\nblock-stream device=c")
    assert spot.arguments == {"device": "b"}


def test_long_text_is_left_alone() -> None:
    assert spot_at('{"execute": "' + "x" * LONGEST, 20, COMMANDS).kind is Kind.NOTHING


@pytest.mark.parametrize(
    "text",
    [
        'blockdev-add file={"driver": "qcow2", "file": {"driver": "file", "filename": "a b"}} x."y=\'z',
        '{"execute": "blockdev-add", "arguments": {"a": [1, {"b": [true, null]}], \'c\': "\\""}} ]} "',
        'qemu-io -d x "write -P 1 0 4k" "" tail\\',
        "transaction actions.0..=x =y . .. a=b=c",
    ],
)
def test_no_position_in_any_text_is_too_much(text: str) -> None:
    for end in range(len(text) + 1):
        for cursor in range(end + 1):
            spot = spot_at(text[:end], cursor, COMMANDS)
            assert 0 <= spot.start <= max(cursor, 0)
