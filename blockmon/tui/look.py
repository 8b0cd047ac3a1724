"""The look of the screen: a theme's style strings as Rich styles, its colours as a Textual theme, and the signs."""

from __future__ import annotations

from typing import Any

from rich.color import Color
from rich.style import Style
from textual.theme import BUILTIN_THEMES, Theme

from blockmon.themes import ANSI_COLOURS, StyleSpec, ThemeFile, parse_style
from blockmon.tui.symbols import Symbols

_THEME_MEMBERS = frozenset(
    {"primary", "secondary", "warning", "error", "success", "accent", "foreground", "background", "surface", "panel",
     "boost", "dark", "luminosity_spread", "text_alpha", "ansi", "variables"}
)  # fmt: skip


def rich_style(spec: StyleSpec) -> Style:
    """The same style in Rich's terms."""
    attributes: dict[str, Any] = dict.fromkeys(spec.attributes, True)
    attributes.update(dict.fromkeys(spec.off, False))
    return Style(color=_rich_color(spec.color), bgcolor=_rich_color(spec.background), **attributes)


def _rich_color(name: str | None) -> Color | None:
    if name is None:
        return None
    if name == "ansidefault":
        return Color.default()
    if name in ANSI_COLOURS:
        return Color.from_ansi(ANSI_COLOURS.index(name))
    return Color.parse(name)


class Look:
    """What the widgets draw with. Changing the theme changes it in place, for all of them."""

    def __init__(self, theme: ThemeFile, symbols: Symbols) -> None:
        self.symbols = symbols
        self.theme = theme
        self.use(theme)

    def use(self, theme: ThemeFile) -> None:
        """Take the styles from *theme* from now on."""
        self.theme = theme
        self._styles: dict[str, Style] = {}
        self.base = rich_style(parse_style(theme.ui.get("text", "")))

    def style(self, name: str) -> Style:
        """
        The style called *name*: a part of the screen, or ``state.NAME``, or ``syntax.NAME``.

        A name that the theme does not have is drawn as ordinary text.
        """
        found = self._styles.get(name)
        if found is None:
            table, _, member = name.rpartition(".")
            source = {"": self.theme.ui, "state": self.theme.state, "syntax": self.theme.syntax}[table]
            found = self._styles[name] = self.base + rich_style(parse_style(source.get(member, "")))
        return found

    def overlay(self, name: str) -> Style:
        """The style called *name* to be laid over others, without the colours of ordinary text."""
        key = f"+{name}"
        found = self._styles.get(key)
        if found is None:
            found = self._styles[key] = rich_style(parse_style(self.theme.ui.get(name, "")))
        return found


def textual_theme(theme: ThemeFile) -> Theme:
    """The theme in Textual's terms. Members that Textual does not know are passed over."""
    members = {name: value for name, value in theme.textual.items() if name in _THEME_MEMBERS}
    if members.get("ansi"):
        # Textual's own style sheets lean on variables that only its ANSI themes set.
        model = BUILTIN_THEMES["ansi-dark" if members.get("dark", True) else "ansi-light"]
        members["variables"] = {**model.variables, **members.get("variables", {})}
    return Theme(name=f"blockmon-{theme.name}", **members)
