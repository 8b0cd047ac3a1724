"""What prompt_toolkit and the session ask of the pane that they are shown in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output import ColorDepth, DummyOutput

from blockmon.repl.host import Host, PromptError
from blockmon.repl.printers import Fragments

if TYPE_CHECKING:
    from blockmon.tui.prompt_pane import PromptPane


class WidgetOutput(DummyOutput):
    """prompt_toolkit's terminal: takes its size from the widget; what is drawn is read from the renderer's screen."""

    def __init__(self, pane: PromptPane) -> None:
        self._pane = pane

    def get_size(self) -> Size:
        size = self._pane.size
        return Size(rows=max(size.height, 1), columns=max(size.width, 1))

    def get_default_color_depth(self) -> ColorDepth:
        return ColorDepth.DEPTH_24_BIT

    def bell(self) -> None:
        self._pane.app.bell()


class PaneHost(Host):
    """What the session asks of the pane."""

    def __init__(self, pane: PromptPane) -> None:
        self._pane = pane

    async def follow(self, frames: AsyncIterator[Fragments]) -> None:
        """Show frames in their place."""
        await self._pane.follow(frames)

    def changed(self, setting: str) -> None:
        """Put a setting into effect."""
        self._pane.settings_changed(setting)

    def use_theme(self, name: str) -> None:
        """Have the application take a theme."""
        use = getattr(self._pane.app, "use_theme", None)
        if use is None:
            super().use_theme(name)
            return
        from blockmon.themes import ThemeError, find_theme

        try:
            theme, problems = find_theme(name)
        except ThemeError as error:
            raise PromptError(str(error)) from None
        use(theme)
        for problem in problems:
            self.session.notice(problem)
