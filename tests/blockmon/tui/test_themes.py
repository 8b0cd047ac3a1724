"""Theme files, good and bad, and which one a terminal gets."""

import itertools
import math
import os
import re
from pathlib import Path

import pytest

from blockmon.repl.style import build_style
from blockmon.themes import (
    ANSI_COLOURS,
    ThemeError,
    ThemeWatch,
    default_theme_name,
    find_theme,
    load_theme_file,
    load_themes,
    parse_style,
    theme_directories,
)
from blockmon.tui.look import textual_theme
from blockmon.tui.symbols import ASCII, UNICODE, symbols_for
from tests.blockmon.tui.screens import shown, text, twelve_busy_seconds, until

SHIPPED = ["ansi16", "colour-blind", "dark", "high-contrast", "light", "mono"]
COLOURED = ["colour-blind", "dark", "high-contrast", "light"]
TABLES = ("state", "ui", "prompt", "syntax")
DRAWINGS = {"bar-rest", "rule", "scrollbar.background", "scrollbar.button"}
"""Styles that nothing is written in."""

MINIMAL = '[textual]\nprimary = "#112233"\n[state]\nrw = "bold"\n[ui]\ntext = "#ffffff bg:#000000"\n'


def test_the_shipped_themes_are_good() -> None:
    themes, problems = load_themes([theme_directories()[0]])
    assert problems == []
    assert list(themes) == SHIPPED


def test_the_sixteen_colours_theme_uses_no_other() -> None:
    theme = load_themes()[0]["ansi16"]
    for table in (theme.state, theme.ui, theme.prompt, theme.syntax):
        for style in table.values():
            spec = parse_style(style)
            for colour in (spec.color, spec.background):
                assert colour is None or colour in (*ANSI_COLOURS, "ansidefault")
    assert not re.search("#[0-9a-f]{6}", str(dict(theme.textual)))
    # Dark blue on black, and black, white and their bright ones on who knows what, cannot be read everywhere.
    unreadable = {"ansiblue", "ansiblack", "ansibrightblack", "ansigray", "ansiwhite"}
    for name in TABLES:
        for key, style in getattr(theme, name).items():
            spec = parse_style(style)
            assert spec.background or spec.color not in unreadable or key in DRAWINGS, key


@pytest.mark.parametrize("name", SHIPPED)
def test_every_theme_has_every_name(name: str) -> None:
    theme, dark = find_theme(name)[0], find_theme("dark")[0]
    for table in TABLES:
        assert getattr(theme, table).keys() == getattr(dark, table).keys(), table
    assert theme.textual.keys() - {"ansi"} == dark.textual.keys()
    build_style(theme.prompt, theme.syntax)
    textual_theme(theme).to_color_system().generate()


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, after WCAG 2."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(colour: str) -> list[float]:
    """Red, green and blue of #rrggbb without the curve of sRGB."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, after WCAG 2."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("name", COLOURED)
def test_all_that_is_written_can_be_read(name: str) -> None:
    theme = find_theme(name)[0]
    base = parse_style(theme.ui["text"])
    # A row is written on its pane's ground, or on that of the cursor.
    grounds = [parse_style(theme.ui[part]).background for part in ("text", "cursor", "cursor-blurred")]
    least = 7.0 if name == "high-contrast" else 4.5
    poor = {}
    for table in TABLES:
        for key, style in getattr(theme, table).items():
            spec = parse_style(style)
            for ground in [spec.background] if spec.background else grounds:
                ratio = contrast(str(spec.color or base.color), str(ground))
                if ratio < least and key not in DRAWINGS:
                    poor[f"{table}.{key} on {ground}"] = round(ratio, 2)
    assert poor == {}


# How the three kinds of colour blindness see linear red, green and blue (Machado, Oliveira, Fernandes 2009, complete).
SIGHT = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen(colour: str, kind: str) -> tuple[float, float, float]:
    """What such eyes see of #rrggbb, in CIE L*a*b*."""
    parts = linear(colour)
    red, green, blue = (
        min(1.0, max(0.0, sum(factor * part for factor, part in zip(row, parts, strict=True)))) for row in SIGHT[kind]
    )
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("kind", SIGHT)
def test_states_look_different_to_the_colour_blind(kind: str) -> None:
    theme = find_theme("colour-blind")[0]
    colours = {state: str(parse_style(theme.state[state]).color) for state in ("running", "ready", "paused", "failed")}
    for one, other in itertools.combinations(colours, 2):
        distance = math.dist(seen(colours[one], kind), seen(colours[other], kind))
        assert distance >= 20, (one, other)  # 2.3 can just be told apart side by side


