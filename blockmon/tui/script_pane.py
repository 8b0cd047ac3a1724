"""The lines of the script that runs, the one it is at marked, and the keys that hold it and let it go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from textual.binding import Binding, BindingType
from textual.strip import Strip

from blockmon.exitcodes import ExitStatus
from blockmon.model.format import elide_middle, safe_text
from blockmon.tui.line import Line, join
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane

MOST_LINES = 200_000
"""Lines of a script that are shown; of a longer one the rest is not."""
LONGEST = 1000
"""Characters of a line that are kept."""


class Steering(Protocol):
    """What the pane turns (`replay.control.Controls`)."""

    @property
    def paused(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def step(self) -> None: ...

    def skip(self) -> None: ...


class ScriptPane(RowsPane):
    """The script. *abort* ends it."""

    title = "Script"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "hold", "pause/go on", key_display="Space"),
        Binding("s", "step", "step"),
        Binding("o", "omit", "leave out"),
        Binding("x", "abort", "abort"),
        Binding("f", "follow", "follow"),
    ]

    def __init__(self, look: Look, controls: Steering, abort: Callable[[], None], *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.controls = controls
        self.status: int | None = None
        """The exit status, once it has ended."""
        self.join_at: int | None = None
        """The column at which a vertical rule comes down upon the title."""
        self._abort = abort
        self._file = ""
        self._lines: list[str] = []
        self._first = self._last = 0
        """The numbers of the lines of the statement it is at, from 1."""
        self._failed: set[tuple[str, int]] = set()
        self._follows = True
        self._stale = False

    # What the run tells.

    def at(self, file: str, first: int, last: int) -> None:
        """The run has come to a statement."""
        if file != self._file:
            self._file, self._lines = file, _read(file)
        self._first, self._last = first, last
        self._changed()

    def failed(self, file: str, line: int) -> None:
        """A statement has failed."""
        self._failed.add((file, line))
        self._changed()

    def ended(self, status: int) -> None:
        """The run is over."""
        self.status = status
        self._changed()
        self.screen.refresh_bindings()

    def _changed(self) -> None:
        # A script may run thousands of statements a second.
        if not self._stale and self.is_mounted:
            self._stale = True
            self.set_timer(1 / 20, self._show)

    def _show(self) -> None:
        self._stale = False
        if self._follows and self._first:
            self.cursor = self._first - 1
            visible = self.visible_rows
            if not self.top + 1 <= self.cursor < self.top + visible - 1:
                self.top = max(0, self.cursor - visible // 3)
        self.update_rows()

    # Drawing.

    def count(self) -> int:
        return len(self._lines)

    def title_text(self) -> str:
        if not self._file:
            return self.title
        # What the run does is told behind it, and matters more.
        room = self.size.width - len(self.title) - len(self.title_note()) - 12
        return f"{self.title} {elide_middle(safe_text(self._file), max(8, room))}"

    def title_note(self) -> str:
        if self.status is not None:
            return _ending(self.status)
        if self.controls.paused:
            return f"paused before line {self._first}" if self._first else "paused"
        return f"line {self._first} of {len(self._lines)}" if self._first else "starting"

    def empty_text(self) -> Sequence[str]:
        return ("it has not begun yet",)

    def _draw_title(self, width: int) -> Strip:
        strip, symbols, at = super()._draw_title(width), self.look.symbols, self.join_at
        if at is None or strip.text[at : at + 1] != symbols.rule:
            return strip
        joint = Line(self.look, 1).add(symbols.rule_up, "rule").finish()
        return join(strip.crop(0, at), joint, strip.crop(at + 1, width))

    def mark(self, index: int) -> tuple[str, str]:
        if (self._file, index + 1) in self._failed:
            return self.look.symbols.error, "state.failed"
        if self.status is None and index + 1 == self._first:
            return self.look.symbols.closed, "state.paused" if self.controls.paused else "state.running"
        return "", ""

    def draw(self, index: int, line: Line) -> Line:
        text, number = self._lines[index], index + 1
        line.right(str(number), len(str(len(self._lines))), "faint").add(" ")
        if (self._file, number) in self._failed:
            style = "state.failed"
        elif self.status is None and self._first <= number <= self._last:
            style = "strong"
        elif text.lstrip().startswith("#"):
            style = "dim"
        else:
            style = "edge" if text.lstrip().startswith("@") else "text"
        return line.add(text, style)

    # Keys.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing are not there."""
        if action in ("hold", "step", "abort"):
            return self.status is None
        if action == "omit":
            return self.status is None and self.controls.paused
        if action == "follow":
            return not self._follows
        return True

    def _turned(self) -> None:
        self.update_rows()
        self.screen.refresh_bindings()

    def action_hold(self) -> None:
        """Stop in front of the next statement, or go on."""
        if self.controls.paused:
            self.controls.resume()
        else:
            self.controls.pause()
        self._turned()

    def action_step(self) -> None:
        """Run one statement."""
        if self.controls.paused:
            self.controls.step()
        else:
            self.controls.pause()
        self._turned()

    def action_omit(self) -> None:
        """Go past the statement it is held in front of."""
        self.controls.skip()
        self._turned()

    def action_abort(self) -> None:
        """End it; what it deferred still runs."""
        self._abort()

    def action_follow(self) -> None:
        """Keep the statement it is at in view."""
        self._follows = True
        self._show()
        self.screen.refresh_bindings()

    def go_to(self, index: int) -> None:
        self._follows = False
        super().go_to(index)


def _read(path: str) -> list[str]:
    lines: list[str] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                lines.append(safe_text(line.rstrip("\r\n").expandtabs()[:LONGEST]))
                if len(lines) >= MOST_LINES:
                    break
    except OSError:
        pass  # the run itself tells that it can't be read
    return lines


def _ending(status: int) -> str:
    told = {
        ExitStatus.OK: "ended well",
        ExitStatus.TIMEOUT: "a wait timed out",
        ExitStatus.SKIPPED: "left out",
        ExitStatus.INTERRUPTED: "aborted",
    }
    return told.get(ExitStatus(status), "failed") if status in ExitStatus.__members__.values() else f"status {status}"
