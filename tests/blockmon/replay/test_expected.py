"""Expected answers without an engine: what matches, what an update keeps, what becomes of the file."""

import os
from pathlib import Path

import pytest

from blockmon.replay.expected import Expected, lines_of, literal
from blockmon.replay.printed import printed
from tests.blockmon.replay.conftest import Play


@pytest.mark.parametrize(
    ("expected", "actual", "matches"),
    [
        ([], [], True),
        ([], ["a"], False),
        (["a"], [], False),
        (["a  "], ["a"], True),
        (["..."], [], True),
        (["..."], ["a", "b"], True),
        (["...", "b"], ["a", "b", "b"], True),
        (["a", "...", "b"], ["a", "b"], True),
        (["a", "...", "b"], ["a", "b", "c"], False),
        (["...", "a", "...", "a", "..."], ["a"], False),
        (["...", "a", "...", "a", "..."], ["a", "x", "a"], True),
        (["a* (glob)"], ["abc"], True),
        (["a[0-9]? (glob)"], ["a1x"], True),
        (["*a (glob)"], ["abc"], False),
        ([r"\d+ bytes (re)"], ["12 bytes"], True),
        ([r"\d+ (re)"], ["12 bytes"], False),
        ([" (re)"], [""], True),
    ],
)
def test_matching(expected: list[str], actual: list[str], matches: bool) -> None:
    assert Expected(expected).matches(actual) is matches


@pytest.mark.parametrize(
    ("expected", "actual", "updated"),
    [
        (["a"], ["b"], ["b"]),
        ([], ["a", ""], ["a", " (re)"]),
        (["a"], [], []),
        (["x* (glob)", "old"], ["xyz", "new"], ["x* (glob)", "new"]),
        (["x* (glob)", "a", r"\d (re)"], ["xy", "a", "b", "5"], ["x* (glob)", "a", "b", r"\d (re)"]),
        (["a", "...", "b"], ["a", "1", "2", "b", "c"], ["a", "...", "b", "c"]),
        (["a", "...", "b"], ["a", "1", "2"], ["a", "1", "2"]),
        (["...", "b"], ["1", "b", "2"], ["...", "b", "2"]),
        (["a", "..."], ["a", "1", "2"], ["a", "..."]),
        (["old"], ["..."], [r"\.\.\. (re)"]),
        (["old"], ["  @end of it"], [r"  @end of it (re)"]),
        (["old"], ["a (b) (re)"], [r"a \(b\) \(re\) (re)"]),
    ],
)
def test_update_keeps_what_still_matches(expected: list[str], actual: list[str], updated: list[str]) -> None:
    subject = Expected(expected)
    lines = [expected[line] if isinstance(line, int) else line for line in subject.updated(actual)]
    assert lines == updated
    assert Expected(lines).matches(actual)


@pytest.mark.parametrize("line", ["", "...", "x (re)", "* (glob)", "a.b [c] (re)", "plain"])
def test_literal_line_expects_itself_only(line: str) -> None:
    assert Expected([literal(line)]).matches([line])
    assert not Expected([literal(line)]).matches([line + "x"])


def test_printed_form() -> None:
    assert printed({"a": [1, None, True, "é"]}) == '{"a": [1, null, true, "\\u00e9"]}'
    long = {"name": "n" * 60, "list": [{"x": "y" * 60}, {"z": "w" * 60}], "empty": {}}
    assert printed(long).split("\n") == [
        "{",
        f'  "name": "{"n" * 60}",',
        '  "list": [',
        f'    {{"x": "{"y" * 60}"}},',
        f'    {{"z": "{"w" * 60}"}}',
        "  ],",
        '  "empty": {}',
        "}",
    ]
    assert lines_of("") == []


async def update(play: Play, tmp_path: Path, text: str, **options: bool) -> str:
    played = await play(text, update=True, **options)
    assert played.told == []
    assert played.runner.updates.write() == {}
    assert os.listdir(tmp_path) == ["s"]
    return (tmp_path / "s").read_text()


