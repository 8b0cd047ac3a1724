"""
Themes: TOML files with the colours of the screen, the prompt and the syntax. Nothing of Textual or prompt_toolkit here.

Shipped themes lie in `blockmon.resources.themes_directory()`, the user's own in ``blockmon/themes`` under the XDG
configuration directory; one there replaces a shipped one of the same name. A file has the tables

- ``textual``: the members of `textual.theme.Theme`, with a table ``variables``;
- ``state`` and ``ui``: style strings for the states of things and for the parts of the screen;
- ``prompt``: prompt_toolkit's class names to style strings;
- ``syntax``: Pygments' token types by their short names (``k``, ``nt``, ``s`` …) to style strings.

Style strings are prompt_toolkit's: ``bold #rrggbb bg:ansiblue``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockmon.resources import themes_directory

DEFAULT_THEME = "dark"
SIXTEEN_COLOURS_THEME = "ansi16"

ANSI_COLOURS = (
    "ansiblack", "ansired", "ansigreen", "ansiyellow", "ansiblue", "ansimagenta", "ansicyan", "ansigray",
    "ansibrightblack", "ansibrightred", "ansibrightgreen", "ansibrightyellow", "ansibrightblue", "ansibrightmagenta",
    "ansibrightcyan", "ansiwhite",
)  # fmt: skip
"""prompt_toolkit's names of the terminal's 16 colours, in the order of their numbers."""

ATTRIBUTES = ("bold", "dim", "italic", "underline", "reverse", "strike", "blink")

_HEX = re.compile(r"#[0-9a-fA-F]{6}\Z")
_TEXTUAL_COLOUR = re.compile(r"(#[0-9a-fA-F]{6}|ansi_[a-z_]+)\Z")
_VARIABLE = re.compile(r"(#[0-9a-fA-F]{6}( \d+%)?|[a-z_]+( [a-z_]+)*)\Z")
_FLAGS = ("dark", "ansi")
_TABLES = ("textual", "state", "ui", "prompt", "syntax")
_NEEDED = ("textual", "state", "ui")


class ThemeError(Exception):
    """A theme is not there, or its file is not usable; the text says which and why."""


@dataclass(frozen=True, slots=True)
class StyleSpec:
    """A style string taken apart. Colours are ``#rrggbb``, a name of `ANSI_COLOURS`, ``ansidefault``, or None."""

    color: str | None = None
    background: str | None = None
    attributes: frozenset[str] = frozenset()
    off: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ThemeFile:
    """One theme as its file has it."""

    name: str
    path: Path
    textual: Mapping[str, Any]
    state: Mapping[str, str]
    ui: Mapping[str, str]
    prompt: Mapping[str, str] = field(default_factory=dict)
    syntax: Mapping[str, str] = field(default_factory=dict)


def parse_style(text: str) -> StyleSpec:
    """Take a style string apart. Raises `ThemeError` for a word that it cannot hold."""
    color: str | None = None
    background: str | None = None
    on: set[str] = set()
    off: set[str] = set()
    for word in text.split():
        if word in ATTRIBUTES:
            on.add(word)
        elif word.startswith("no") and word[2:] in ATTRIBUTES:
            off.add(word[2:])
        elif word.startswith("bg:"):
            background = _color(word[3:], text)
        else:
            color = _color(word.removeprefix("fg:"), text)
    return StyleSpec(color, background, frozenset(on), frozenset(off))


def _color(word: str, text: str) -> str:
    if _HEX.match(word):
        return word.lower()
    if word in ANSI_COLOURS or word == "ansidefault":
        return word
    raise ThemeError(f"'{word}' in style '{text}' is neither an attribute nor a colour")


def load_theme_file(path: Path) -> ThemeFile:
    """Read one theme. Raises `ThemeError` naming the file and what is wrong with it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ThemeError(f"theme {path}: {error}") from error
    try:
        return _checked(path, content)
    except ThemeError as error:
        raise ThemeError(f"theme {path}: {error}") from error


def _checked(path: Path, content: Mapping[str, Any]) -> ThemeFile:
    for name in content:
        if name not in _TABLES:
            raise ThemeError(f"unknown table [{name}]")
    for name in _NEEDED:
        if not isinstance(content.get(name), dict):
            raise ThemeError(f"table [{name}] is missing")
    _check_textual(content["textual"])
    for table in _TABLES[1:]:
        for key, value in content.get(table, {}).items():
            if not isinstance(value, str):
                raise ThemeError(f"[{table}] {key}: a style string is expected")
            try:
                parse_style(value)
            except ThemeError as error:
                raise ThemeError(f"[{table}] {key}: {error}") from error
    return ThemeFile(
        name=path.stem,
        path=path,
        textual=content["textual"],
        state=content["state"],
        ui=content["ui"],
        prompt=content.get("prompt", {}),
        syntax=content.get("syntax", {}),
    )


def _check_textual(table: Mapping[str, Any]) -> None:
    """Textual would only notice a wrong colour when the screen is up already."""
    if "primary" not in table:
        raise ThemeError("[textual] has no colour 'primary'")
    for name, value in table.items():
        if name in _FLAGS:
            good = isinstance(value, bool)
        elif name == "variables":
            good = isinstance(value, dict) and all(
                isinstance(text, str) and _VARIABLE.match(text) for text in value.values()
            )
        else:
            good = isinstance(value, str) and bool(_TEXTUAL_COLOUR.match(value))
        if not good:
            raise ThemeError(f"[textual] {name}: {value!r} cannot be used")


def theme_directories() -> list[Path]:
    """Where themes are looked for; later ones win."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [themes_directory(), Path(home) / "blockmon" / "themes"]


def load_themes(directories: Iterable[Path] | None = None) -> tuple[dict[str, ThemeFile], list[str]]:
    """All usable themes by name, and for each unusable file a line that says why it was left out."""
    themes: dict[str, ThemeFile] = {}
    problems: list[str] = []
    for directory in theme_directories() if directories is None else directories:
        for path in sorted(directory.glob("*.toml")):
            try:
                theme = load_theme_file(path)
            except ThemeError as error:
                problems.append(str(error))
            else:
                themes[theme.name] = theme
    return themes, problems


def default_theme_name(environ: Mapping[str, str]) -> str:
    """The theme for a terminal that the environment describes: 16 colours where it has no more or wants none."""
    if environ.get("NO_COLOR"):
        return SIXTEEN_COLOURS_THEME
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return DEFAULT_THEME
    term = environ.get("TERM", "")
    many = "256color" in term or "direct" in term or term.split("-")[0] in ("kitty", "alacritty", "foot", "wezterm")
    return DEFAULT_THEME if many else SIXTEEN_COLOURS_THEME


def find_theme(name: str | None, environ: Mapping[str, str] | None = None) -> tuple[ThemeFile, list[str]]:
    """
    The theme called *name*, or the one that suits the terminal; and the problems with other files.

    Raises `ThemeError` where there is none of that name, saying which there are.
    """
    themes, problems = load_themes()
    wanted = name or default_theme_name(os.environ if environ is None else environ)
    theme = themes.get(wanted)
    if theme is None:
        broken = [problem for problem in problems if f"/{wanted}.toml:" in problem]
        known = ", ".join(sorted(themes)) or "none"
        raise ThemeError(broken[0] if broken else f"there is no theme '{wanted}' (there are: {known})")
    return theme, problems
