"""Which theme the application shows: the next one, one by name, and the same one after its file was edited."""

from __future__ import annotations

from typing import Any

from textual.timer import Timer

from blockmon.themes import ThemeError, ThemeFile, ThemeWatch, find_theme, theme_names
from blockmon.tui.look import Look, textual_theme
from blockmon.tui.painted import PaintedApp

WATCH_SECONDS = 0.5
"""How often the file of the theme is looked at."""


class ThemedApp(PaintedApp[int]):
    """An application that draws with a `Look`. What else has to change with the theme the subclass says."""

    def __init__(self, look: Look, *, low_bandwidth: bool = False, **options: Any) -> None:
        ours = textual_theme(look.theme)
        super().__init__(low_bandwidth=low_bandwidth, ansi_color=True if ours.ansi else None, **options)
        self.look = look
        self.painter.use_colours(not look.theme.colourless)
        self.register_theme(ours)
        self.theme = ours.name
        self._theme_watch = ThemeWatch(look.theme)
        self._theme_timer: Timer | None = None

    def theme_changed(self, theme: ThemeFile) -> None:
        """Called when *theme* has come into effect."""

    def theme_problem(self, text: str) -> None:
        """Called with what is wrong with a theme's file; the colours stay as they are."""

    def use_theme(self, theme: ThemeFile) -> None:
        """Change the colours of everything."""
        self.look.use(theme)
        self._theme_watch = ThemeWatch(theme)
        ours = textual_theme(theme)
        self.painter.use_colours(not theme.colourless)
        self.register_theme(ours)
        self.ansi_color = True if ours.ansi else None
        self.theme = ours.name
        self.theme_changed(theme)
        self.refresh(layout=False)

    def use_theme_called(self, name: str) -> None:
        """Take the theme called *name*. Raises ThemeError where there is none, or it is broken."""
        theme, _ = find_theme(name)
        self.use_theme(theme)

    def action_next_theme(self) -> None:
        """Take the theme that follows by its name; broken ones are told and passed over."""
        names = theme_names()
        current = self.look.theme.name
        for name in [*(name for name in names if name > current), *(name for name in names if name < current)]:
            try:
                self.use_theme_called(name)
            except ThemeError as error:
                self.theme_problem(str(error))
            else:
                return

    def watch_theme_file(self) -> None:
        """Take the theme's file in whenever it is edited, from now on."""
        if self._theme_timer is None:
            self._theme_timer = self.set_interval(WATCH_SECONDS, self.look_at_theme_file)

    def look_at_theme_file(self) -> None:
        """Take the theme's file in if it was edited."""
        try:
            theme = self._theme_watch.poll()
        except ThemeError as error:
            self.theme_problem(str(error))
        else:
            if theme is not None:
                self.use_theme(theme)