async def test_file_gets_the_answers(play: Play, tmp_path: Path) -> None:
    text = (
        "query-jobs\n----\nold\nolder\n\n# kept\nquery-version\n----\n{* (glob)\n...\n\n"
        "query-version\n----\n[* (glob)\n\nquery-jobs\n ----\n\n@echo\n"
    )
    version = '{"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "blockmon"}'
    assert await update(play, tmp_path, text) == (
        "query-jobs\n----\n[]\n\n# kept\nquery-version\n----\n{* (glob)\n...\n\n"
        f"query-version\n----\n{version}\n\nquery-jobs\n ----\n[]\n\n@echo\n"
    )
    assert (await play("")).told == []


async def test_last_line_without_an_end_and_dos_lines(play: Play, tmp_path: Path) -> None:
    assert await update(play, tmp_path, "query-jobs\n----\nold") == "query-jobs\n----\n[]\n"
    assert await update(play, tmp_path, "query-jobs\n----") == "query-jobs\n----\n[]\n"
    (tmp_path / "s").write_bytes(b"query-jobs\r\n----\r\nold\r\n\r\n@echo x\r\n")
    await update(play, tmp_path, "")
    assert (tmp_path / "s").read_bytes() == b"query-jobs\r\n----\r\n[]\r\n\r\n@echo x\r\n"


async def test_rights_and_links_stay(play: Play, tmp_path: Path) -> None:
    target = tmp_path / "sub"
    target.mkdir()
    (target / "real").write_text("query-jobs\n----\n")
    (target / "real").chmod(0o741)
    (tmp_path / "s").symlink_to("sub/real")
    played = await play("", update=True)
    played.runner.updates.write()
    assert (tmp_path / "s").is_symlink()
    assert (target / "real").read_text() == "query-jobs\n----\n[]\n"
    assert (target / "real").stat().st_mode & 0o7777 == 0o741


async def test_lines_with_variables_stay(play: Play, tmp_path: Path) -> None:
    text = "@set N jobs\n@shell echo $N; echo new\n----\n${N}\nold\n"
    assert (await update(play, tmp_path, text, allow_shell=True)).endswith("----\n${N}\nnew\n")


async def test_rounds_that_differ(play: Play, tmp_path: Path) -> None:
    text = "@for N in 1 2\n@shell echo $N\n----\n\n@end\n"
    played = await play(text, update=True, allow_shell=True)
    assert played.told == ["s:3:1: the answer is another in each round, and there is one text for all of them"]
    assert (await play(text.replace("----\n", "----\n[0-9] (glob)\n"), update=True, allow_shell=True)).told == []


async def test_file_that_changed_meanwhile_is_left_alone(play: Play, tmp_path: Path) -> None:
    played = await play("query-jobs\n----\nold\n", update=True)
    (tmp_path / "s").write_text("other\n\n\n")
    assert played.runner.updates.write() == {str(tmp_path / "s"): "not updated: the file has changed while it ran"}
    assert (tmp_path / "s").read_text() == "other\n\n\n"


def test_a_difference_never_blames_the_line_for_any_lines() -> None:
    difference = Expected(["{", "...", "wrong", "}"]).difference(["{", "right", "}"])
    assert difference.splitlines() == ["     {", "     ...", "    -wrong", "    +right", "     }"]
    assert "-..." not in Expected(["...", "a", "...", "b"]).difference(["c"])


@pytest.mark.parametrize("update", [False, True])
async def test_a_directive_in_an_expected_answer_is_a_mistake(play: Play, tmp_path: Path, update: bool) -> None:
    text = "query-jobs\n----\n[]\n  @echo hi\n"
    played = await play(text, update=update)
    assert played.told == ["s:4:3: @echo stands in an expected answer, which ends at an empty line"]
    assert (played.status, (tmp_path / "s").read_text()) == (2, text)
    assert (await play("@repeat 1\nquery-jobs\n----\n[]\n@end\n")).told[0].startswith("s:5:1: @end stands in an expect")
    assert (await play("query-jobs\n----\n...\n@nobody\n@end (re)\n")).status == 1
