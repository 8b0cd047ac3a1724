"""
Themes: TOML files with the colours of the screen, the prompt and the syntax. Nothing of Textual or prompt_toolkit here.

Shipped themes lie in `blockmon.resources.themes_directory()`, the user's own in ``themes`` beside the configuration
file; one there replaces a shipped one of the same name. A file has

- ``base``: the name of a theme that it is laid over, so that a user's theme need only say what differs;
- ``palette``: names for colours, good in all style strings and in ``textual``; the empty string is "no colour of its
  own". A theme laid over another may replace these alone;
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

from blockmon.config import config_directory
from blockmon.resources import themes_directory

DEFAULT_THEME = "dark"
SIXTEEN_COLOURS_THEME = "ansi16"
NO_COLOUR_THEME = "mono"

ANSI_COLOURS = (
    "ansiblack", "ansired", "ansigreen", "ansiyellow", "ansiblue", "ansimagenta", "ansicyan", "ansigray",
    "ansibrightblack", "ansibrightred", "ansibrightgreen", "ansibrightyellow", "ansibrightblue", "ansibrightmagenta",
    "ansibrightcyan", "ansiwhite",
)  # fmt: skip
"""prompt_toolkit's names of the terminal's 16 colours, in the order of their numbers."""

ATTRIBUTES = ("bold", "dim", "italic", "underline", "reverse", "strike", "blink")

_NAMED = (*ANSI_COLOURS, "ansidefault")
_NAME = re.compile(r"[^/\\.\0][^/\\\0]*\Z")
_HEX = re.compile(r"#[0-9a-fA-F]{6}\Z")
_TEXTUAL_COLOUR = re.compile(r"(#[0-9a-fA-F]{6}|ansi_[a-z_]+)\Z")
_VARIABLE = re.compile(r"(#[0-9a-fA-F]{6}( \d+%)?|[a-z_]+( [a-z_]+)*)\Z")
_FLAGS = ("dark", "ansi")
_TABLES = ("textual", "state", "ui", "prompt", "syntax")
_DEEPEST = 8
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
    sources: tuple[Path, ...] = ()
    """The files that it was made of: its own, and those that it is laid over."""

    @property
    def colourless(self) -> bool:
        """Whether it names no colour at all, so that none may reach the terminal."""
        styles = (style for table in (self.state, self.ui, self.prompt, self.syntax) for style in table.values())
        specs = (parse_style(style) for style in styles)
        return all(colour in (None, "ansidefault") for spec in specs for colour in (spec.color, spec.background))


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
    if word in _NAMED:
        return word
    raise ThemeError(f"'{word}' in style '{text}' is neither an attribute nor a colour")


def load_theme_file(path: Path) -> ThemeFile:
    """Read one theme. Raises `ThemeError` naming the file and what is wrong with it."""
    content, sources = _read(path, ())
    try:
        return _checked(path, content, sources)
    except ThemeError as error:
        raise ThemeError(f"theme {path}: {error}") from error


def _read(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The tables of a theme laid over those of its base, and the files read."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ThemeError(f"theme {path}: {error}") from error
    base = content.pop("base", None)
    for name, table in content.items():
        if name not in (*_TABLES, "palette"):
            raise ThemeError(f"theme {path}: unknown table [{name}]")
        if not isinstance(table, dict):
            raise ThemeError(f"theme {path}: {name} is to be a table")
    if base is None:
        return content, (path,)
    above = (*above, path)
    under = _base(path, base)
    if under is None or under in above or len(above) > _DEEPEST:
        raise ThemeError(f"theme {path}: there is no theme {base!r} to be laid over")
    tables, sources = _read(under, above)
    for name, table in content.items():
        merged = {**tables.get(name, {}), **table}
        if name == "textual" and isinstance(table.get("variables"), dict):
            merged["variables"] = {**tables.get(name, {}).get("variables", {}), **table["variables"]}
        tables[name] = merged
    return tables, (path, *sources)


def _base(path: Path, name: object) -> Path | None:
    """The file of the theme that *path* is laid over; its own name stands for the shipped one."""
    for directory in (path.parent, themes_directory()):
        found = directory / f"{name}.toml"
        if found != path and found.is_file():
            return found
    return None


def _checked(path: Path, content: Mapping[str, Any], sources: tuple[Path, ...]) -> ThemeFile:
    for name in _NEEDED:
        if name not in content:
            raise ThemeError(f"table [{name}] is missing")
    palette = content.get("palette", {})
    for name, colour in palette.items():
        if not isinstance(colour, str) or (colour and not _HEX.match(colour) and colour not in _NAMED):
            raise ThemeError(f"[palette] {name}: {colour!r} is no colour")
        if name in ATTRIBUTES or name in _NAMED:
            raise ThemeError(f"[palette] {name}: the name has a meaning of its own")
    textual = dict(content["textual"])
    for name, value in textual.items():
        if isinstance(value, str) and value in palette:
            textual[name] = palette[value]
    if isinstance(textual.get("variables"), dict):
        variables = textual["variables"].items()
        textual["variables"] = {name: palette.get(value, value) for name, value in variables}
    _check_textual(textual)
    styles: dict[str, dict[str, str]] = {}
    for table in _TABLES[1:]:
        styles[table] = {}
        for key, value in content.get(table, {}).items():
            if not isinstance(value, str):
                raise ThemeError(f"[{table}] {key}: a style string is expected")
            styles[table][key] = style = _resolved(value, palette)
            try:
                parse_style(style)
            except ThemeError as error:
                raise ThemeError(f"[{table}] {key}: {error}") from error
    return ThemeFile(name=path.stem, path=path, textual=textual, sources=sources, **styles)


def _resolved(style: str, palette: Mapping[str, str]) -> str:
    """*style* with the colours that the palette's names stand for."""
    words = []
    for word in style.split():
        prefix = "bg:" if word.startswith("bg:") else "fg:" if word.startswith("fg:") else ""
        colour = palette.get(word.removeprefix(prefix))
        if colour is None:
            words.append(word)
        elif colour:
            words.append(prefix + colour)
    return " ".join(words)


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
    return [themes_directory(), config_directory() / "themes"]


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


