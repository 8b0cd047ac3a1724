"""Theme files, good and bad, and which one a terminal gets."""

import re
from pathlib import Path

import pytest

from blockmon.themes import (
    ANSI_COLOURS,
    ThemeError,
    default_theme_name,
    find_theme,
    load_theme_file,
    load_themes,
    parse_style,
    theme_directories,
)
from blockmon.tui.symbols import ASCII, UNICODE, symbols_for
from tests.blockmon.tui.screens import shown, twelve_busy_seconds

MINIMAL = '[textual]\nprimary = "#112233"\n[state]\nrw = "bold"\n[ui]\ntext = "#ffffff bg:#000000"\n'


def test_the_shipped_themes_are_good() -> None:
    themes, problems = load_themes([theme_directories()[0]])
    assert problems == []
    assert {"dark", "ansi16"} <= themes.keys()


def test_the_sixteen_colours_theme_uses_no_other() -> None:
    theme = load_themes()[0]["ansi16"]
    for table in (theme.state, theme.ui, theme.prompt, theme.syntax):
        for style in table.values():
            spec = parse_style(style)
            for colour in (spec.color, spec.background):
                assert colour is None or colour in (*ANSI_COLOURS, "ansidefault")
    assert not re.search("#[0-9a-f]{6}", str(dict(theme.textual)))


@pytest.mark.parametrize("name", ["dark", "ansi16"])
async def test_a_theme_has_all_that_the_screen_draws_with(name: str) -> None:
    async with shown(size=(140, 40), theme=name) as (app, pilot, _):
        await twelve_busy_seconds(pilot)
        for keys in (["down", "f6", "2", "3", "4"], ["f3", "enter"], ["f4", "enter"], ["f2", "slash", "x", "escape"]):
            await pilot.press(*keys)
        await pilot.press("a")
        theme = app.look.theme
        tables = {"": theme.ui, "state": theme.state, "syntax": theme.syntax}
        for style in app.look._styles:
            table, _, member = style.lstrip("+").rpartition(".")
            assert member in tables[table], style


def test_every_status_of_a_job_has_a_style_and_a_sign() -> None:
    statuses = (
        "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting", "concluded",
        "completed", "failed", "cancelled",
    )  # fmt: skip
    for theme in load_themes()[0].values():
        assert set(statuses) <= theme.state.keys()
    for symbols in (UNICODE, ASCII):
        assert set(statuses) <= symbols.states.keys()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[textual", "theme .*broken.toml"),
        ('[textual]\nprimary = "#112233"\n', r"table \[state\] is missing"),
        (MINIMAL.replace("bold", "blod"), "'blod' in style 'blod'"),
        (MINIMAL.replace('"bold"', "7"), r"\[state\] rw: a style string is expected"),
        (MINIMAL.replace("#112233", "reddish"), r"\[textual\] primary"),
        (MINIMAL.replace('primary = "#112233"', ""), "no colour 'primary'"),
        (MINIMAL + "[colours]\n", r"unknown table \[colours\]"),
        (MINIMAL.replace("[state]", "[textual.variables]\nborder = 3\n[state]"), "variables"),
    ],
)
def test_a_broken_theme_is_told_and_left_out(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "broken.toml").write_text(content)
    (tmp_path / "good.toml").write_text(MINIMAL)
    themes, problems = load_themes([tmp_path])
    assert list(themes) == ["good"]
    assert len(problems) == 1
    assert re.search(complaint, problems[0])
    with pytest.raises(ThemeError):
        load_theme_file(tmp_path / "broken.toml")


def test_the_users_own_theme_replaces_a_shipped_one() -> None:
    folder = theme_directories()[-1]
    folder.mkdir(parents=True)
    (folder / "dark.toml").write_text(MINIMAL)
    theme, problems = find_theme("dark")
    assert theme.path.parent == folder
    assert problems == []


def test_asking_for_a_broken_theme_says_what_is_wrong_with_it() -> None:
    folder = theme_directories()[-1]
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("[ui]\n")
    with pytest.raises(ThemeError, match=r"mine.toml: table \[textual\] is missing"):
        find_theme("mine")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TERM": "xterm-256color"}, "dark"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "dark"),
        ({"TERM": "xterm"}, "ansi16"),
        ({"TERM": "linux"}, "ansi16"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "ansi16"),
        ({}, "ansi16"),
    ],
)
def test_the_theme_suits_the_terminal(environment: dict[str, str], name: str) -> None:
    assert default_theme_name(environment) == name


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({"LC_ALL": "C.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LC_ALL": "C", "LANG": "en_GB.UTF-8"}, False),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, False),
        ({"LC_CTYPE": "C.UTF-8"}, True),
        ({}, True),
        ({"LANG": "en_GB.UTF-8", "TERM": "vt220"}, False),
    ],
)
def test_the_signs_suit_the_locale(environment: dict[str, str], unicode: bool) -> None:
    assert (symbols_for(environment) is UNICODE) is unicode