def test_no_other_theme_is_safe_for_the_colour_blind_by_chance() -> None:
    """That the check above would notice: green and red of the dark theme are the same to some."""
    state = find_theme("dark")[0].state
    ready, failed = (seen(str(parse_style(state[name]).color), "deutan") for name in ("ready", "failed"))
    assert math.dist(ready, failed) < 20


@pytest.mark.parametrize("name", SHIPPED)
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
        ("ui = 3\n", "ui is to be a table"),
        ('base = "nowhere"\n', "there is no theme 'nowhere' to be laid over"),
        ('base = "broken"\n', "there is no theme 'broken' to be laid over"),
        (MINIMAL + '[palette]\nsea = "bluish"\n', r"\[palette\] sea: 'bluish' is no colour"),
        (MINIMAL + '[palette]\nbold = "#112233"\n', r"\[palette\] bold: the name has a meaning of its own"),
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
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "mono"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "dark"),
        ({"TERM": "vt220"}, "mono"),
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
        ({"LANG": "en_GB.UTF-8", "TERM": "linux"}, False),
    ],
)
def test_the_signs_suit_the_locale(environment: dict[str, str], unicode: bool) -> None:
    assert (symbols_for(environment) is UNICODE) is unicode


def own(name: str, content: str) -> Path:
    """A theme of the user's."""
    folder = theme_directories()[-1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(content)
    return path


def test_a_theme_of_ones_own_need_only_say_what_is_different() -> None:
    own("sea", 'base = "dark"\n[palette]\naccent = "#123456"\n[ui]\nsize = "underline accent"\n')
    theme, problems = find_theme("sea")
    dark = find_theme("dark")[0]
    assert problems == []
    assert theme.ui["size"] == "underline #123456"
    assert theme.ui["parent"] == "bold #123456"
    assert theme.textual["accent"] == "#123456"
    assert theme.ui["rule"] == dark.ui["rule"]
    # One of the same name as a shipped one stands in for it, and may be laid over it.
    own("dark", 'base = "dark"\n[ui]\nrule = "ansired"\n')
    theme = find_theme("dark")[0]
    assert (theme.ui["rule"], theme.ui["size"]) == ("ansired", dark.ui["size"])


def test_themes_that_are_laid_over_each_other_are_an_error() -> None:
    own("one", 'base = "two"\n')
    own("two", 'base = "one"\n')
    with pytest.raises(ThemeError, match="to be laid over"):
        find_theme("one")


def test_a_name_cannot_lead_out_of_the_folder() -> None:
    for name in ("../pyproject", "/etc/passwd", ".", "no\0thing"):
        with pytest.raises(ThemeError, match="there is no theme"):
            find_theme(name)


def test_a_changed_file_is_noticed_once() -> None:
    base = own("under", MINIMAL)
    path = own("mine", 'base = "under"\n')
    watch = ThemeWatch(find_theme("mine")[0])
    assert watch.poll() is None
    base.write_text(MINIMAL.replace("#ffffff", "#00ff00"))
    theme = watch.poll()
    assert theme is not None
    assert "#00ff00" in theme.ui["text"]
    assert watch.poll() is None
    path.write_text("oops")
    with pytest.raises(ThemeError, match=r"mine\.toml"):
        watch.poll()
    assert watch.poll() is None  # told once
    path.write_text(MINIMAL)
    assert watch.poll() is not None
    os.unlink(path)
    with pytest.raises(ThemeError, match="there is no theme 'mine'"):
        watch.poll()


async def test_the_screen_takes_an_edited_theme_in() -> None:
    path = own("mine", 'base = "dark"\n')
    async with shown(theme="mine") as (app, pilot, _):
        path.write_text('base = "dark"\n[ui]\nsize = "bold #010203"\n')
        await until(pilot, lambda: "#010203" in str(app.look.style("size")))
        path.write_text('base = "dark"\n[ui]\nsize = "bolt"\n')
        await until(pilot, lambda: "theme mine: [ui] size: 'bolt'" in text(app))
        assert "#010203" in str(app.look.style("size"))


async def test_f7_goes_through_all_themes_and_tells_of_broken_ones() -> None:
    own("broken", "oops")
    async with shown(theme="dark", size=(120, 30)) as (app, pilot, _):
        found = [app.look.theme.name]
        for _ in range(len(SHIPPED)):
            await pilot.press("f7")
            found.append(app.look.theme.name)
        assert found == [*SHIPPED[2:], *SHIPPED[:3]]
        assert "theme broken: " in text(app)


async def test_a_theme_by_name_at_the_prompt() -> None:
    async with shown(theme="dark") as (app, pilot, _):
        await pilot.press("f5", *"\\theme light", "enter")
        await until(pilot, lambda: app.look.theme.name == "light")
        await pilot.press(*"\\theme nowhere", "enter")
        await until(pilot, lambda: "there is no theme 'nowhere'" in text(app))