def theme_names() -> list[str]:
    """The names of all theme files, usable or not."""
    return sorted({path.stem for directory in theme_directories() for path in directory.glob("*.toml")})


def brief(problem: str) -> str:
    """What a `ThemeError` says, with the theme's name in place of its path, for where there is little room."""
    return re.sub(r"^theme .*?([^/\\]+)\.toml: ", r"theme \1: ", problem)


def default_theme_name(environ: Mapping[str, str]) -> str:
    """The theme for a terminal that the environment describes: fewer colours where it has or wants no more."""
    if environ.get("NO_COLOR") or environ.get("TERM", "").startswith(("vt1", "vt2", "vt3", "dumb")):
        return NO_COLOUR_THEME
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return DEFAULT_THEME
    term = environ.get("TERM", "")
    many = "256color" in term or "direct" in term or term.split("-")[0] in ("kitty", "alacritty", "foot", "wezterm")
    return DEFAULT_THEME if many else SIXTEEN_COLOURS_THEME


def find_theme(name: str | None, environ: Mapping[str, str] | None = None) -> tuple[ThemeFile, list[str]]:
    """
    The theme called *name*, or the one that suits the terminal; and the problems with the user's other files.

    Raises `ThemeError` where there is none of that name, saying which there are, or where its file is broken.
    """
    shipped, own = theme_directories()
    wanted = name or default_theme_name(os.environ if environ is None else environ)
    themes, problems = load_themes([own])
    theme = themes.get(wanted)
    if theme is not None:
        return theme, problems
    if (own / f"{wanted}.toml").is_file() and name is not None:
        raise ThemeError(next((problem for problem in problems if f"/{wanted}.toml:" in problem), problems[0]))
    path = shipped / f"{wanted}.toml"
    if not _NAME.match(wanted) or not path.is_file():
        raise ThemeError(f"there is no theme '{wanted}' (there are: {', '.join(theme_names()) or 'none'})")
    return load_theme_file(path), problems


class ThemeWatch:
    """Notices when the files of a theme were changed on disk. Asking costs a stat() of each."""

    def __init__(self, theme: ThemeFile) -> None:
        self._name = theme.name
        self._paths = theme.sources or (theme.path,)
        self._seen = self._state()

    def _state(self) -> list[tuple[int, int, int] | None]:
        # A user's file that appears in place of a shipped one counts too.
        paths = [*self._paths, theme_directories()[1] / f"{self._name}.toml"]
        return [_stat(path) for path in paths]

    def poll(self) -> ThemeFile | None:
        """
        The theme as it is now, if its files were changed since it was last asked for; None otherwise.

        Raises `ThemeError` once for every change that left it unusable.
        """
        now = self._state()
        if now == self._seen:
            return None
        self._seen = now
        theme, _ = find_theme(self._name)
        self._paths = theme.sources
        self._seen = self._state()
        return theme


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
