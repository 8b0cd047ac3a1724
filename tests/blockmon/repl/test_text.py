"""Help parsing, answers, errors, hints, highlighting, styles and the transcript: all that is text in, text out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.document import Document

from blockmon.lang import ParseError
from blockmon.repl import lexers
from blockmon.repl.hints import hint_for
from blockmon.repl.hmp_help import HMPHelp
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.printers import format_answer, format_error, format_event, format_parse_error, plain
from blockmon.repl.style import build_style
from blockmon.repl.transcript import LONGEST_LINE, Transcript
from tests.blockmon.repl.fakes import HELP, INFO_HELP, Server, event, knowledge_of

# HMP help ------------------------------------------------------------------------------------------------------------


def test_help_with_aliases_flags_choices_and_lines_that_go_on() -> None:
    found = HMPHelp.from_text(HELP.replace("\n", "\r\n"), INFO_HELP)
    cancel = found.commands["block_job_cancel"]
    assert cancel.help == "stop a job (-f at once, without waiting)"
    assert [(a.name, a.flag, a.optional) for a in cancel.arguments] == [("-f", True, True), ("device", False, False)]
    assert found.commands["q"] is found.commands["quit"]
    assert [(a.name, a.optional) for a in found.commands["block_stream"].arguments] == [
        ("device", False),
        ("speed", True),
        ("base", True),
    ]
    assert found.commands["commit"].arguments[0].choices == ("device", "all")
    assert found.commands["nbd_server_stop"].usage == ""
    assert found.commands["qemu-io"].arguments[-1].name == "command"
    assert set(found.info) == {"block", "block-jobs"}


def test_arguments_over_several_lines() -> None:
    text = "drive_add [-n] slot\n[file=file][,if=type]\n[,unit=m] -- add a drive\nnext  -- the next one\n"
    found = HMPHelp.from_text(text)
    assert found.commands["drive_add"].usage == "[-n] slot [file=file][,if=type] [,unit=m]"
    assert "next" in found.commands


# Answers -------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(VALUES.filter(lambda value: not isinstance(value, str)), st.integers(20, 120))
def test_printed_json_is_the_same_json(value: Any, width: int) -> None:
    text = plain(format_answer(value, width))
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.splitlines())


def test_what_fits_stands_on_one_line() -> None:
    value = {"a": [1, 2, {"b": True}], "c": None}
    assert plain(format_answer(value, 80)) == '{"a": [1, 2, {"b": true}], "c": null}\n'
    assert plain(format_answer(value, 30)) == '{\n  "a": [1, 2, {"b": true}],\n  "c": null\n}\n'
    assert plain(format_answer({}, 80)) == "{}\n"
    assert plain(format_answer([], 80)) == "[]\n"


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**9)), max_size=4), st.integers(40, 100))
def test_no_line_is_wider_than_the_terminal(value: Any, width: int) -> None:
    assert max(len(line) for line in plain(format_answer(value, width)).splitlines()) <= width


def test_hmp_text_is_printed_as_it_is_but_cannot_steer_the_terminal() -> None:
    text = plain(format_answer("vda: /img/a\x1b[2J.qcow2 (qcow2)\r\n    Cache mode:\twriteback\r\n"))
    assert text == "vda: /img/a\\x1b[2J.qcow2 (qcow2)\n    Cache mode: writeback\n"
    assert format_answer("") == []


def test_json_strings_cannot_steer_the_terminal() -> None:
    text = plain(format_answer({"file\x1b": "a\u202eb\x9b"}))
    assert text == '{"file\\u001b": "a\\u202eb\\u009b"}\n'


def test_errors_show_class_and_message() -> None:
    assert plain(format_error("DeviceNotFound", "Device 'x' not found")) == "DeviceNotFound: Device 'x' not found\n"


def test_syntax_errors_show_the_place() -> None:
    error = ParseError("expected key=value", 2, 4)
    assert plain(format_parse_error(error, "one\ntwo three")) == (
        "  two three\n     ^\nSyntax: expected key=value (line 2)\n"
    )
    long = format_parse_error(ParseError("bad", 1, 1001), "x" * 1000 + "y" + "z" * 500, width=40)
    line, caret, _ = plain(long).splitlines()
    assert len(line) <= 40
    assert line[caret.index("^")] == "y"


def test_events_are_one_line_with_the_time() -> None:
    text = plain(format_event(event("JOB_STATUS_CHANGE", id="a\nb", status="running")))
    assert text.endswith(" JOB_STATUS_CHANGE id=a\\nb status=running\n")
    assert text.count("\n") == 1


# Hints ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def knowledge() -> Knowledge:
    return await knowledge_of(Server())


def hint(text: str, knowledge: Knowledge, width: int = 200) -> str:
    fragments = hint_for(text, len(text), knowledge, width)
    return "".join(f"*{f[1]}*" if f[0] == "class:hint.current" else f[1] for f in fragments)


async def test_hints_show_the_signature_and_the_place(knowledge: Knowledge) -> None:
    assert hint("block-stream ", knowledge).startswith("block-stream device [job-id] [base]")
    assert "*device: device or node*" in hint("block-stream device=", knowledge)
    assert "*[on-error: report|ignore|enospc|stop|auto]*" in hint("block-stream device=x on-error=", knowledge)
    assert "*[top: file name of a layer (deprecated)]*" in hint("block-commit device=x top=", knowledge)
    assert hint("query-version ", knowledge) == "query-version takes no arguments"
    assert hint("drive-backup ", knowledge).startswith("drive-backup (deprecated) device")
    assert hint("nonsense ", knowledge) == ""
    assert hint("", knowledge) == ""


async def test_hints_follow_into_nested_arguments(knowledge: Knowledge) -> None:
    text = '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": {"driver": "file", "filename": "'
    shown = hint(text, knowledge)
    assert shown.startswith("blockdev-add › file driver")
    assert "*filename: file name*" in shown


async def test_hints_say_what_the_value_is_for(knowledge: Knowledge) -> None:
    shown = hint("block-stream device=x speed=", knowledge)
    assert "*[speed: size]* — bytes per second, 0 for no limit [on-error]" in shown
    assert hint("block-stream device=x speed=", knowledge, 80).startswith("block-stream … ")
    assert "*[speed: size]* — bytes per second, 0 for no limit" in hint("block-stream device=x speed=", knowledge, 80)
    assert "—" not in hint("block-stream device=x ", knowledge)


async def test_hints_for_items_of_lists(knowledge: Knowledge) -> None:
    shown = hint("block-dirty-bitmap-merge node=a target=b bitmaps.0=", knowledge)
    assert shown == "block-dirty-bitmap-merge › bitmaps *0: bitmap or {…}*"


async def test_hints_behind_a_value_of_json(knowledge: Knowledge) -> None:
    text = '{"execute": "block-stream", "arguments": {"device": "a"'
    assert hint(text, knowledge).startswith("block-stream device [job-id]")
    assert hint('{"execute": "query-jobs", ', knowledge) == "query-jobs takes no arguments"


async def test_hints_inside_qemu_ios_command(knowledge: Knowledge) -> None:
    assert hint('qemu-io base "discard 0 ', knowledge) == "qemu-io › discard *[-C] [-q] offset length*"
    assert hint("block_job_cancel ", knowledge, 60).startswith("block_job_cancel [-f] *device* — stop a job")
    assert hint('qemu-io base "disc', knowledge).startswith("qemu-io [-d] [device] *command*")


async def test_hints_mark_what_is_required_and_not_given(knowledge: Knowledge) -> None:
    text = "blockdev-mirror device=a "
    marked = [f[1].strip() for f in hint_for(text, len(text), knowledge, 200) if "required" in f[0]]
    assert marked == ["target", "sync"]


async def test_hints_for_hmp(knowledge: Knowledge) -> None:
    assert hint("block_stream a ", knowledge) == "block_stream device *[speed]* [base] — copy a backing file's data up"
    assert hint("info block -n ", knowledge).startswith("info block [-n] [-v] *[device]* —")


@pytest.mark.parametrize("width", [4, 10, 20, 40, 79])
@pytest.mark.parametrize("text", ["block-stream device=a auto-dismiss=", "blockdev-add driver=qcow2 ", "info block "])
async def test_hints_fit(knowledge: Knowledge, text: str, width: int) -> None:
    assert len(hint(text, knowledge, width).replace("*", "")) <= width


async def test_the_current_argument_stays_in_a_narrow_hint(knowledge: Knowledge) -> None:
    shown = hint("block-stream device=a auto-dismiss=", knowledge, 60)
    assert "*[auto-dismiss: on|off]*" in shown
    assert shown.startswith("block-stream …")


# Highlighting --------------------------------------------------------------------------------------------------------


def colours(text: str) -> list[tuple[str, str]]:
    found = lexers.lexed(text, lexers.InputLexer())
    return [(style.removeprefix("class:pygments."), piece) for style, piece in found if piece.strip()]


def test_highlighting_of_a_shell_line() -> None:
    assert colours("block-stream device=d0 speed=1M auto-dismiss=off") == [
        ("keyword", "block-stream"),
        ("name.attribute", "device"),
        ("operator", "="),
        ("literal.string", "d0"),
        ("name.attribute", "speed"),
        ("operator", "="),
        ("literal.number", "1M"),
        ("name.attribute", "auto-dismiss"),
        ("operator", "="),
        ("keyword.constant", "off"),
    ]


def test_highlighting_of_json_and_comments() -> None:
    found = colours('# say\n{"execute": "quit", "n": [1, true]} x')
    assert found[0] == ("comment.single", "# say")
    assert ("name.tag", '"execute"') in found
    assert ("literal.string", '"quit"') in found
    assert ("keyword.constant", "true") in found
    assert colours('blockdev-add file={"driver": "file"} x=1')[-1] == ("literal.number", "1")
    assert ("error", "!") in colours('{"a" !')


@given(st.text(alphabet="ab1{}[]:,=\"'\\ \n#-. ", max_size=60))
def test_no_input_is_lost_or_changed_by_highlighting(text: str) -> None:
    assert "".join(piece for _, piece in lexers.lexed(text, lexers.InputLexer())) == text
    assert "".join(piece for _, piece in lexers.lexed(text, lexers.HMPAnswerLexer())) == text
    line_of = lexers.PromptInputLexer().lex_document(Document(text))
    for number, line in enumerate(text.split("\n")):
        assert "".join(fragment[1] for fragment in line_of(number)) == line


def test_an_unknown_command_is_not_marked_as_one() -> None:
    lexer = lexers.PromptInputLexer(lambda: {"quit"})
    assert lexer.lex_document(Document("quit"))(0)[0][0] == "class:pygments.keyword"
    assert lexer.lex_document(Document("quitt"))(0)[0][0] == "class:pygments.name"


def test_style_tables() -> None:
    style = build_style({"prompt": "ansired bold", "": "ansigreen"}, {"kc": "ansiblue", "string": "italic", "m": "dim"})
    assert style.get_attrs_for_style_str("class:prompt").color == "ansired"
    assert style.get_attrs_for_style_str("class:pygments.keyword.constant").color == "ansiblue"
    assert style.get_attrs_for_style_str("class:pygments.literal.string").italic
    assert style.get_attrs_for_style_str("class:pygments.literal.number.integer").dim
    assert style.get_attrs_for_style_str("class:hint.current").bold
    with pytest.raises(ValueError, match="nocolour"):
        build_style({"prompt": "nocolour"}, {})


# The transcript ------------------------------------------------------------------------------------------------------


def rows(transcript: Transcript, width: int, height: int) -> list[str]:
    return ["".join(text for _, text in row) for row in transcript.view(width, height)]


def test_transcript_shows_its_end_and_scrolls() -> None:
    transcript = Transcript()
    transcript.write([("", "".join(f"{number}\n" for number in range(10)))], 20)
    assert rows(transcript, 20, 3) == ["7", "8", "9"]
    transcript.scroll(4, 20, 3)
    assert rows(transcript, 20, 3) == ["3", "4", "5"]
    transcript.scroll(1000, 20, 3)
    assert rows(transcript, 20, 3) == ["0", "1", "2"]
    transcript.scroll(-1000, 20, 3)
    assert rows(transcript, 20, 3) == ["7", "8", "9"]


def test_a_view_that_is_scrolled_up_stays_while_output_comes() -> None:
    transcript = Transcript()
    transcript.write([("", "".join(f"{number}\n" for number in range(10)))], 8)
    transcript.scroll(4, 8, 3)
    transcript.write([("", "a line of several rows"), ("", "\nopen")], 8)
    transcript.write([("", " and on and on\n")], 8)
    assert rows(transcript, 8, 3) == ["3", "4", "5"]


def test_long_lines_wrap_and_follow_the_width() -> None:
    transcript = Transcript()
    transcript.write([("a", "abc"), ("b", "defgh\n"), ("", "\n"), ("", "x\n")], 4)
    assert rows(transcript, 4, 9) == ["abcd", "efgh", "", "x"]
    assert rows(transcript, 3, 9) == ["abc", "def", "gh", "", "x"]
    assert transcript.view(4, 9)[0] == [("a", "abc"), ("b", "d")]
    assert transcript.height(3, 100) == 5


def test_wide_characters_are_not_cut_in_two() -> None:
    transcript = Transcript()
    transcript.write([("", "a世界b\n")], 4)
    assert rows(transcript, 4, 9) == ["a世", "界b"]
    assert rows(transcript, 1, 9) == ["a", "b"]


def test_the_transcript_is_bounded() -> None:
    transcript = Transcript(most_lines=5)
    transcript.write([("", "".join(f"{number}\n" for number in range(100)))], 20)
    assert len(transcript) == 5
    transcript.write([("", "y" * (LONGEST_LINE + 50) + "\n")], 20)
    assert len(transcript.text(last=1)) == LONGEST_LINE + len(" … (cut)")


@given(st.lists(st.sampled_from(["ab", "\n", "c\n", "\n\n", "d\ne"]), max_size=12), st.integers(1, 5))
def test_output_in_pieces_is_the_same_as_at_once(pieces: list[str], width: int) -> None:
    split, whole = Transcript(), Transcript()
    for piece in pieces:
        split.write([("", piece)], width)
    whole.write([("", "".join(pieces))], width)
    assert rows(split, width, 99) == rows(whole, width, 99)
    assert split.text() == "".join(pieces).removesuffix("\n")
