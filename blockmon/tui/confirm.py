"""The question before something is destroyed or ended: the command itself, what it does, and the keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from blockmon.tui.inspect_text import wrap
from blockmon.tui.look import Look
from blockmon.tui.popups import Popup, Row

_WIDEST = 76
_MARGIN = 4
"""Cells that the frame and the list's own margins take."""

_UNSEEN = 0.1
"""Seconds within which a key comes at most that was pressed before the question stood there."""

RUN, EDIT = "run", "edit"


class ConfirmPopup(Popup):
    """
    Asks whether to go on. The result is RUN, EDIT, or None to leave everything as it is.

    *command* is shown as it would be sent; empty for what is no command. *warning* says what is lost.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "answer('run')", "yes, go on", key_display="Enter"),
        Binding("e", "answer('edit')", "edit it at the prompt"),
    ]

    def __init__(
        self, look: Look, title: str, command: str, warning: Sequence[str], *, verb: str = "runs it", edit: bool = True
    ) -> None:
        self.command = command
        self.warning = tuple(warning)
        self.edit = edit
        self._seen = False
        self._asked = 0.0
        dot = f" {look.symbols.dot} "
        foot = dot.join(filter(None, (f"Enter {verb}", "e edits it" if edit else "", "Esc leaves")))
        super().__init__(look, title, self._rows(look, _WIDEST), has_cursor=False, foot=foot)

    def _rows(self, look: Look, width: int) -> list[Row]:
        rows: list[Row] = [tuple(pieces) for pieces in wrap([(self.command, "popup-command")], width)]
        if not self.command:
            rows = []
        for text in self.warning:
            sign = f"{look.symbols.notable} "
            rows += [tuple(pieces) for pieces in wrap([(sign, "popup-key"), (text, "popup")], width)]
        return rows

    def _fit(self) -> None:
        self.list.rows = self._rows(self.look, max(10, min(_WIDEST, self.size.width - _MARGIN)))
        super()._fit()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is no command cannot be edited."""
        return self.edit or parameters != (EDIT,)

    def on_mount(self) -> None:
        super().on_mount()
        self._asked = time.monotonic()
        self.call_after_refresh(self._now_seen)

    def _now_seen(self) -> None:
        self._seen = True

    def action_answer(self, answer: str) -> None:
        # What was typed ahead was not meant for a question that nobody had seen yet. On a busy screen the news that it
        # was drawn may come long after the picture.
        if self._seen or time.monotonic() - self._asked > _UNSEEN:
            self.dismiss(answer)
