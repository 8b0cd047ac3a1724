"""How the application's pictures reach the terminal: as differences, not faster than it takes them, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from rich.console import RenderableType
from textual import events
from textual._ansi_sequences import SYNC_END, SYNC_START
from textual._compositor import CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.screen import Screen
from textual.timer import Timer

from blockmon.tui.garbage import AT_REST, Collector
from blockmon.tui.painter import Painter
from blockmon.tui.terminal import TerminalDriver

Result = TypeVar("Result")

LOW_RATE = 1200
"""Bytes a second that a screen with --low-bandwidth sends at most of its own accord."""
LOW_BURST = 800
"""Bytes that a screen which was silent may send at once without a pause after it."""
LOW_INTERVAL = 0.5
"""Seconds between two pictures of a screen with --low-bandwidth at least."""
_ATTENDED = (events.Key, events.Paste, events.MouseDown, events.MouseScrollDown, events.MouseScrollUp)
LONGEST_WAIT = 1.0
"""Seconds that a screen which has sent too much is silent at most."""
ATTENTION = 0.2
"""Seconds after a key in which what it changed goes out at once."""
HANGUP_STATUS = 129
"""Exit status when the terminal is gone: 128 and the number of SIGHUP."""


class Pace:
    """A budget of bytes: so many a second, with what was sent too much to be waited for."""

    def __init__(self, rate: float, burst: float, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._interval = rate, burst, interval
        self._clock = clock
        self._left = burst
        self._counted = self._sent = clock() - interval

    def wait(self) -> float:
        """Seconds until more may be sent; 0 for now."""
        self._count()
        return max(0.0, -self._left / self._rate, self._sent + self._interval - self._clock())

    def spend(self, size: int) -> None:
        """So many bytes were sent, in time or not."""
        self._count()
        # A large picture that someone asked for does not hold up the next ones for long.
        self._left = max(self._left - size, -self._rate * LONGEST_WAIT)
        self._sent = self._clock()

    def _count(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._counted) * self._rate)
        self._counted = now


class PaintedApp(App[Result], Generic[Result]):
    """An application whose screen is painted by a `Painter`. Without a terminal (in tests) nothing is painted."""

    def __init__(self, *, low_bandwidth: bool = False, **options: Any) -> None:
        super().__init__(driver_class=TerminalDriver, **options)
        system = self.console.color_system
        # Of the colours those with the shorter names.
        self.painter = Painter("256" if low_bandwidth and system == "truecolor" else system)
        self.pace = Pace(LOW_RATE, LOW_BURST, LOW_INTERVAL) if low_bandwidth else None
        self._attention = 0.0
        self._all_at_once = False
        self._owed: Timer | None = None
        self._collector = Collector()

    @property
    def terminal(self) -> TerminalDriver | None:
        """The terminal, where there is one."""
        return self._driver if isinstance(self._driver, TerminalDriver) else None

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        terminal = self.terminal
        if terminal is None:
            super()._display(screen, renderable)
            return
        if isinstance(renderable, CompositorUpdate) and self._running and not self._closed and not self._batch_count:
            self.painter.resize(*self.size)
            self.painter.take(renderable)
            if isinstance(renderable, LayoutUpdate) and time.monotonic() < self._attention:
                self._all_at_once = True
            self.send_picture()
        self.post_display_hook()

    def send_picture(self) -> None:
        """Send what is due of what has changed; the rest follows when the terminal and the budget allow."""
        terminal, painter, pace = self.terminal, self.painter, self.pace
        if terminal is None or not painter.dirty or terminal.busy or not self._running or self._closed:
            return
        rows: Iterable[int] | None = None
        if pace is not None and not self._all_at_once and (wait := pace.wait()):
            rows = self._rows_in_focus() if time.monotonic() < self._attention else ()
            if self._owed is None:
                self._owed = self.set_timer(wait, self._pay)
        else:
            self._all_at_once = False
        picture = painter.frame(rows)
        if not picture:
            return
        if pace is not None:
            pace.spend(len(picture.encode("utf-8", "replace")))
        else:
            x, y = self.cursor_position  # for those who compose characters there
            picture += f"\x1b[{y + 1};{x + 1}H"
        if self._sync_available:
            picture = f"{SYNC_START}{picture}{SYNC_END}"
        terminal.on_drained = self.send_picture
        terminal.write(picture)

    def _pay(self) -> None:
        self._owed = None
        self.send_picture()

    def _rows_in_focus(self) -> range:
        focused = self.focused
        return range(focused.region.y, focused.region.bottom) if focused is not None else range(0)

    def repaint(self) -> None:
        """Send everything anew: the terminal may show anything."""
        self.painter.forget()
        self._all_at_once = True
        self.send_picture()

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, _ATTENDED):
            self._attention = time.monotonic() + ATTENTION
        elif isinstance(event, events.Resize) and self.terminal is not None:
            self.terminal.on_lost = self._terminal_lost
            # It comes at the start, after SIGCONT and after a change of the size, and each time all may be gone.
            self._attention = time.monotonic() + ATTENTION
            self.repaint()
        if isinstance(event, events.Key) and not event.is_forwarded and await self.key_at_once(event):
            return
        await super().on_event(event)

    async def key_at_once(self, event: events.Key) -> bool:
        """Do what a key does before the next one is looked at; False leaves it to the widgets."""
        return False

    def settle(self) -> None:
        """The start is over: from now on keys come first. Only with a terminal, as it is about the whole process."""
        if self.terminal is not None:
            self._collector.begin()
            self.set_interval(AT_REST, lambda: self._collector.look(self._attention))

    async def _on_exit_app(self) -> None:
        self._collector.end()
        await super()._on_exit_app()

    def _terminal_lost(self) -> None:
        self.exit(None, return_code=HANGUP_STATUS)
